// What store.dir holds, by the manifests that model/context_store.h writes.
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "launcher/inspect_contexts.h"
#include "model/context_store.h"
#include "model/json_util.h"
#include "model/mapping.h"

// The manifest of this folder; NULL: it holds no context.
static enum status read_manifest(const char *folder, json_t **out) {
    struct mapping file;
    char *path;
    *out = NULL;
    enum status status = mapping_open_optional(folder, CONTEXT_MANIFEST, &path, &file);
    if (status == OK && path) status = json_read_text(file.data, file.bytes, path, out);
    mapping_close(&file);
    free(path);
    const char *format = json_string_value(json_object_get(*out, "format"));
    if (status == OK && format && strcmp(format, CONTEXT_FORMAT) == 0) return OK;
    json_decref(*out);
    *out = NULL;
    return status;
}

static int64_t file_bytes(const char *folder, const char *name) {
    char path[4096];
    struct stat info;
    int n = name ? snprintf(path, sizeof path, "%s/%s", folder, name) : -1;
    if (n < 0 || (size_t)n >= sizeof path || strchr(name, '/')) return 0;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode) ? (int64_t)info.st_blocks * 512 : 0;
}

// On the disk, of the files that are the context's.
static int64_t context_bytes(const char *folder, const json_t *manifest) {
    int64_t bytes = file_bytes(folder, CONTEXT_MANIFEST) + file_bytes(folder, CONTEXT_TOKENS);
    const json_t *saves = json_object_get(manifest, "saves"), *save;
    size_t i;
    json_array_foreach(saves, i, save) {
        bytes += file_bytes(folder, json_string_value(json_object_get(save, "pages")));
        bytes += file_bytes(folder, json_string_value(json_object_get(save, "logprobs")));
    }
    return bytes;
}

static void print_context(const char *folder, const json_t *manifest) {
    const char *dtype = json_string_value(json_object_get(manifest, "dtype"));
    const char *name = json_string_value(json_object_get(manifest, "name"));
    const json_t *saves = json_object_get(manifest, "saves");
    long long n_save = (long long)json_array_size(saves);
    bool scored = json_is_string(json_object_get(json_array_get(saves, 0), "logprobs"));
    printf("%s: %s, %lld of %lld tokens, K/V %s%s, %.1f MiB in %lld save%s, the last of %lld "
           "ranks\n",
           folder, name ? name : "-",
           (long long)json_integer_value(json_object_get(manifest, "done")),
           (long long)json_integer_value(json_object_get(manifest, "n_token")), dtype ? dtype : "-",
           scored ? ", log-probabilities" : "", (double)context_bytes(folder, manifest) / (1 << 20),
           n_save, n_save == 1 ? "" : "s",
           (long long)json_integer_value(json_object_get(manifest, "ranks")));
}

static enum status inspect_folder(const char *folder, int *n) {
    json_t *manifest;
    TRY(read_manifest(folder, &manifest));
    if (!manifest) return OK;
    print_context(folder, manifest);
    json_decref(manifest);
    ++*n;
    return OK;
}

static int is_key(const struct dirent *entry) {
    return strlen(entry->d_name) == DIGEST_BYTES - 1;
}

enum status inspect_contexts(const char *path, int *n) {
    char folder[4096];
    struct dirent **keys = NULL;
    *n = 0;
    TRY(inspect_folder(path, n));
    if (*n > 0) return OK;
    int n_key = scandir(path, &keys, is_key, alphasort);
    enum status status = OK;
    for (int i = 0; i < n_key; i++) {
        snprintf(folder, sizeof folder, "%s/%s", path, keys[i]->d_name);
        if (status == OK) status = inspect_folder(folder, n);
        free(keys[i]);
    }
    free(keys);
    return status;
}
