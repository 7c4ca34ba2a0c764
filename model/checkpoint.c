#include "model/checkpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "model/checkpoint_files.h"
#include "model/tensor_names.h"

enum { N_SAMPLE = 4, SAMPLE_BYTES = 512 };

static enum status add_mapping(struct checkpoint *checkpoint, struct mapping **out) {
    size_t n = (size_t)checkpoint->n_mapping;
    struct mapping *grown = realloc(checkpoint->mappings, (n + 1) * sizeof *grown);
    if (!grown) FAIL(ERR_MEMORY, "no memory for the files of %s", checkpoint->path);
    checkpoint->mappings = grown;
    *out = &grown[n];
    return OK;
}

enum status checkpoint_map(struct checkpoint *checkpoint, const char *path,
                           const struct mapping **mapping) {
    struct mapping *added;
    TRY(add_mapping(checkpoint, &added));
    TRY(mapping_open(path, added));
    checkpoint->n_mapping++;
    *mapping = added;
    return OK;
}

enum status checkpoint_keep_mapping(struct checkpoint *checkpoint, struct mapping *mapping) {
    struct mapping *added;
    TRY(add_mapping(checkpoint, &added));
    *added = *mapping;
    *mapping = (struct mapping){0};
    checkpoint->n_mapping++;
    return OK;
}

static enum status list_gguf_tensors(const struct gguf *gguf, struct tensor_list *out) {
    for (uint64_t i = 0; i < gguf->n_tensor; ++i) {
        const struct gguf_tensor *from = &gguf->tensors[i];
        const struct gguf_format *format = gguf_format_find(from->type);
        struct tensor tensor = {.name = strdup(from->name),
                                .n_dim = from->n_dim,
                                .data = from->data,
                                .bytes = from->bytes};
        if (!tensor.name) FAIL(ERR_MEMORY, "no memory for a table of tensors");
        if (format)
            snprintf(tensor.format, sizeof tensor.format, "%s", format->name);
        else
            snprintf(tensor.format, sizeof tensor.format, "%" PRIu32, from->type);
        tensor.dtype = tensor_format_dtype(tensor.format);
        for (int d = 0; d < from->n_dim; ++d) tensor.shape[d] = from->ne[from->n_dim - 1 - d];
        TRY(tensor_list_add(out, tensor));
    }
    return OK;
}

enum status checkpoint_read_gguf(struct checkpoint *out, struct tensor_list *tensors,
                                 struct spec_draft *draft, struct config_text *config) {
    const struct mapping *mapping;
    TRY(checkpoint_map(out, out->path, &mapping));
    if (mapping->bytes == 0) FAIL(ERR_INPUT, "%s is empty", out->path);
    if (mapping->bytes < 4 || memcmp(mapping->data, "GGUF", 4) != 0)
        FAIL(ERR_INPUT, "%s is not a GGUF file; a model in safetensors form is given by its folder",
             out->path);
    TRY(gguf_parse(mapping->data, mapping->bytes, out->path, &out->gguf));
    *config = (struct config_text){out->gguf->header, out->gguf->header_bytes};
    TRY(list_gguf_tensors(out->gguf, tensors));
    return spec_draft_read_gguf(out->gguf, out->path, draft);
}

const struct tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name) {
    return tensor_find(checkpoint->tensors, checkpoint->n_tensor, name);
}

