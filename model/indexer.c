#include "model/indexer.h"

#include <math.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/checkpoint_files.h"
#include "model/json_util.h"
#include "model/safetensors.h"
#include "model/tensor_names.h"

struct indexer_facts { // of the metadata
    int64_t n_head, head_dim, rope_dim;
    double rope_base, norm_eps;
    bool interleaved;
    char base_sha256[65]; // empty: not given
};

static enum status read_number(struct json_object in, const char *key, double low, double high,
                               double *out) {
    const char *text = NULL;
    char *end = NULL;
    TRY(json_read_string(in, key, &text));
    if (!text) FAIL(ERR_INPUT, "%s: the metadata lacks %s: this is no indexer", in.path, key);
    *out = strtod(text, &end);
    if (end == text || *end || !(*out >= low && *out <= high))
        FAIL(ERR_INPUT, "%s: the metadata's %s is \"%s\", which is impossible", in.path, key, text);
    return OK;
}

static enum status read_facts(struct json_object in, struct indexer_facts *out) {
    const char *interleaved = "false", *base = "";
    double n_head, head_dim, rope_dim;
    TRY(read_number(in, "index_n_heads", 1, 1024, &n_head));
    TRY(read_number(in, "index_head_dim", 8, 256, &head_dim));
    TRY(read_number(in, "index_rope_dim", 2, head_dim, &rope_dim));
    TRY(read_number(in, "index_rope_theta", 1, 1e15, &out->rope_base));
    TRY(read_number(in, "k_norm_eps", 1e-12, 1, &out->norm_eps));
    TRY(json_read_string(in, "index_rope_interleave", &interleaved));
    TRY(json_read_string(in, "base_sha256", &base));
    out->n_head = (int64_t)n_head;
    out->head_dim = (int64_t)head_dim;
    out->rope_dim = (int64_t)rope_dim;
    out->interleaved = strcmp(interleaved, "true") == 0;
    snprintf(out->base_sha256, sizeof out->base_sha256, "%s", base);
    if (out->head_dim % 8 || out->rope_dim % 2)
        FAIL(ERR_INPUT, "%s: index heads of %lld elements, %lld rotated, are not supported",
             in.path, (long long)out->head_dim, (long long)out->rope_dim);
    return OK;
}

// The header was checked by safetensors_parse: 8 bytes of size, then JSON.
static enum status read_metadata(const struct mapping *mapping, const char *path,
                                 struct indexer_facts *out) {
    uint64_t header_bytes;
    json_t *root = NULL;
    const json_t *metadata = NULL;
    memcpy(&header_bytes, mapping->data, sizeof header_bytes);
    TRY(json_read_text((const char *)mapping->data + sizeof header_bytes, header_bytes, path,
                       &root));
    enum status status =
        json_read_object((struct json_object){root, path}, "__metadata__", &metadata);
    if (status == OK) status = read_facts((struct json_object){metadata, path}, out);
    json_decref(root);
    return status;
}

static enum status hash_file(const struct mapping *file, char out[2 * EVP_MAX_MD_SIZE + 1]) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int n = 0;
    out[0] = 0;
    if (!EVP_Digest(file->data, file->bytes, digest, &n, EVP_sha256(), NULL))
        FAIL(ERR_INTERNAL, "libcrypto cannot compute SHA-256");
    for (unsigned int i = 0; i < n; i++) snprintf(out + 2 * i, 3, "%02x", digest[i]);
    return OK;
}

// One of the checkpoint's files must be the one that the indexer names.
static enum status check_base(const struct checkpoint *checkpoint, const char *path,
                              const struct indexer_facts *facts) {
    char text[2 * EVP_MAX_MD_SIZE + 1];
    if (!facts->base_sha256[0]) return OK;
    for (int i = 0; i < checkpoint->n_mapping; i++) {
        TRY(hash_file(&checkpoint->mappings[i], text));
        if (strcmp(text, facts->base_sha256) == 0) return OK;
    }
    FAIL(ERR_INPUT,
         "%s was trained for another model: none of the files of %s has SHA-256 %.12s...; use the "
         "indexer of this checkpoint",
         path, checkpoint->path, facts->base_sha256);
}

