#include "tests/common/random_network.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/tensor_names.h"
#include "tests/common/cases.h"

enum { DISTINCT = (1 << 21) - 64 * 17 }; // random values; no multiple of a row

const struct network_shape network_llama_8b = {32, 4096, 32, 8, 128, 14336, 128256, 131072, 0, 0};
const struct network_shape network_smollm2_135m = {30, 576, 9, 3, 64, 1536, 49152, 8192, 0, 0};
const struct network_shape network_olmoe_7b = {16, 2048, 16, 16, 128, 1024, 50304, 4096, 64, 8};

static enum status add_tensor(const struct random_network *network, struct tensor_list *list,
                              enum tensor_role role, int layer, int64_t n_row, int64_t n_col) {
    char name[TENSOR_NAME_BYTES];
    struct tensor t = {.name = strdup(tensor_name((struct tensor_naming){0}, role, layer, name)),
                       .dtype = n_col ? DTYPE_BF16 : DTYPE_F32,
                       .n_dim = n_col ? 2 : 1,
                       .shape = {n_row, n_col},
                       .data = n_col ? (void *)network->matrix : network->ones};
    t.bytes = dtype_bytes(t.dtype, n_row * (n_col ? n_col : 1));
    snprintf(t.format, sizeof t.format, "%s", dtype_info[t.dtype].name);
    return tensor_list_add(list, t);
}

static enum status add_expert(const struct random_network *network, struct tensor_list *list,
                              enum expert_matrix matrix, int layer, int expert) {
    const struct model_spec *spec = &network->checkpoint.spec;
    int64_t width = spec->layers[layer].experts.n_feed_forward, hidden = spec->n_hidden;
    bool down = matrix == EXPERT_DOWN;
    char name[TENSOR_NAME_BYTES];
    struct tensor t = {.name = strdup(tensor_expert_name(matrix, layer, expert, name)),
                       .dtype = DTYPE_BF16,
                       .n_dim = 2,
                       .shape = {down ? hidden : width, down ? width : hidden},
                       .data = (void *)network->matrix,
                       .bytes = dtype_bytes(DTYPE_BF16, width * hidden)};
    snprintf(t.format, sizeof t.format, "%s", dtype_info[t.dtype].name);
    return tensor_list_add(list, t);
}

static int scaled(int n, int64_t divisor) {
    return n / divisor > 0 ? (int)(n / divisor) : 1;
}

static enum status fill_spec(const struct network_shape *n, int64_t divisor,
                             struct model_spec *spec) {
    int n_kv_head = scaled(n->n_kv_head, divisor);
    int n_head = n_kv_head * (n->n_head / n->n_kv_head);
    *spec = (struct model_spec){
        .architecture = "llama",
        .causal = true,
        .final_norm = true,
        .n_layer = scaled(n->n_layer, divisor),
        .n_rope = 1,
        .ropes = {{.method = ROPE_LLAMA3,
                   .base = 500000,
                   .dim = n->head_dim,
                   .factor = 8,
                   .original_context = 8192,
                   .low_freq_factor = 1,
                   .high_freq_factor = 4}},
        .n_vocab = scaled(n->n_vocab, divisor),
        .n_hidden = scaled(n->n_hidden, divisor),
        .norm_eps = 1e-5f,
        .embedding_scale = 1,
        .context = n->context,
    };
    spec->layers = calloc((size_t)spec->n_layer, sizeof *spec->layers);
    if (!spec->layers) FAIL(ERR_MEMORY, "no memory for %d layers", spec->n_layer);
    int width = scaled(n->n_feed_forward, divisor);
    for (int i = 0; i < spec->n_layer; i++) {
        spec->layers[i] = (struct layer_spec){.attention = ATTENTION_FULL,
                                              .feed_forward = FEED_FORWARD_GATED,
                                              .norm = NORM_RMS,
                                              .attention_norm = true,
                                              .activation = ACTIVATION_SILU,
                                              .n_head = n_head,
                                              .n_kv_head = n_kv_head,
                                              .head_dim = n->head_dim,
                                              .value_dim = n->head_dim,
                                              .n_feed_forward = width,
                                              .attention_scale = 1 / sqrtf((float)n->head_dim)};
        if (!n->n_expert) continue;
        spec->layers[i].feed_forward = FEED_FORWARD_EXPERTS;
        spec->layers[i].n_feed_forward = 0; // none is shared
        spec->layers[i].experts = (struct expert_spec){.n_expert = n->n_expert,
                                                       .n_used = n->n_used,
                                                       .n_group = 1,
                                                       .n_group_used = 1,
                                                       .n_feed_forward = width,
                                                       .softmax = true,
                                                       .scale = 1};
    }
    return OK;
}

