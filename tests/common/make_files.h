// Small model files made in memory, right or wrong on purpose, and folders to put them in.
#ifndef HALKA_TESTS_MAKE_FILES_H
#define HALKA_TESTS_MAKE_FILES_H

#include <stddef.h>
#include <stdint.h>

struct buffer { // grows; a failed allocation ends the test program
    uint8_t *data;
    size_t n, capacity;
};
void buffer_add(struct buffer *buffer, const void *data, size_t bytes);
void buffer_add_u32(struct buffer *buffer, uint32_t x);
void buffer_add_u64(struct buffer *buffer, uint64_t x);
void buffer_add_string(struct buffer *buffer, const char *text); // GGUF: length, then bytes
void buffer_add_zeros(struct buffer *buffer, size_t bytes);
void buffer_close(struct buffer *buffer);

// A GGUF file in pieces: add keys and tensors in any order, then finish. Zeroed to start with.
struct gguf_maker {
    uint32_t version;   // 0: 3
    uint32_t alignment; // 0: 32, without a key
    uint64_t n_key, n_tensor;
    struct buffer keys, table, data;
};
void gguf_maker_u32(struct gguf_maker *maker, const char *key, uint32_t x);
void gguf_maker_f32(struct gguf_maker *maker, const char *key, float x);
void gguf_maker_string(struct gguf_maker *maker, const char *key, const char *text);
void gguf_maker_strings(struct gguf_maker *maker, const char *key, const char *const *text,
                        uint64_t n);
// Only the key and the type: the caller adds the value to maker->keys.
void gguf_maker_key(struct gguf_maker *maker, const char *key, uint32_t type);
// data NULL: zeros. n1 0: a vector.
void gguf_maker_tensor(struct gguf_maker *maker, const char *name, uint64_t n0, uint64_t n1,
                       uint32_t type, const void *data, size_t bytes);
// Writes the file and clears the maker.
struct buffer gguf_maker_finish(struct gguf_maker *maker);

// 8 bytes of size, the header as given, n_zero zeros of data.
struct buffer make_safetensors(const char *header, size_t n_zero);

// A new folder under /tmp; malloc'd. folder_remove deletes its files and frees the name.
char *folder_make(void);
void folder_remove(char *folder);
// Writes folder/name; returns its path, malloc'd.
char *folder_write(const char *folder, const char *name, const void *data, size_t bytes);

#endif
