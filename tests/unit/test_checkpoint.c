// Whole checkpoints: folders, shards, GGUF files, tensors by role, digests and descriptions.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/checkpoint.h"
#include "model/inspect.h"
#include "tests/common/make_files.h"

// A network of one layer: width 16, one head of 16, feed-forward 8, four tokens, tied head.
static const char config[] =
    "{\"model_type\": \"llama\", \"hidden_size\": 16, \"num_hidden_layers\": 1,"
    "\"num_attention_heads\": 1, \"intermediate_size\": 8, \"vocab_size\": 4,"
    "\"max_position_embeddings\": 64, \"eos_token_id\": 3}";

struct entry {
    const char *name;
    int n_row, n_col; // n_col 0: a vector
};
static const struct entry folder_entries[] = {
    {"model.embed_tokens.weight", 4, 16},
    {"model.norm.weight", 16, 0},
    {"model.layers.0.input_layernorm.weight", 16, 0},
    {"model.layers.0.self_attn.q_proj.weight", 16, 16},
    {"model.layers.0.self_attn.k_proj.weight", 16, 16},
    {"model.layers.0.self_attn.v_proj.weight", 16, 16},
    {"model.layers.0.self_attn.o_proj.weight", 16, 16},
    {"model.layers.0.post_attention_layernorm.weight", 16, 0},
    {"model.layers.0.mlp.gate_proj.weight", 8, 16},
    {"model.layers.0.mlp.up_proj.weight", 8, 16},
    {"model.layers.0.mlp.down_proj.weight", 16, 8},
};
static const struct entry gguf_entries[] = {
    {"token_embd.weight", 4, 16},         {"output_norm.weight", 16, 0},
    {"blk.0.attn_norm.weight", 16, 0},    {"blk.0.attn_q.weight", 16, 16},
    {"blk.0.attn_k.weight", 16, 16},      {"blk.0.attn_v.weight", 16, 16},
    {"blk.0.attn_output.weight", 16, 16}, {"blk.0.ffn_norm.weight", 16, 0},
    {"blk.0.ffn_gate.weight", 8, 16},     {"blk.0.ffn_up.weight", 8, 16},
    {"blk.0.ffn_down.weight", 16, 8},
};
enum { N_ENTRY = sizeof folder_entries / sizeof folder_entries[0] };

// BF16 zeros; `extra` is one more entry of the header, "" for none.
static struct buffer entries_file(const struct entry *entries, int n, const char *extra) {
    struct buffer header = {0};
    char line[256];
    int at = 0;
    buffer_add(&header, "{", 1);
    for (int i = 0; i < n; ++i) {
        char shape[32];
        int bytes = 2 * entries[i].n_row * (entries[i].n_col ? entries[i].n_col : 1);
        if (entries[i].n_col)
            snprintf(shape, sizeof shape, "[%d, %d]", entries[i].n_row, entries[i].n_col);
        else
            snprintf(shape, sizeof shape, "[%d]", entries[i].n_row);
        int length = snprintf(line, sizeof line,
                              "%s\"%s\": {\"dtype\": \"BF16\", \"shape\": %s, "
                              "\"data_offsets\": [%d, %d]}",
                              i ? ", " : "", entries[i].name, shape, at, at + bytes);
        buffer_add(&header, line, (size_t)length);
        at += bytes;
    }
    buffer_add(&header, extra, strlen(extra));
    buffer_add(&header, "}", 1);
    while (header.n % 8) buffer_add(&header, " ", 1);
    buffer_add(&header, "", 1);
    struct buffer file = make_safetensors((const char *)header.data, (size_t)at);
    buffer_close(&header);
    return file;
}

static void write_text(const char *folder, const char *name, const char *text) {
    free(folder_write(folder, name, text, strlen(text)));
}

static void write_buffer(const char *folder, const char *name, struct buffer file) {
    free(folder_write(folder, name, file.data, file.n));
    buffer_close(&file);
}

static char *good_folder(void) {
    char *folder = folder_make();
    write_text(folder, "config.json", config);
    write_buffer(folder, "model.safetensors", entries_file(folder_entries, N_ENTRY, ""));
    return folder;
}

static void expect_refusal(const char *path, enum status expected, const char *fragment) {
    struct checkpoint checkpoint;
    enum status status = checkpoint_open(path, &checkpoint);
    if (status != expected || !strstr(status_message(), fragment))
        fail_msg("status %d, message \"%s\", expected \"%s\"", status, status_message(), fragment);
    assert_null(checkpoint.tensors); // nothing is left to close
    assert_null(checkpoint.path);
}

