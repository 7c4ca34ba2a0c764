// The shapes of a checkpoint whose tensors are not at hand: config.json says what the network
// needs, the tensor index which of it there is. Enough for the memory plan of a model that fits no
// disk here.
#include <stdio.h>
#include <string.h>

#include "model/checkpoint_files.h"
#include "model/json_util.h"
#include "model/tensor_names.h"

static enum status add_names(const json_t *map, const char *path, struct tensor_list *out) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)map, name, value) {
        struct tensor tensor = {.name = strdup(name), .dtype = N_DTYPE};
        if (!tensor.name) FAIL(ERR_MEMORY, "no memory for the tensors of %s", path);
        TRY(tensor_list_add(out, tensor));
    }
    if (out->n == 0) FAIL(ERR_INPUT, "%s names no tensors", path);
    return OK;
}

enum status checkpoint_read_names(const char *path, struct tensor_list *tensors) {
    struct mapping index = {0};
    json_t *root = NULL;
    const json_t *map = NULL;
    enum status status = OK;
    TRY(mapping_open(path, &index));
    TRY_OR(done, json_read_text(index.data, index.bytes, path, &root));
    TRY_OR(done, json_read_object((struct json_object){root, path}, "weight_map", &map));
    status = add_names(map, path, tensors);
done:
    json_decref(root);
    mapping_close(&index);
    return status;
}

static struct tensor *find(struct checkpoint *checkpoint, const char *name) {
    return (struct tensor *)checkpoint_find(checkpoint, name);
}

static void set_shape(struct tensor *tensor, enum dtype dtype, int64_t n_row, int64_t n_col) {
    tensor->dtype = dtype;
    tensor->n_dim = n_col ? 2 : 1;
    tensor->shape[0] = n_row;
    tensor->shape[1] = n_col ? n_col : 1;
    tensor->bytes = dtype_bytes(dtype, n_row * tensor->shape[1]);
}

// What the index does not name stays missing, for the check that follows. A matrix with scales is
// fp8, anything else bf16 as such checkpoints are published.
static void fill_tensor(struct checkpoint *checkpoint, const char *name, int64_t n_row,
                        int64_t n_col) {
    char scale_name[TENSOR_NAME_BYTES + 16];
    struct tensor *tensor = find(checkpoint, name);
    if (!tensor) return;
    snprintf(scale_name, sizeof scale_name, "%s_scale_inv", name);
    struct tensor *scale = n_col ? find(checkpoint, scale_name) : NULL;
    set_shape(tensor, scale ? DTYPE_F8_E4M3 : DTYPE_BF16, n_row, n_col);
    if (scale)
        set_shape(scale, DTYPE_F32, (n_row + WEIGHT_SCALE_BLOCK - 1) / WEIGHT_SCALE_BLOCK,
                  (n_col + WEIGHT_SCALE_BLOCK - 1) / WEIGHT_SCALE_BLOCK);
}

static void fill_needs(struct checkpoint *checkpoint, int layer, const struct tensor_need *needs,
                       int n) {
    char name[TENSOR_NAME_BYTES];
    for (int i = 0; i < n; i++) {
        struct tensor_rows rows =
            tensor_stored_rows(&checkpoint->spec, checkpoint->naming.scheme, needs[i].role, layer);
        fill_tensor(checkpoint, tensor_name(checkpoint->naming, needs[i].role, layer, name),
                    rows.n_stored ? rows.n_stored : needs[i].n_row, needs[i].n_col);
    }
}

static void fill_layer(struct checkpoint *checkpoint, int layer) {
    const struct layer_spec *l = &checkpoint->spec.layers[layer];
    struct tensor_need needs[LAYER_TENSORS];
    char name[TENSOR_NAME_BYTES];
    fill_needs(checkpoint, layer, needs, tensor_layer_needs(&checkpoint->spec, layer, needs));
    int64_t hidden = checkpoint->spec.n_hidden, width = l->experts.n_feed_forward;
    for (int e = 0; l->feed_forward == FEED_FORWARD_EXPERTS && e < l->experts.n_expert; e++)
        for (int m = 0; m < N_EXPERT_MATRIX; m++) {
            bool down = m == EXPERT_DOWN;
            tensor_expert_name((enum expert_matrix)m, layer, e, name);
            fill_tensor(checkpoint, name, down ? hidden : width, down ? width : hidden);
        }
}

void checkpoint_fill_shapes(struct checkpoint *checkpoint) {
    const struct model_spec *spec = &checkpoint->spec;
    struct tensor_need needs[LAYER_TENSORS];
    fill_needs(checkpoint, 0, needs, tensor_outer_needs(spec, needs));
    for (int i = 0; i < spec->n_layer; i++) fill_layer(checkpoint, i);
}
