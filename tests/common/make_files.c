#include "tests/common/make_files.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *checked(void *memory) {
    if (!memory) {
        perror("test");
        abort();
    }
    return memory;
}

void buffer_add(struct buffer *buffer, const void *data, size_t bytes) {
    if (buffer->n + bytes > buffer->capacity) {
        buffer->capacity = 2 * (buffer->n + bytes);
        buffer->data = checked(realloc(buffer->data, buffer->capacity));
    }
    if (bytes) memcpy(buffer->data + buffer->n, data, bytes);
    buffer->n += bytes;
}

void buffer_add_u32(struct buffer *buffer, uint32_t x) {
    buffer_add(buffer, &x, sizeof x);
}

void buffer_add_u64(struct buffer *buffer, uint64_t x) {
    buffer_add(buffer, &x, sizeof x);
}

void buffer_add_string(struct buffer *buffer, const char *text) {
    buffer_add_u64(buffer, strlen(text));
    buffer_add(buffer, text, strlen(text));
}

void buffer_add_zeros(struct buffer *buffer, size_t bytes) {
    static const uint8_t zeros[256];
    for (; bytes > sizeof zeros; bytes -= sizeof zeros) buffer_add(buffer, zeros, sizeof zeros);
    buffer_add(buffer, zeros, bytes);
}

void buffer_close(struct buffer *buffer) {
    free(buffer->data);
    *buffer = (struct buffer){0};
}

void gguf_maker_key(struct gguf_maker *maker, const char *key, uint32_t type) {
    buffer_add_string(&maker->keys, key);
    buffer_add_u32(&maker->keys, type);
    maker->n_key++;
}

void gguf_maker_u32(struct gguf_maker *maker, const char *key, uint32_t x) {
    gguf_maker_key(maker, key, 4);
    buffer_add_u32(&maker->keys, x);
}

void gguf_maker_f32(struct gguf_maker *maker, const char *key, float x) {
    gguf_maker_key(maker, key, 6);
    buffer_add(&maker->keys, &x, sizeof x);
}

void gguf_maker_string(struct gguf_maker *maker, const char *key, const char *text) {
    gguf_maker_key(maker, key, 8);
    buffer_add_string(&maker->keys, text);
}

void gguf_maker_strings(struct gguf_maker *maker, const char *key, const char *const *text,
                        uint64_t n) {
    gguf_maker_key(maker, key, 9);
    buffer_add_u32(&maker->keys, 8);
    buffer_add_u64(&maker->keys, n);
    for (uint64_t i = 0; i < n; ++i) buffer_add_string(&maker->keys, text[i]);
}

static void pad(struct buffer *buffer, size_t alignment) {
    buffer_add_zeros(buffer, (alignment - buffer->n % alignment) % alignment);
}

void gguf_maker_tensor(struct gguf_maker *maker, const char *name, uint64_t n0, uint64_t n1,
                       uint32_t type, const void *data, size_t bytes) {
    pad(&maker->data, maker->alignment ? maker->alignment : 32);
    buffer_add_string(&maker->table, name);
    buffer_add_u32(&maker->table, n1 ? 2 : 1);
    buffer_add_u64(&maker->table, n0);
    if (n1) buffer_add_u64(&maker->table, n1);
    buffer_add_u32(&maker->table, type);
    buffer_add_u64(&maker->table, maker->data.n);
    if (data)
        buffer_add(&maker->data, data, bytes);
    else
        buffer_add_zeros(&maker->data, bytes);
    maker->n_tensor++;
}

struct buffer gguf_maker_finish(struct gguf_maker *maker) {
    struct buffer out = {0};
    if (maker->alignment) gguf_maker_u32(maker, "general.alignment", maker->alignment);
    buffer_add(&out, "GGUF", 4);
    buffer_add_u32(&out, maker->version ? maker->version : 3);
    buffer_add_u64(&out, maker->n_tensor);
    buffer_add_u64(&out, maker->n_key);
    buffer_add(&out, maker->keys.data, maker->keys.n);
    buffer_add(&out, maker->table.data, maker->table.n);
    pad(&out, maker->alignment ? maker->alignment : 32);
    buffer_add(&out, maker->data.data, maker->data.n);
    buffer_close(&maker->keys);
    buffer_close(&maker->table);
    buffer_close(&maker->data);
    *maker = (struct gguf_maker){0};
    return out;
}

struct buffer make_safetensors(const char *header, size_t n_zero) {
    struct buffer out = {0};
    buffer_add_string(&out, header);
    buffer_add_zeros(&out, n_zero);
    return out;
}

char *folder_make(void) {
    char *folder = checked(strdup("/tmp/halka-test-XXXXXX"));
    checked(mkdtemp(folder));
    return folder;
}

char *folder_write(const char *folder, const char *name, const void *data, size_t bytes) {
    char *path = NULL;
    if (asprintf(&path, "%s/%s", folder, name) < 0) path = NULL;
    checked(path);
    FILE *file = checked(fopen(path, "wb"));
    if (fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) checked(NULL);
    return path;
}

void folder_remove(char *folder) {
    DIR *entries = checked(opendir(folder));
    for (struct dirent *entry; (entry = readdir(entries));)
        if (entry->d_name[0] != '.') unlinkat(dirfd(entries), entry->d_name, 0);
    closedir(entries);
    rmdir(folder);
    free(folder);
}
