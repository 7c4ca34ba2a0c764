// Files of saved contexts: whole reads and writes, what is on the disk before it is relied on, and
// generations. A state is written to files of a new generation beside those of the one before,
// which stays valid until the manifest that names the new ones takes its place. Who reads or writes
// holds a shared lock on the folder, so that nobody waits; who is alone removes what is left over.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/context_internal.h"
#include "model/durable.h"

enum { HALF_KEY = (DIGEST_BYTES - 1) / 2 };

static void print_half_key(const char *identity, const char *token_digest, char out[HALF_KEY]) {
    char text[DIGEST_BYTES];
    XXH3_state_t *hash = XXH3_createState();
    XXH3_128bits_reset(hash);
    digest_add_text(hash, identity);
    digest_add_text(hash, token_digest);
    digest_print(XXH3_128bits_digest(hash), text);
    XXH3_freeState(hash);
    memcpy(out, text, HALF_KEY);
}

void context_source_of(const struct context *context, struct context_source *out) {
    char head[DIGEST_BYTES];
    int64_t n = context->n, n_head = n < CONTEXT_PAGE ? n : CONTEXT_PAGE;
    *out =
        (struct context_source){.identity = context->identity, .name = context->name, .n_token = n};
    digest_bytes(context->token, (size_t)n * sizeof *context->token, out->token_digest);
    digest_bytes(context->token, (size_t)n_head * sizeof *context->token, head);
    print_half_key(context->identity, head, out->key);
    print_half_key(context->identity, out->token_digest, out->key + HALF_KEY);
}

void context_key(const struct context *context, char out[DIGEST_BYTES]) {
    struct context_source source;
    context_source_of(context, &source);
    memcpy(out, source.key, DIGEST_BYTES);
}

bool context_keys_begin_alike(const char *a, const char *b) {
    return strlen(b) == DIGEST_BYTES - 1 && strncmp(a, b, HALF_KEY) == 0;
}

char *context_path(const char *dir, const char *key, const char *name) {
    char *path = NULL;
    int n = name ? asprintf(&path, "%s/%s/%s", dir, key, name) : asprintf(&path, "%s/%s", dir, key);
    return n < 0 ? NULL : path;
}

enum status context_folder_sync(const char *path) {
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) FAIL(ERR_IO, "cannot open %s: %s", path, strerror(errno));
    enum status status = durable_sync(folder, path);
    close(folder);
    return status;
}

// NFS locks what is open for writing. Who may not write is content with less: nobody removes files
// of a store that is read-only.
static int open_lock(const char *folder, bool write) {
    char *path = NULL;
    if (asprintf(&path, "%s/lock", folder) < 0) return -1;
    int file = open(path, O_RDWR | O_CLOEXEC | (write ? O_CREAT : 0), 0666);
    if (file < 0 && !write) file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 && !write) file = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(path);
    return file;
}

enum status context_folder_open(const char *dir, const char *folder, bool write, int *out) {
    *out = -1;
    if (write) {
        TRY(durable_folder(folder, "context folder", "store.dir"));
        TRY(context_folder_sync(dir));
    }
    int file = open_lock(folder, write);
    if (file < 0 && errno == ENOENT && !write) return OK;
    if (file < 0)
        FAIL(write ? ERR_CREATE : ERR_IO, "cannot open %s%s: %s", folder, write ? "/lock" : "",
             strerror(errno));
    context_folder_share(file);
    *out = file;
    return OK;
}

void context_folder_share(int lock) {
    while (flock(lock, LOCK_SH) != 0 && errno == EINTR) {
    }
}

// Of a file named KIND-G; -1: it is none.
static int64_t generation_of(const char *name) {
    char expected[CONTEXT_NAME_BYTES];
    const char *dash = strchr(name, '-');
    if (!dash || strlen(dash) > 18) return -1;
    int64_t generation = strtoll(dash + 1, NULL, 10);
    for (int kind = 0; kind < N_CONTEXT_FILE; kind++) {
        context_name(kind, generation, expected);
        if (strcmp(name, expected) == 0) return generation;
    }
    return -1;
}

