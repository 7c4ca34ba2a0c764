// Attaching an indexer's file to a dense checkpoint: right files, and each kind of wrong one.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/indexer.h"
#include "model/weights.h"
#include "tests/common/make_files.h"

#define MODEL "tests/fixtures/tiny-llama"
enum { MAX_HEADER = 1 << 16 };

struct indexer_file {
    const char *metadata; // of __metadata__, without braces
    int n_head, head_dim, n_layer;
    const char *without; // a tensor of the last layer that is left out, or NULL
};

static const char *const good_metadata =
    "\"index_n_heads\":\"2\",\"index_head_dim\":\"16\",\"index_rope_dim\":\"8\","
    "\"index_rope_theta\":\"10000\",\"k_norm_eps\":\"1e-6\",\"index_rope_interleave\":\"false\"";

static size_t add_tensor(char *header, size_t at, const char *part, int layer, int n_row, int n_col,
                         size_t *offset) {
    size_t bytes = (size_t)n_row * (size_t)(n_col ? n_col : 1) * 2;
    char shape[32];
    snprintf(shape, sizeof shape, n_col ? "[%d,%d]" : "[%d]", n_row, n_col);
    int n = snprintf(header + at, MAX_HEADER - at,
                     ",\"model.layers.%d.self_attn.indexer.%s\":{\"dtype\":\"F16\",\"shape\":%s,"
                     "\"data_offsets\":[%zu,%zu]}",
                     layer, part, shape, *offset, *offset + bytes);
    *offset += bytes;
    return at + (size_t)n;
}

static struct buffer make_indexer(const struct indexer_file *f, int hidden) {
    char *header = malloc(MAX_HEADER);
    assert_non_null(header);
    size_t at = (size_t)snprintf(header, MAX_HEADER, "{\"__metadata__\":{%s}", f->metadata);
    size_t offset = 0;
    for (int layer = 0; layer < f->n_layer; layer++) {
        const struct {
            const char *part;
            int n_row, n_col;
        } parts[] = {{"wq.weight", f->n_head * f->head_dim, hidden},
                     {"wk.weight", f->head_dim, hidden},
                     {"k_norm.weight", f->head_dim, 0},
                     {"k_norm.bias", f->head_dim, 0},
                     {"weights_proj.weight", f->n_head, hidden}};
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            bool last = layer == f->n_layer - 1;
            if (last && f->without && strcmp(f->without, parts[i].part) == 0) continue;
            at = add_tensor(header, at, parts[i].part, layer, parts[i].n_row, parts[i].n_col,
                            &offset);
        }
    }
    int pad = 8 - (int)((at + 1) % 8); // data begin at a multiple of 8
    snprintf(header + at, MAX_HEADER - at, "}%*s", pad, "");
    struct buffer buffer = make_safetensors(header, offset);
    free(header);
    return buffer;
}

static enum status attach(const struct indexer_file *f, struct checkpoint *checkpoint) {
    assert_int_equal(checkpoint_open(MODEL, checkpoint), OK);
    struct indexer_file file = *f;
    if (!file.metadata) file.metadata = good_metadata;
    if (!file.n_layer) file.n_layer = checkpoint->spec.n_layer;
    struct buffer buffer = make_indexer(&file, checkpoint->spec.n_hidden);
    char *folder = folder_make();
    char *path = folder_write(folder, "indexer.safetensors", buffer.data, buffer.n);
    enum status status = indexer_attach(path, true, checkpoint);
    free(path);
    folder_remove(folder);
    buffer_close(&buffer);
    return status;
}

static void test_attaches(void **state) {
    (void)state;
    struct checkpoint checkpoint;
    struct indexer_file file = {.n_head = 2, .head_dim = 16};
    assert_int_equal(attach(&file, &checkpoint), OK);
    const struct model_spec *spec = &checkpoint.spec;
    assert_int_equal(model_spec_top_k(spec), INDEXER_TOP_K);
    assert_int_equal(spec->n_rope, 2);
    assert_int_equal(spec->ropes[1].dim, 8);
    for (int i = 0; i < spec->n_layer; i++) {
        assert_int_equal(spec->layers[i].index.layout, INDEX_FULL);
        assert_int_equal(spec->layers[i].index.n_head, 2);
        assert_int_equal(spec->layers[i].index.rope, 1);
        assert_false(spec->layers[i].index.from_latent);
    }
    // The tensors are the checkpoint's now: they load although the file is gone.
    struct backend backend;
    struct weights weights;
    assert_int_equal(
        backend_open(&(struct backend_options){.kind = BACKEND_REFERENCE, .n_thread = 1}, &backend),
        OK);
    assert_int_equal(
        weights_open(&checkpoint, &backend, (struct weights_owner){0, 1, false}, &weights), OK);
    assert_int_equal(weights.layers[spec->n_layer - 1].index_query.n_row, 32);
    weights_close(&weights);
    backend_close(&backend);
    checkpoint_close(&checkpoint);
}

static void refuse(struct indexer_file file, const char *expected) {
    struct checkpoint checkpoint;
    assert_int_equal(attach(&file, &checkpoint), ERR_INPUT);
    if (!strstr(status_message(), expected)) fail_msg("%s", status_message());
    checkpoint_close(&checkpoint);
}

static void test_refusals(void **state) {
    (void)state;
    char other[512];
    snprintf(other, sizeof other, "%s,\"base_sha256\":\"0123456789abcdef\"", good_metadata);
    refuse((struct indexer_file){.metadata = other, .n_head = 2, .head_dim = 16},
           "was trained for another model");
    refuse((struct indexer_file){.metadata = "\"a\":\"b\"", .n_head = 2, .head_dim = 16},
           "this is no indexer");
    refuse((struct indexer_file){.n_head = 2, .head_dim = 16, .n_layer = 1}, "lacks model.layers.");
    refuse((struct indexer_file){.n_head = 2, .head_dim = 16, .without = "k_norm.bias"},
           "k_norm.bias");
    refuse((struct indexer_file){.n_head = 3, .head_dim = 16}, "the configuration needs");
}

static void test_network_with_indexer(void **state) {
    (void)state;
    struct checkpoint checkpoint;
    assert_int_equal(checkpoint_open("tests/fixtures/deepseek_v32_tiny", &checkpoint), OK);
    assert_int_equal(indexer_attach("none", true, &checkpoint), ERR_CONFIG);
    checkpoint_close(&checkpoint);
    assert_int_equal(checkpoint_open(MODEL, &checkpoint), OK);
    assert_int_equal(indexer_attach("/nowhere/indexer", true, &checkpoint), ERR_NO_INPUT);
    checkpoint_close(&checkpoint);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attaches),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_network_with_indexer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
