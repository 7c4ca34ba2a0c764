// A Hugging Face folder: config.json, generation_config.json when present, and either
// model.safetensors or the shards that model.safetensors.index.json names.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/checkpoint_files.h"
#include "model/json_util.h"
#include "model/safetensors.h"

static enum status join_path(const char *folder, const char *file, char **out) {
    if (asprintf(out, "%s/%s", folder, file) < 0) {
        *out = NULL;
        FAIL(ERR_MEMORY, "no memory for the path of %s", file);
    }
    return OK;
}

static enum status read_shard(struct checkpoint *out, const char *file,
                              struct tensor_list *tensors) {
    enum status status;
    const struct mapping *mapping;
    char *path = NULL;
    TRY(join_path(out->folder, file, &path));
    TRY_OR(done, checkpoint_map(out, path, &mapping));
    status = safetensors_parse(mapping->data, mapping->bytes, path, tensors);
done:
    free(path);
    return status;
}

static int compare_strings(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// The distinct files of a weight map, sorted; the names stay in the map.
static enum status list_shards(const json_t *map, const char *path, const char ***out, size_t *n) {
    const char *name;
    json_t *value;
    size_t n_name = json_object_size(map);
    if (n_name == 0) FAIL(ERR_INPUT, "%s names no tensors", path);
    *n = 0;
    *out = calloc(n_name, sizeof **out);
    if (!*out) FAIL(ERR_MEMORY, "no memory for the shards of %s", path);
    json_object_foreach((json_t *)map, name, value) {
        const char *file = json_string_value(value);
        // A shard lies in the folder itself: an index must not lead elsewhere.
        if (!file || !*file || *file == '.' || strchr(file, '/'))
            FAIL(ERR_INPUT, "%s: tensor %.200s has no file name", path, name);
        (*out)[(*n)++] = file;
    }
    qsort(*out, *n, sizeof **out, compare_strings);
    size_t n_distinct = 0;
    for (size_t i = 0; i < *n; ++i)
        if (i == 0 || strcmp((*out)[i], (*out)[n_distinct - 1]) != 0)
            (*out)[n_distinct++] = (*out)[i];
    *n = n_distinct;
    return OK;
}

static enum status check_map(const json_t *map, const char *path,
                             const struct tensor_list *tensors) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)map, name, value) {
        if (!tensor_find(tensors->tensors, tensors->n, name))
            FAIL(ERR_INPUT, "%s: tensor %.200s is not in %.200s", path, name,
                 json_string_value(value));
    }
    return OK;
}

static enum status read_index(struct checkpoint *out, const char *path,
                              struct tensor_list *tensors) {
    enum status status;
    struct mapping index = {0};
    json_t *root = NULL;
    const json_t *map = NULL;
    const char **files = NULL;
    size_t n_file = 0;
    TRY_OR(done, mapping_open(path, &index));
    TRY_OR(done, json_read_text(index.data, index.bytes, path, &root));
    TRY_OR(done, json_read_object((struct json_object){root, path}, "weight_map", &map));
    TRY_OR(done, list_shards(map, path, &files, &n_file));
    for (size_t i = 0; i < n_file; ++i) TRY_OR(done, read_shard(out, files[i], tensors));
    TRY_OR(done, tensor_list_sort(tensors, path));
    status = check_map(map, path, tensors);
done:
    free(files);
    json_decref(root);
    mapping_close(&index);
    return status;
}

static enum status read_weights(struct checkpoint *out, struct tensor_list *tensors) {
    enum status status;
    char *single = NULL, *index = NULL;
    TRY_OR(done, join_path(out->folder, "model.safetensors", &single));
    TRY_OR(done, join_path(out->folder, "model.safetensors.index.json", &index));
    if (out->shapes_only)
        status = checkpoint_read_names(index, tensors);
    else if (mapping_exists(single))
        status = read_shard(out, "model.safetensors", tensors);
    else if (mapping_exists(index))
        status = read_index(out, index, tensors);
    else
        FAIL_OR(done, ERR_NO_INPUT,
                "%s has neither model.safetensors nor model.safetensors.index.json; convert its "
                "weights to safetensors, or pass a GGUF file itself",
                out->folder);
done:
    free(single);
    free(index);
    return status;
}

bool checkpoint_has_index(const char *folder) {
    char *index = NULL;
    if (asprintf(&index, "%s/model.safetensors.index.json", folder) < 0) return false;
    bool has = mapping_exists(index);
    free(index);
    return has;
}

static enum status read_generation(const char *folder, struct spec_draft *draft) {
    struct mapping text;
    char *path;
    enum status status = mapping_open_optional(folder, "generation_config.json", &path, &text);
    if (status == OK && path)
        status = spec_draft_read_generation(text.data, text.bytes, path, draft);
    mapping_close(&text);
    free(path);
    return status;
}

enum status checkpoint_read_folder(struct checkpoint *out, struct tensor_list *tensors,
                                   struct spec_draft *draft, struct config_text *config) {
    enum status status;
    const struct mapping *mapping;
    char *path = NULL;
    TRY(join_path(out->folder, "config.json", &path));
    TRY_OR(done, checkpoint_map(out, path, &mapping));
    *config = (struct config_text){mapping->data, mapping->bytes};
    TRY_OR(done, spec_draft_read_json(config->data, config->bytes, path, draft));
    TRY_OR(done, read_generation(out->folder, draft));
    status = read_weights(out, tensors);
done:
    free(path);
    return status;
}