static struct checkpoint expect_success(const char *path) {
    struct checkpoint checkpoint;
    if (checkpoint_open(path, &checkpoint) != OK) fail_msg("%s", status_message());
    return checkpoint;
}

static void test_folder(void **state) {
    (void)state;
    char *folder = good_folder();
    struct tensor tensor, head;
    write_text(folder, "generation_config.json", "{\"eos_token_id\": [1, 3]}");
    struct checkpoint checkpoint = expect_success(folder);
    assert_null(checkpoint.gguf);
    assert_string_equal(checkpoint.folder, folder);
    assert_int_equal(checkpoint.n_tensor, N_ENTRY);
    assert_true(checkpoint.spec.tied_head && checkpoint.spec.n_stop == 2);
    assert_int_equal(strlen(checkpoint.digest), 32);
    assert_int_equal(checkpoint_require(&checkpoint, TENSOR_DOWN, 0, 16, 8, &tensor), OK);
    assert_string_equal(tensor.name, "model.layers.0.mlp.down_proj.weight");
    assert_int_equal(tensor.dtype, DTYPE_BF16);
    assert_int_equal(checkpoint_require(&checkpoint, TENSOR_HEAD, 0, 4, 16, &head), OK);
    assert_string_equal(head.name, "model.embed_tokens.weight"); // tied
    assert_int_equal(checkpoint_require(&checkpoint, TENSOR_DOWN, 0, 8, 16, &tensor), ERR_INPUT);
    assert_non_null(strstr(status_message(), "is [16, 8]; the configuration needs [8, 16]"));
    assert_int_equal(checkpoint_require(&checkpoint, TENSOR_FINAL_NORM, 0, 8, 0, &tensor),
                     ERR_INPUT);
    assert_non_null(strstr(status_message(), "needs [8]"));
    assert_int_equal(checkpoint_require(&checkpoint, TENSOR_UP, 1, 8, 16, &tensor), ERR_INPUT);
    assert_non_null(strstr(status_message(), "layers.1.mlp.up_proj.weight is missing"));
    assert_null(checkpoint_find(&checkpoint, "nothing"));
    checkpoint_close(&checkpoint);
    checkpoint_close(&checkpoint); // accepts what it cleared
    folder_remove(folder);
}

// A head of its own, tensors of other formats that nobody needs.
static void test_folder_extras(void **state) {
    (void)state;
    char *folder = good_folder();
    struct entry entries[N_ENTRY + 1];
    memcpy(entries, folder_entries, sizeof folder_entries);
    entries[N_ENTRY] = (struct entry){"lm_head.weight", 4, 16};
    write_buffer(folder, "model.safetensors",
                 entries_file(entries, N_ENTRY + 1,
                              ", \"ids\": {\"dtype\": \"I64\", \"shape\": [0], "
                              "\"data_offsets\": [0, 0]}"));
    struct checkpoint checkpoint = expect_success(folder);
    assert_false(checkpoint.spec.tied_head);
    assert_int_equal(checkpoint_find(&checkpoint, "ids")->dtype, N_DTYPE);
    checkpoint_close(&checkpoint);
    folder_remove(folder);
}

static void test_folder_refusals(void **state) {
    (void)state;
    expect_refusal("/nowhere/at/all", ERR_NO_INPUT, "No such file");
    char *folder = folder_make();
    expect_refusal(folder, ERR_NO_INPUT, "config.json: No such file");
    write_text(folder, "config.json", "");
    expect_refusal(folder, ERR_INPUT, "config.json: line 1");
    write_text(folder, "config.json", config);
    expect_refusal(folder, ERR_NO_INPUT, "neither model.safetensors nor");
    write_text(folder, "model.safetensors", "");
    expect_refusal(folder, ERR_INPUT, "has 0 bytes");
    for (int i = 0; i < N_ENTRY; ++i) { // each tensor is needed
        struct entry entries[N_ENTRY];
        memcpy(entries, folder_entries, sizeof entries);
        entries[i].name = "other";
        write_buffer(folder, "model.safetensors", entries_file(entries, N_ENTRY, ""));
        expect_refusal(folder, ERR_INPUT, folder_entries[i].name);
        entries[i] = folder_entries[i];
        entries[i].n_row += 1;
        write_buffer(folder, "model.safetensors", entries_file(entries, N_ENTRY, ""));
        expect_refusal(folder, ERR_INPUT, "the configuration needs");
    }
    write_buffer(folder, "model.safetensors", entries_file(folder_entries, N_ENTRY, ""));
    write_text(folder, "generation_config.json", "[1]");
    expect_refusal(folder, ERR_INPUT, "generation_config.json");
    char optional[256];
    snprintf(optional, sizeof optional, "%s/generation_config.json", folder);
    unlink(optional);
    assert_int_equal(symlink("/nowhere/at/all", optional), 0); // there, but not to be read
    expect_refusal(folder, ERR_NO_INPUT, "generation_config.json: No such file");
    unlink(optional);
    assert_int_equal(mkdir(optional, 0700), 0);
    expect_refusal(folder, ERR_NO_INPUT, "generation_config.json is a folder");
    rmdir(optional);
    snprintf(optional, sizeof optional, "%s/model.safetensors", folder);
    unlink(optional);
    assert_int_equal(symlink("../blobs/1", optional), 0);
    expect_refusal(folder, ERR_NO_INPUT, "model.safetensors: No such file");
    folder_remove(folder);
}