static int has_generation(const struct dirent *entry) {
    return generation_of(entry->d_name) >= 0;
}

enum status context_generation_make(const char *folder, int64_t bytes, int64_t *generation) {
    struct dirent **entries;
    int n = scandir(folder, &entries, has_generation, alphasort);
    if (n < 0) FAIL(ERR_IO, "cannot read %s: %s", folder, strerror(errno));
    *generation = 0; // the latest
    for (int i = 0; i < n; i++) {
        int64_t found = generation_of(entries[i]->d_name);
        if (found > *generation) *generation = found;
        free(entries[i]);
    }
    free(entries);
    char name[CONTEXT_NAME_BYTES], *path = NULL;
    int file;
    do { // other jobs may save, too
        free(path);
        context_name(CONTEXT_PAGES, ++*generation, name);
        if (asprintf(&path, "%s/%s", folder, name) < 0) FAIL(ERR_MEMORY, "no memory for a path");
        file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (file < 0 && errno == EEXIST);
    enum status status = OK;
    if (file < 0) FAIL_OR(done, ERR_CREATE, "cannot write %s: %s", path, strerror(errno));
    if (ftruncate(file, bytes) != 0)
        FAIL_OR(done, ERR_IO, "cannot make %s %lld bytes long: %s", path, (long long)bytes,
                strerror(errno));
done:
    if (file >= 0 && status != OK) unlink(path);
    if (file >= 0) close(file);
    free(path);
    return status;
}

static bool is_among(int64_t x, const int64_t *list, int n) {
    for (int i = 0; i < n; i++)
        if (list[i] == x) return true;
    return false;
}

void context_generations_keep(const char *folder, const int64_t *generation, int n) {
    struct dirent **entries;
    int n_entry = scandir(folder, &entries, has_generation, alphasort);
    for (int i = 0; i < n_entry; i++) {
        char *path = NULL;
        if (!is_among(generation_of(entries[i]->d_name), generation, n) &&
            asprintf(&path, "%s/%s", folder, entries[i]->d_name) > 0) {
            unlink(path); // or it only takes room
            free(path);
        }
        free(entries[i]);
    }
    if (n_entry >= 0) free(entries);
}

enum status context_read_at(int file, const char *path, void *data, int64_t bytes, int64_t offset) {
    for (int64_t done = 0; done < bytes;) {
        ssize_t n = pread(file, (char *)data + done, (size_t)(bytes - done), offset + done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) FAIL(ERR_IO, "cannot read %s: %s", path, strerror(errno));
        if (n == 0) FAIL(ERR_IO, "%s became shorter while it was read", path);
        done += n;
    }
    return OK;
}

enum status context_file_read(const char *path, int64_t most, void **out, int64_t *bytes) {
    enum status status = OK;
    struct stat info;
    *out = NULL;
    *bytes = 0;
    int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (file < 0 && errno == ENOENT) return OK;
    if (file < 0 || fstat(file, &info) != 0)
        FAIL_OR(done, ERR_IO, "cannot read %s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) FAIL_OR(done, ERR_INPUT, "%s is no file", path);
    if (info.st_size > most)
        FAIL_OR(done, ERR_INPUT, "%s is of %lld bytes, more than %lld", path,
                (long long)info.st_size, (long long)most);
    *out = malloc((size_t)info.st_size + 1);
    if (!*out) FAIL_OR(done, ERR_MEMORY, "no memory for %s", path);
    *bytes = info.st_size;
    TRY_OR(done, context_read_at(file, path, *out, info.st_size, 0));
    ((char *)*out)[info.st_size] = '\0';
done:
    if (file >= 0) close(file);
    if (status != OK) {
        free(*out);
        *out = NULL;
    }
    return status;
}