static enum status check_network(const struct checkpoint *checkpoint, const char *path) {
    const struct model_spec *spec = &checkpoint->spec;
    if (!spec->causal)
        FAIL(ERR_CONFIG, "model.indexer is for causal networks; %s is an encoder",
             checkpoint->path);
    for (int i = 0; i < spec->n_layer; i++) {
        if (spec->layers[i].index.layout != INDEX_NONE)
            FAIL(ERR_CONFIG, "%s has an indexer of its own: leave out model.indexer (%s)",
                 checkpoint->path, path);
        if (spec->layers[i].attention != ATTENTION_FULL)
            FAIL(ERR_CONFIG, "model.indexer is for networks with full attention, which %s has not",
                 checkpoint->path);
    }
    if (spec->n_rope == MODEL_MAX_ROPE)
        FAIL(ERR_INPUT, "%s has no room for the rotation of an indexer", checkpoint->path);
    return OK;
}

static void fill_spec(const struct indexer_facts *facts, struct model_spec *spec) {
    struct rope_spec *rope = &spec->ropes[spec->n_rope];
    *rope = spec->ropes[0]; // the model's positions, scaled as its own are
    rope->dim = (int)facts->rope_dim;
    rope->base = facts->rope_base;
    rope->interleaved = facts->interleaved;
    rope->has_divisors = false;
    for (int i = 0; i < spec->n_layer; i++)
        spec->layers[i].index =
            (struct index_spec){.layout = INDEX_FULL,
                                .n_head = (int)facts->n_head,
                                .head_dim = (int)facts->head_dim,
                                .k = INDEXER_TOP_K,
                                .rope = spec->n_rope,
                                .scale = 1 / sqrtf((float)(facts->n_head * facts->head_dim)),
                                .norm_eps = (float)facts->norm_eps};
    spec->n_rope++;
}

// Adds a tensor of the file to the checkpoint under the name that its format gives the role.
static enum status add_tensor(struct checkpoint *checkpoint, const struct tensor_list *file,
                              const char *path, int layer, enum tensor_role role,
                              const char *part) {
    char name[TENSOR_NAME_BYTES];
    snprintf(name, sizeof name, "model.layers.%d.self_attn.indexer.%s", layer, part);
    const struct tensor *found = tensor_find(file->tensors, file->n, name);
    if (!found)
        FAIL(ERR_INPUT, "%s lacks %s: it is no indexer for %s", path, name, checkpoint->path);
    struct tensor tensor = *found;
    tensor_name(checkpoint->naming, role, layer, name);
    tensor.name = strdup(name);
    if (!tensor.name) FAIL(ERR_MEMORY, "no memory for the tensors of %s", path);
    struct tensor_list list = {.n = checkpoint->n_tensor,
                               .capacity = checkpoint->n_tensor,
                               .tensors = checkpoint->tensors};
    enum status status = tensor_list_add(&list, tensor);
    checkpoint->tensors = list.tensors;
    checkpoint->n_tensor = list.n;
    return status;
}

static enum status add_tensors(struct checkpoint *checkpoint, const struct tensor_list *file,
                               const char *path) {
    static const struct {
        enum tensor_role role;
        const char *part;
    } parts[] = {{TENSOR_INDEX_QUERY, "wq.weight"},
                 {TENSOR_INDEX_KEY, "wk.weight"},
                 {TENSOR_INDEX_KEY_NORM, "k_norm.weight"},
                 {TENSOR_INDEX_KEY_BIAS, "k_norm.bias"},
                 {TENSOR_INDEX_WEIGHT, "weights_proj.weight"}};
    for (int layer = 0; layer < checkpoint->spec.n_layer; layer++)
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
            TRY(add_tensor(checkpoint, file, path, layer, parts[i].role, parts[i].part));
    struct tensor_list list = {.n = checkpoint->n_tensor, .tensors = checkpoint->tensors};
    return tensor_list_sort(&list, checkpoint->path);
}

enum status indexer_attach(const char *path, bool compare_base, struct checkpoint *checkpoint) {
    enum status status = OK;
    struct tensor_list file = {0};
    struct indexer_facts facts = {0};
    struct mapping mapping = {0};
    TRY(check_network(checkpoint, path));
    TRY(mapping_open(path, &mapping));
    TRY_OR(done, safetensors_parse(mapping.data, mapping.bytes, path, &file));
    TRY_OR(done, tensor_list_sort(&file, path));
    TRY_OR(done, read_metadata(&mapping, path, &facts));
    if (compare_base) TRY_OR(done, check_base(checkpoint, path, &facts));
    fill_spec(&facts, &checkpoint->spec);
    TRY_OR(done, add_tensors(checkpoint, &file, path));
    TRY_OR(done, checkpoint_check_tensors(checkpoint));
    TRY_OR(done, checkpoint_keep_mapping(checkpoint, &mapping));
done:
    tensor_list_close(&file);
    mapping_close(&mapping);
    return status;
}