// A needed tensor in a format that is not computed with, then one that begins at an odd byte.
static void test_formats_refused(void **state) {
    (void)state;
    char *folder = good_folder();
    struct buffer file = entries_file(folder_entries, N_ENTRY, "");
    char *format = memmem(file.data, file.n, "BF16", 4);
    memcpy(format, "I16\"", 4); // as long as before
    format[4] = ' ';
    write_buffer(folder, "model.safetensors", file);
    expect_refusal(folder, ERR_INPUT,
                   "tensor model.embed_tokens.weight has format I16, which is not supported");
    file = entries_file(folder_entries, N_ENTRY, " ");
    struct buffer odd = {0};
    uint64_t header_bytes;
    memcpy(&header_bytes, file.data, sizeof header_bytes);
    buffer_add_u64(&odd, header_bytes + 1);
    buffer_add(&odd, file.data + 8, header_bytes);
    buffer_add(&odd, " ", 1);
    buffer_add(&odd, file.data + 8 + header_bytes, file.n - 8 - header_bytes);
    buffer_close(&file);
    write_buffer(folder, "model.safetensors", odd);
    expect_refusal(folder, ERR_INPUT, "is not aligned");
    folder_remove(folder);
}

static void write_index(const char *folder, const char *map) {
    struct buffer text = {0};
    buffer_add(&text, "{\"weight_map\": ", 15);
    buffer_add(&text, map, strlen(map));
    buffer_add(&text, "}", 1);
    write_buffer(folder, "model.safetensors.index.json", text);
}

static void test_shards(void **state) {
    (void)state;
    char *folder = folder_make();
    write_text(folder, "config.json", config);
    write_buffer(folder, "s1.safetensors", entries_file(folder_entries, 5, ""));
    write_buffer(folder, "s2.safetensors", entries_file(folder_entries + 5, N_ENTRY - 5, ""));
    write_index(folder, "{\"model.norm.weight\": \"s1.safetensors\","
                        "\"model.layers.0.mlp.up_proj.weight\": \"s2.safetensors\","
                        "\"model.embed_tokens.weight\": \"s1.safetensors\"}");
    struct checkpoint checkpoint = expect_success(folder);
    assert_int_equal(checkpoint.n_tensor, N_ENTRY);
    assert_int_equal(checkpoint.n_mapping, 3); // the configuration and two shards
    checkpoint_close(&checkpoint);

    write_index(folder, "{}");
    expect_refusal(folder, ERR_INPUT, "names no tensors");
    write_index(folder, "{\"a\": \"../s1.safetensors\"}");
    expect_refusal(folder, ERR_INPUT, "tensor a has no file name");
    write_index(folder, "{\"a\": 3}");
    expect_refusal(folder, ERR_INPUT, "tensor a has no file name");
    write_index(folder, "{\"a\": \"s3.safetensors\"}");
    expect_refusal(folder, ERR_NO_INPUT, "s3.safetensors: No such file");
    write_index(folder, "{\"a\": \"s1.safetensors\"}");
    expect_refusal(folder, ERR_INPUT, "tensor a is not in s1.safetensors");
    write_index(folder, "[]");
    expect_refusal(folder, ERR_INPUT, "weight_map is not an object");
    write_buffer(folder, "s2.safetensors", entries_file(folder_entries, 5, ""));
    write_index(folder, "{\"a\": \"s1.safetensors\", \"b\": \"s2.safetensors\"}");
    expect_refusal(folder, ERR_INPUT, "occurs twice");
    folder_remove(folder);
}

