#include "model/weights.h"

#include <stdlib.h>

#include "model/tensor_names.h"

// Where a layer's tensor goes in struct layer_weights: a float * for vectors, else a struct weight.
#define FIELD(role, field) [TENSOR_##role] = offsetof(struct layer_weights, field)
static const size_t field_offset[N_TENSOR_ROLE] = {
    FIELD(ATTENTION_NORM, attention_norm),
    FIELD(QUERY, query),
    FIELD(KEY, key),
    FIELD(VALUE, value),
    FIELD(OUTPUT, output),
    FIELD(QUERY_BIAS, query_bias),
    FIELD(KEY_BIAS, key_bias),
    FIELD(VALUE_BIAS, value_bias),
    FIELD(OUTPUT_BIAS, output_bias),
    FIELD(QUERY_NORM, query_norm),
    FIELD(KEY_NORM, key_norm),
    FIELD(FEED_FORWARD_NORM, feed_forward_norm),
    FIELD(GATE, gate),
    FIELD(UP, up),
    FIELD(DOWN, down),
};

static enum status load_vector(struct backend *backend, const struct tensor *tensor, float **out) {
    int64_t n = tensor->shape[0];
    float *host = malloc((size_t)n * sizeof *host);
    if (!host) FAIL(ERR_MEMORY, "no memory for %s", tensor->name);
    dtype_to_float(tensor->dtype, tensor->data, n, host);
    void *data = NULL;
    int64_t bytes = n * (int64_t)sizeof(float);
    enum status status = backend->ops->alloc(backend, bytes, &data);
    *out = data;
    if (status == OK) status = backend->ops->upload(backend, data, host, bytes);
    if (status == OK) status = backend->ops->sync(backend);
    free(host);
    return status;
}

static struct weight host_weight(const struct tensor *tensor) {
    return (struct weight){
        .data = tensor->data,
        .dtype = tensor->dtype,
        .n_row = tensor->shape[0],
        .n_col = tensor->shape[1],
        .row_bytes = dtype_bytes(tensor->dtype, tensor->shape[1]),
    };
}

static enum status load_matrix(const struct checkpoint *checkpoint, struct backend *backend,
                               enum tensor_role role, int layer, int64_t n_row, int64_t n_col,
                               struct weight *out) {
    const struct tensor *tensor = NULL;
    TRY(checkpoint_require(checkpoint, role, layer, n_row, n_col, &tensor));
    struct weight host = host_weight(tensor);
    return backend->ops->load_weight(backend, &host, out);
}

static enum status load_layer(const struct checkpoint *checkpoint, struct backend *backend,
                              int layer, struct layer_weights *out) {
    struct tensor_need needs[LAYER_TENSORS];
    int n = tensor_layer_needs(&checkpoint->spec, layer, needs);
    for (int i = 0; i < n; i++) {
        const struct tensor_need *need = &needs[i];
        void *field = (char *)out + field_offset[need->role];
        if (need->n_col) {
            TRY(load_matrix(checkpoint, backend, need->role, layer, need->n_row, need->n_col,
                            field));
        } else {
            const struct tensor *tensor = NULL;
            TRY(checkpoint_require(checkpoint, need->role, layer, need->n_row, 0, &tensor));
            TRY(load_vector(backend, tensor, field));
        }
    }
    return OK;
}

static enum status load_all(const struct checkpoint *checkpoint, struct weights *w) {
    const struct model_spec *spec = &checkpoint->spec;
    TRY(load_matrix(checkpoint, w->backend, TENSOR_EMBEDDING, 0, spec->n_vocab, spec->n_hidden,
                    &w->embedding));
    w->tied = spec->tied_head;
    if (w->tied) {
        w->head = w->embedding;
    } else {
        TRY(load_matrix(checkpoint, w->backend, TENSOR_HEAD, 0, spec->n_vocab, spec->n_hidden,
                        &w->head));
    }
    const struct tensor *norm = NULL;
    TRY(checkpoint_require(checkpoint, TENSOR_FINAL_NORM, 0, spec->n_hidden, 0, &norm));
    TRY(load_vector(w->backend, norm, &w->final_norm));
    for (int i = 0; i < w->n_layer; i++) TRY(load_layer(checkpoint, w->backend, i, &w->layers[i]));
    return OK;
}

enum status weights_open(const struct checkpoint *checkpoint, struct backend *backend,
                         struct weights *out) {
    int n_layer = checkpoint->spec.n_layer;
    *out = (struct weights){.backend = backend, .n_layer = n_layer};
    out->layers = calloc((size_t)n_layer, sizeof *out->layers);
    if (!out->layers) FAIL(ERR_MEMORY, "no memory for the weights of %d layers", n_layer);
    enum status status = load_all(checkpoint, out);
    if (status != OK) weights_close(out);
    return status;
}

void weights_close(struct weights *w) {
    if (!w->backend) return;
    const struct kernel_ops *ops = w->backend->ops;
    for (int i = 0; w->layers && i < w->n_layer; i++) {
        struct layer_weights *l = &w->layers[i];
        float *vectors[] = {l->attention_norm, l->feed_forward_norm, l->query_bias, l->key_bias,
                            l->value_bias,     l->output_bias,       l->query_norm, l->key_norm};
        for (size_t v = 0; v < sizeof vectors / sizeof *vectors; v++) {
            if (vectors[v]) ops->free(w->backend, vectors[v]);
        }
        struct weight *matrices[] = {&l->query, &l->key, &l->value, &l->output,
                                     &l->gate,  &l->up,  &l->down};
        for (size_t m = 0; m < sizeof matrices / sizeof *matrices; m++) {
            if (matrices[m]->data) ops->unload_weight(w->backend, matrices[m]);
        }
    }
    if (w->embedding.data) ops->unload_weight(w->backend, &w->embedding);
    if (w->head.data && !w->tied) ops->unload_weight(w->backend, &w->head);
    if (w->final_norm) ops->free(w->backend, w->final_norm);
    free(w->layers);
    *w = (struct weights){0};
}

static void measure_tensor(struct weights_extent *extent, const struct tensor *tensor) {
    extent->bytes += tensor->bytes;
    if (tensor->n_dim < 2) return;
    int64_t elements = tensor->shape[0] * tensor->shape[1];
    if (elements > extent->largest_elements) extent->largest_elements = elements;
    if (tensor->shape[1] > extent->widest_row) extent->widest_row = tensor->shape[1];
}

enum status weights_measure(const struct checkpoint *checkpoint, struct weights_extent *out) {
    const struct model_spec *spec = &checkpoint->spec;
    const struct tensor *tensor = NULL;
    *out = (struct weights_extent){0};
    TRY(checkpoint_require(checkpoint, TENSOR_EMBEDDING, 0, spec->n_vocab, spec->n_hidden,
                           &tensor));
    out->bytes += tensor->bytes; // the vocabulary's matrices never pass through a product whole
    if (!spec->tied_head) {
        TRY(checkpoint_require(checkpoint, TENSOR_HEAD, 0, spec->n_vocab, spec->n_hidden, &tensor));
        out->bytes += tensor->bytes;
    }
    for (int layer = 0; layer < spec->n_layer; layer++) {
        struct tensor_need needs[LAYER_TENSORS];
        int n = tensor_layer_needs(spec, layer, needs);
        for (int i = 0; i < n; i++) {
            TRY(checkpoint_require(checkpoint, needs[i].role, layer, needs[i].n_row, needs[i].n_col,
                                   &tensor));
            measure_tensor(out, tensor);
        }
    }
    return OK;
}