// Demands a tensor by name and shape.
static enum status require_named(const struct checkpoint *checkpoint, const char *name,
                                 int64_t n_row, int64_t n_col, const struct tensor **out) {
    char shape[96];
    const struct tensor *tensor = checkpoint_find(checkpoint, name);
    if (!tensor) FAIL(ERR_INPUT, "%s: tensor %s is missing", checkpoint->path, name);
    bool fits = tensor->shape[0] == n_row &&
                (n_col ? tensor->n_dim == 2 && tensor->shape[1] == n_col : tensor->n_dim == 1);
    if (!fits)
        FAIL(ERR_INPUT, "%s: tensor %s is %s; the configuration needs [%" PRId64 "%s%.0" PRId64 "]",
             checkpoint->path, name, tensor_shape_text(tensor, shape), n_row, n_col ? ", " : "",
             n_col);
    if (tensor->dtype == N_DTYPE)
        FAIL(ERR_INPUT, "%s: tensor %s has format %s, which is not supported", checkpoint->path,
             name, tensor->format);
    // A block begins with 16-bit scales; plain formats need their own size.
    int64_t alignment = tensor->dtype == DTYPE_F32 ? 4 : tensor->dtype == DTYPE_F8_E4M3 ? 1 : 2;
    if ((uintptr_t)tensor->data % (uintptr_t)alignment)
        FAIL(ERR_INPUT,
             "%s: tensor %s is not aligned in its file; save the model again with a current "
             "safetensors",
             checkpoint->path, name);
    *out = tensor;
    return OK;
}

enum status checkpoint_require_scale(const struct checkpoint *checkpoint,
                                     const struct tensor *tensor, const struct tensor **out) {
    char name[TENSOR_NAME_BYTES + 16];
    int64_t block = WEIGHT_SCALE_BLOCK;
    snprintf(name, sizeof name, "%s_scale_inv", tensor->name);
    TRY(require_named(checkpoint, name, (tensor->shape[0] + block - 1) / block,
                      (tensor->shape[1] + block - 1) / block, out));
    if ((*out)->dtype != DTYPE_F32)
        FAIL(ERR_INPUT, "%s: tensor %s has format %s; scales are F32", checkpoint->path, name,
             (*out)->format);
    return OK;
}

// A matrix in fp8 is of use only with its scales.
static enum status require_weight(const struct checkpoint *checkpoint, const char *name,
                                  int64_t n_row, int64_t n_col, const struct tensor **out) {
    const struct tensor *scale;
    TRY(require_named(checkpoint, name, n_row, n_col, out));
    if ((*out)->dtype != DTYPE_F8_E4M3) return OK;
    if (!n_col)
        FAIL(ERR_INPUT, "%s: vector %s has format F8_E4M3, which only matrices may have",
             checkpoint->path, name);
    return checkpoint_require_scale(checkpoint, *out, &scale);
}

enum status checkpoint_require(const struct checkpoint *checkpoint, enum tensor_role role,
                               int layer, int64_t n_row, int64_t n_col, struct tensor *out) {
    char name[TENSOR_NAME_BYTES];
    const struct tensor *stored;
    if (role == TENSOR_HEAD && checkpoint->spec.tied_head) role = TENSOR_EMBEDDING;
    struct tensor_rows rows =
        tensor_stored_rows(&checkpoint->spec, checkpoint->naming.scheme, role, layer);
    tensor_name(checkpoint->naming, role, layer, name);
    TRY(require_weight(checkpoint, name, rows.n_stored ? rows.n_stored : n_row, n_col, &stored));
    *out = *stored;
    if (rows.n_stored == 0) return OK;
    if (stored->dtype == DTYPE_F8_E4M3)
        FAIL(ERR_INPUT, "%s: tensor %s holds several matrices, whose fp8 blocks cannot be cut",
             checkpoint->path, name);
    int64_t row_bytes = stored->bytes / rows.n_stored;
    out->shape[0] = n_row;
    out->bytes = n_row * row_bytes;
    if (stored->data) out->data = (const char *)stored->data + rows.first * row_bytes;
    return OK;
}

enum status checkpoint_require_expert(const struct checkpoint *checkpoint,
                                      enum expert_matrix matrix, int layer, int expert,
                                      const struct tensor **out) {
    char name[TENSOR_NAME_BYTES];
    int64_t hidden = checkpoint->spec.n_hidden;
    int64_t width = checkpoint->spec.layers[layer].experts.n_feed_forward;
    bool down = matrix == EXPERT_DOWN;
    tensor_expert_name(matrix, layer, expert, name);
    return require_weight(checkpoint, name, down ? hidden : width, down ? width : hidden, out);
}