static struct buffer gguf_file(float first_norm) {
    static const struct {
        const char *key;
        uint32_t value;
    } keys[] = {{"llama.block_count", 1},          {"llama.embedding_length", 16},
                {"llama.attention.head_count", 1}, {"llama.feed_forward_length", 8},
                {"llama.context_length", 64},      {"tokenizer.ggml.eos_token_id", 3}};
    struct gguf_maker maker = {0};
    float zeros[16 * 16] = {first_norm};
    gguf_maker_string(&maker, "general.architecture", "llama");
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; ++i)
        gguf_maker_u32(&maker, keys[i].key, keys[i].value);
    gguf_maker_f32(&maker, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    for (int i = 0; i < N_ENTRY; ++i) {
        uint64_t n_row = (uint64_t)gguf_entries[i].n_row, n_col = (uint64_t)gguf_entries[i].n_col;
        gguf_maker_tensor(&maker, gguf_entries[i].name, n_col ? n_col : n_row, n_col ? n_row : 0, 0,
                          zeros, 4 * n_row * (n_col ? n_col : 1));
    }
    return gguf_maker_finish(&maker);
}

static void test_gguf(void **state) {
    (void)state;
    char *folder = folder_make(), first[33];
    struct buffer file = gguf_file(0);
    char *path = folder_write(folder, "m.gguf", file.data, file.n);
    struct checkpoint checkpoint = expect_success(path);
    struct tensor tensor;
    assert_non_null(checkpoint.gguf);
    assert_null(checkpoint.folder);
    assert_true(checkpoint.spec.tied_head && checkpoint.spec.ropes[0].interleaved);
    assert_int_equal(checkpoint.spec.n_vocab, 4);
    assert_int_equal(checkpoint_require(&checkpoint, TENSOR_DOWN, 0, 16, 8, &tensor), OK);
    assert_string_equal(tensor.name, "blk.0.ffn_down.weight");
    assert_true(tensor.n_dim == 2 && tensor.shape[0] == 16 && tensor.shape[1] == 8);
    assert_int_equal(tensor.bytes, 16 * 8 * 4);
    memcpy(first, checkpoint.digest, sizeof first);
    checkpoint_close(&checkpoint);
    // The digest is of the contents: the same elsewhere, another when a weight differs.
    free(folder_write(folder, "n.gguf", file.data, file.n));
    buffer_close(&file);
    char *other = NULL;
    assert_true(asprintf(&other, "%s/n.gguf", folder) > 0);
    checkpoint = expect_success(other);
    assert_string_equal(checkpoint.digest, first);
    checkpoint_close(&checkpoint);
    write_buffer(folder, "n.gguf", gguf_file(1));
    checkpoint = expect_success(other);
    assert_string_not_equal(checkpoint.digest, first);
    checkpoint_close(&checkpoint);
    free(other);
    free(path);
    struct gguf_maker part = {0};
    gguf_maker_u32(&part, "split.count", 3);
    write_buffer(folder, "part.gguf", gguf_maker_finish(&part));
    assert_true(asprintf(&path, "%s/part.gguf", folder) > 0);
    expect_refusal(path, ERR_INPUT, "one of 3 files of a split model");
    free(path);
    path = folder_write(folder, "text.txt", "not a model", 11);
    expect_refusal(path, ERR_INPUT, "is given by its folder");
    free(path);
    path = folder_write(folder, "empty.gguf", "", 0);
    expect_refusal(path, ERR_INPUT, "is empty");
    free(path);
    folder_remove(folder);
}

static char *describe(const struct checkpoint *checkpoint, bool all) {
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    assert_int_equal(checkpoint_describe(checkpoint, all, out), OK);
    fclose(out);
    return text;
}

static void test_describe(void **state) {
    (void)state;
    char *folder = good_folder();
    struct checkpoint checkpoint = expect_success(folder);
    char *text = describe(&checkpoint, false);
    assert_non_null(strstr(text, "safetensors, 1 file\n"));
    assert_non_null(strstr(text, "1 heads of 16"));
    assert_non_null(strstr(text, "BF16"));
    assert_non_null(strstr(text, checkpoint.digest));
    assert_null(strstr(text, "q_proj"));
    assert_null(strstr(text, "vectors"));
    free(text);
    text = describe(&checkpoint, true);
    assert_non_null(strstr(text, "model.layers.0.self_attn.q_proj.weight"));
    assert_non_null(strstr(text, "[16, 16]"));
    free(text);
    checkpoint_close(&checkpoint);
    folder_remove(folder);
}