static int64_t largest_matrix(const struct model_spec *spec) {
    int64_t largest = spec->n_vocab * spec->n_hidden;
    struct tensor_need need[LAYER_TENSORS];
    int n = tensor_layer_needs(spec, 0, need); // all layers are alike
    for (int i = 0; i < n; i++)
        if (need[i].n_row * need[i].n_col > largest) largest = need[i].n_row * need[i].n_col;
    return largest;
}

// Its matrices all lie over one block of random values.
static void fill_values(struct random_network *network) {
    const struct model_spec *spec = &network->checkpoint.spec;
    int64_t n = largest_matrix(spec);
    network->matrix = test_alloc(dtype_bytes(DTYPE_BF16, n));
    network->ones = test_alloc(spec->n_hidden * (int64_t)sizeof *network->ones);
    for (int i = 0; i < spec->n_hidden; i++) network->ones[i] = 1;
    bf16 *distinct = random_vector(DTYPE_BF16, DISTINCT, 1 / sqrtf((float)spec->n_hidden), 1);
    for (int64_t i = 0; i < n; i += DISTINCT)
        memcpy(network->matrix + i, distinct, (size_t)(n - i < DISTINCT ? n - i : DISTINCT) * 2);
    free(distinct);
}

static enum status list_tensors(const struct random_network *network, struct tensor_list *list) {
    const struct model_spec *spec = &network->checkpoint.spec;
    TRY(add_tensor(network, list, TENSOR_EMBEDDING, 0, spec->n_vocab, spec->n_hidden));
    TRY(add_tensor(network, list, TENSOR_HEAD, 0, spec->n_vocab, spec->n_hidden));
    TRY(add_tensor(network, list, TENSOR_FINAL_NORM, 0, spec->n_hidden, 0));
    for (int layer = 0; layer < spec->n_layer; layer++) {
        struct tensor_need need[LAYER_TENSORS];
        int n = tensor_layer_needs(spec, layer, need);
        for (int i = 0; i < n; i++)
            TRY(add_tensor(network, list, need[i].role, layer, need[i].n_row, need[i].n_col));
        for (int i = 0; i < spec->layers[layer].experts.n_expert; i++)
            for (int matrix = 0; matrix < N_EXPERT_MATRIX; matrix++)
                TRY(add_expert(network, list, (enum expert_matrix)matrix, layer, i));
    }
    return tensor_list_sort(list, network->checkpoint.path);
}

enum status random_network_open(const struct network_shape *shape, int64_t divisor,
                                struct random_network *out) {
    struct checkpoint *c = &out->checkpoint;
    struct tensor_list list = {0};
    *out = (struct random_network){0};
    TRY(fill_spec(shape, divisor, &c->spec));
    fill_values(out);
    c->path = strdup("random weights");
    enum status status = list_tensors(out, &list);
    c->n_tensor = list.n; // owned by the checkpoint, whatever happened
    c->tensors = list.tensors;
    return status;
}

void random_network_close(struct random_network *network) {
    checkpoint_close(&network->checkpoint);
    free(network->matrix);
    free(network->ones);
    *network = (struct random_network){0};
}

double random_network_layer_elements(const struct model_spec *spec) {
    double sum = 0;
    for (int layer = 0; layer < spec->n_layer; layer++) {
        struct tensor_need need[LAYER_TENSORS];
        int n = tensor_layer_needs(spec, layer, need);
        for (int i = 0; i < n; i++) sum += (double)(need[i].n_row * need[i].n_col);
        const struct expert_spec *e = &spec->layers[layer].experts;
        sum += (double)e->n_used * N_EXPERT_MATRIX * e->n_feed_forward * spec->n_hidden;
    }
    return sum;
}