// The whole list of what the forward pass will ask for, so that a bad file fails at once.
static enum status check_needs(const struct checkpoint *checkpoint, int layer,
                               const struct tensor_need *needs, int n) {
    struct tensor tensor;
    for (int i = 0; i < n; ++i)
        TRY(checkpoint_require(checkpoint, needs[i].role, layer, needs[i].n_row, needs[i].n_col,
                               &tensor));
    return OK;
}

static enum status check_layer(const struct checkpoint *checkpoint, int layer) {
    struct tensor_need needs[LAYER_TENSORS];
    int n = tensor_layer_needs(&checkpoint->spec, layer, needs);
    const struct tensor *tensor;
    TRY(check_needs(checkpoint, layer, needs, n));
    const struct layer_spec *l = &checkpoint->spec.layers[layer];
    int n_expert = l->feed_forward == FEED_FORWARD_EXPERTS ? l->experts.n_expert : 0;
    for (int e = 0; e < n_expert; ++e)
        for (int m = 0; m < N_EXPERT_MATRIX; ++m)
            TRY(checkpoint_require_expert(checkpoint, (enum expert_matrix)m, layer, e, &tensor));
    return OK;
}

enum status checkpoint_check_tensors(const struct checkpoint *checkpoint) {
    const struct model_spec *spec = &checkpoint->spec;
    struct tensor_need needs[LAYER_TENSORS];
    TRY(check_needs(checkpoint, 0, needs, tensor_outer_needs(spec, needs)));
    for (int i = 0; i < spec->n_layer; ++i) TRY(check_layer(checkpoint, i));
    return OK;
}

// What the tensors themselves say: what comes before their names, the vocabulary, and whether
// there is a head of its own.
static void complete_draft(struct checkpoint *checkpoint, struct spec_draft *draft) {
    char name[TENSOR_NAME_BYTES];
    struct tensor_naming naming = {checkpoint->gguf ? TENSORS_GGUF : draft->architecture->scheme,
                                   NULL};
    const struct tensor *table = NULL;
    for (int i = 0; !table && tensor_prefix(naming.scheme, i); ++i) {
        naming.prefix = tensor_prefix(naming.scheme, i);
        table = checkpoint_find(checkpoint, tensor_name(naming, TENSOR_EMBEDDING, 0, name));
    }
    if (!table) naming.prefix = NULL;
    checkpoint->naming = naming;
    if (draft->n_vocab == 0 && table) draft->n_vocab = table->shape[0];
    if (!checkpoint_find(checkpoint, tensor_name(naming, TENSOR_HEAD, 0, name)))
        draft->tied_head = true;
}

static enum status compute_digest(struct checkpoint *checkpoint, const struct config_text *config) {
    XXH3_state_t *state = XXH3_createState();
    if (!state) FAIL(ERR_MEMORY, "no memory for the digest of %s", checkpoint->path);
    XXH3_128bits_reset(state);
    XXH3_128bits_update(state, config->data, config->bytes);
    for (int64_t i = 0; i < checkpoint->n_tensor; ++i) {
        const struct tensor *tensor = &checkpoint->tensors[i];
        digest_add_text(state, tensor->name);
        XXH3_128bits_update(state, tensor->format, sizeof tensor->format);
        XXH3_128bits_update(state, tensor->shape, sizeof tensor->shape);
        XXH3_128bits_update(state, &tensor->bytes, sizeof tensor->bytes);
        if (!tensor->data) continue;                         // shapes only
        if (strstr(tensor->name, ".mlp.experts.")) continue; // each rank touches its own alone
        if (tensor->bytes <= N_SAMPLE * SAMPLE_BYTES) {
            XXH3_128bits_update(state, tensor->data, (size_t)tensor->bytes);
            continue;
        }
        int64_t step = (tensor->bytes - SAMPLE_BYTES) / (N_SAMPLE - 1);
        for (int k = 0; k < N_SAMPLE; ++k)
            XXH3_128bits_update(state, (const char *)tensor->data + k * step, SAMPLE_BYTES);
    }
    XXH128_hash_t hash = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    digest_print(hash, checkpoint->digest);
    return OK;
}