// What sentence-transformers keeps beside a network; a damaged one spoils the vectors alone.
static void test_describe_vectors(void **state) {
    (void)state;
    char *folder = good_folder(), *part = malloc(256);
    snprintf(part, 256, "%s/1_Pooling", folder);
    assert_int_equal(mkdir(part, 0700), 0);
    write_text(folder, "modules.json",
               "[{\"type\": \"sentence_transformers.models.Transformer\", \"path\": \"\"},"
               "{\"type\": \"sentence_transformers.models.Pooling\", \"path\": \"1_Pooling\"},"
               "{\"type\": \"sentence_transformers.models.Normalize\", \"path\": \"2\"}]");
    write_text(part, "config.json", "{\"pooling_mode_lasttoken\": true}");
    write_text(folder, "config_sentence_transformers.json",
               "{\"prompts\": {\"query\": \"Find:\\n\", \"document\": \"\"},"
               "\"default_prompt_name\": \"document\"}");
    struct checkpoint checkpoint = expect_success(folder);
    char *text = describe(&checkpoint, false);
    assert_non_null(strstr(text, "\nvectors       last of states, length 1: 16 elements\n"));
    assert_non_null(strstr(text, "\nprompt        query: \"Find:\\n\"\n"));
    assert_non_null(strstr(text, "\nprompt        document (default): \"\"\n"));
    free(text);
    write_text(part, "config.json", "{\"pooling_mode_max_tokens\": true}");
    text = describe(&checkpoint, false);
    assert_non_null(strstr(text, "\nvectors       refused: "));
    assert_non_null(strstr(text, "pooling by max is not supported"));
    free(text);
    checkpoint_close(&checkpoint);
    folder_remove(part);
    folder_remove(folder);
}

// The folders that the parity tests compute with, in both dialects of config.json.
static void test_fixtures(void **state) {
    (void)state;
    static const struct {
        const char *path, *architecture;
        int n_head;
        enum rope_method rope;
        double base;
    } cases[] = {
        {"tests/fixtures/tiny-llama", "llama", 4, ROPE_DEFAULT, 1e4},
        {"tests/fixtures/tiny-llama-old", "llama", 4, ROPE_DEFAULT, 1e4},
        {"tests/fixtures/tiny-llama3", "llama", 6, ROPE_LLAMA3, 5e5},
        {"tests/fixtures/tiny-mistral", "llama", 4, ROPE_DEFAULT, 1e4},
        {"tests/fixtures/tiny-qwen2", "qwen2", 4, ROPE_DEFAULT, 1e6},
        {"tests/fixtures/tiny-qwen3", "qwen3", 4, ROPE_DEFAULT, 1e6},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        struct checkpoint checkpoint = expect_success(cases[i].path);
        assert_string_equal(checkpoint.spec.architecture, cases[i].architecture);
        assert_int_equal(checkpoint.spec.n_layer, 3);
        assert_int_equal(checkpoint.spec.layers[0].n_head, cases[i].n_head);
        assert_int_equal(checkpoint.spec.ropes[0].method, cases[i].rope);
        assert_true(checkpoint.spec.ropes[0].base == cases[i].base);
        assert_false(checkpoint.spec.ropes[0].interleaved);
        checkpoint_close(&checkpoint);
    }
}

static void test_smollm2(void **state) {
    (void)state;
    const char *cache = getenv("HALKA_CACHE"), *home = getenv("HOME");
    char path[4096];
    snprintf(path, sizeof path, "%s%s/SmolLM2-135M-Instruct.Q4_1.gguf",
             cache ? cache : (home ? home : ""), cache ? "" : "/.cache/halka");
    if (access(path, R_OK) != 0) skip();
    struct checkpoint checkpoint = expect_success(path);
    const struct model_spec *spec = &checkpoint.spec;
    struct tensor tensor;
    assert_true(spec->n_layer == 30 && spec->n_hidden == 576 && spec->n_vocab == 49152);
    assert_true(spec->layers[29].n_head == 9 && spec->layers[29].n_kv_head == 3);
    assert_true(spec->tied_head && spec->context == 8192 && spec->ropes[0].base == 1e5);
    assert_true(spec->n_stop == 1 && spec->stop[0] == 2);
    assert_int_equal(checkpoint_require(&checkpoint, TENSOR_HEAD, 0, 49152, 576, &tensor), OK);
    assert_int_equal(tensor.dtype, DTYPE_Q8_0);
    assert_int_equal(checkpoint_require(&checkpoint, TENSOR_KEY, 29, 192, 576, &tensor), OK);
    assert_int_equal(tensor.dtype, DTYPE_Q4_1);
    checkpoint_close(&checkpoint);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_folder),          cmocka_unit_test(test_folder_extras),
        cmocka_unit_test(test_folder_refusals), cmocka_unit_test(test_formats_refused),
        cmocka_unit_test(test_shards),          cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_describe),        cmocka_unit_test(test_describe_vectors),
        cmocka_unit_test(test_fixtures),        cmocka_unit_test(test_smollm2),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}