// BERT's first checkpoints call the weight and bias of a norm gamma and beta.
static enum status rename_old_norms(struct tensor_list *tensors) {
    static const char *const ends[][2] = {{"LayerNorm.gamma", "LayerNorm.weight"},
                                          {"LayerNorm.beta", "LayerNorm.bias"}};
    for (int64_t i = 0; i < tensors->n; ++i)
        for (int e = 0; e < 2; ++e) {
            char *name = tensors->tensors[i].name, *renamed;
            size_t n = strlen(name), n_end = strlen(ends[e][0]);
            if (n < n_end || strcmp(name + n - n_end, ends[e][0]) != 0) continue;
            if (asprintf(&renamed, "%.*s%s", (int)(n - n_end), name, ends[e][1]) < 0)
                FAIL(ERR_MEMORY, "no memory for a table of tensors");
            free(name);
            tensors->tensors[i].name = renamed;
        }
    return OK;
}

static enum status open_parts(const char *path, struct checkpoint *out,
                              struct tensor_list *tensors) {
    struct stat info;
    struct spec_draft draft;
    struct config_text config;
    if (stat(path, &info) != 0)
        FAIL(ERR_NO_INPUT, "cannot open the model %s: %s", path, strerror(errno));
    out->path = strdup(path);
    if (!out->path) FAIL(ERR_MEMORY, "no memory for the path of %s", path);
    spec_draft_init(&draft);
    if (S_ISDIR(info.st_mode)) {
        out->folder = strdup(path);
        if (!out->folder) FAIL(ERR_MEMORY, "no memory for the path of %s", path);
        TRY(checkpoint_read_folder(out, tensors, &draft, &config));
    } else {
        TRY(checkpoint_read_gguf(out, tensors, &draft, &config));
    }
    if (!out->gguf && draft.architecture->scheme == TENSORS_BERT) TRY(rename_old_norms(tensors));
    TRY(tensor_list_sort(tensors, path));
    out->n_tensor = tensors->n;
    out->tensors = tensors->tensors;
    *tensors = (struct tensor_list){0};
    complete_draft(out, &draft);
    TRY(spec_build(&draft, path, &out->spec));
    if (out->shapes_only) checkpoint_fill_shapes(out);
    TRY(checkpoint_check_tensors(out));
    return compute_digest(out, &config);
}

static enum status open_checkpoint(const char *path, bool shapes_only, struct checkpoint *out) {
    struct tensor_list tensors = {0};
    *out = (struct checkpoint){.shapes_only = shapes_only};
    enum status status = open_parts(path, out, &tensors);
    tensor_list_close(&tensors);
    if (status != OK) checkpoint_close(out);
    return status;
}

enum status checkpoint_open(const char *path, struct checkpoint *out) {
    return open_checkpoint(path, false, out);
}

enum status checkpoint_open_shapes(const char *path, struct checkpoint *out) {
    return open_checkpoint(path, checkpoint_has_index(path), out);
}

void checkpoint_close(struct checkpoint *checkpoint) {
    struct tensor_list tensors = {.n = checkpoint->n_tensor, .tensors = checkpoint->tensors};
    tensor_list_close(&tensors);
    model_spec_close(&checkpoint->spec);
    gguf_close(&checkpoint->gguf);
    for (int i = 0; i < checkpoint->n_mapping; ++i) mapping_close(&checkpoint->mappings[i]);
    free(checkpoint->mappings);
    free(checkpoint->folder);
    free(checkpoint->path);
    *checkpoint = (struct checkpoint){0};
}
