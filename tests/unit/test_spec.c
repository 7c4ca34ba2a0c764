// From configurations (config.json and GGUF metadata) to a model_spec: values and refusals.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/spec_draft.h"
#include "tests/common/make_files.h"

static const char base_config[] =
    "{\"model_type\": \"llama\", \"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 64,"
    "\"num_hidden_layers\": 3, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
    "\"intermediate_size\": 96, \"vocab_size\": 100, \"max_position_embeddings\": 2048,"
    "\"rms_norm_eps\": 1e-5, \"rope_theta\": 5e5, \"torch_dtype\": \"bfloat16\"}";

// Builds the spec of the base configuration with the keys of `changes` replaced.
static enum status build_json(const char *changes, struct model_spec *out) {
    struct spec_draft draft;
    json_t *config = json_loads(base_config, 0, NULL), *change = json_loads(changes, 0, NULL);
    assert_non_null(config);
    assert_non_null(change);
    json_object_update(config, change);
    char *text = json_dumps(config, 0);
    *out = (struct model_spec){0};
    spec_draft_init(&draft);
    enum status status = spec_draft_read_json(text, strlen(text), "config.json", &draft);
    if (status == OK) status = spec_build(&draft, "config.json", out);
    free(text);
    json_decref(config);
    json_decref(change);
    return status;
}

static struct model_spec expect_json(const char *changes) {
    struct model_spec spec;
    if (build_json(changes, &spec) != OK) fail_msg("%s: %s", changes, status_message());
    return spec;
}

static void test_llama(void **state) {
    (void)state;
    struct model_spec spec = expect_json("{\"eos_token_id\": [2, 5, 2, -1, 1000]}");
    const struct layer_spec *layer = &spec.layers[2];
    assert_string_equal(spec.architecture, "llama");
    assert_int_equal(spec.n_layer, 3);
    assert_int_equal(spec.n_hidden, 64);
    assert_int_equal(spec.n_vocab, 100);
    assert_int_equal(spec.context, 2048);
    assert_int_equal(model_spec_window(&spec), 0);
    assert_true(spec.norm_eps == 1e-5f && spec.embedding_scale == 1 && !spec.tied_head);
    assert_int_equal(spec.n_stop, 2); // once each, and only ids of the vocabulary
    assert_true(spec.stop[0] == 2 && spec.stop[1] == 5);
    assert_true(layer->n_head == 4 && layer->n_kv_head == 2 && layer->head_dim == 16);
    assert_int_equal(layer->n_feed_forward, 96);
    assert_true(layer->attention_scale == 0.25f && layer->activation == ACTIVATION_SILU);
    assert_false(layer->attention_bias || layer->output_bias || layer->query_key_norm);
    assert_true(spec.ropes[0].method == ROPE_DEFAULT && spec.ropes[0].base == 5e5);
    assert_true(spec.ropes[0].dim == 16 && !spec.ropes[0].interleaved);
    model_spec_close(&spec);
    model_spec_close(&spec); // accepts what it cleared

    spec = expect_json("{\"attention_bias\": true, \"head_dim\": 24, \"num_key_value_heads\": null,"
                       "\"tie_word_embeddings\": true, \"hidden_act\": \"gelu_pytorch_tanh\"}");
    layer = spec.layers;
    assert_true(layer->attention_bias && layer->output_bias && spec.tied_head);
    assert_true(layer->n_kv_head == 4 && layer->head_dim == 24 && spec.ropes[0].dim == 24);
    assert_int_equal(layer->activation, ACTIVATION_GELU_TANH);
    model_spec_close(&spec);
}

static void test_qwen(void **state) {
    (void)state;
    struct model_spec spec = expect_json(
        "{\"model_type\": \"qwen2\", \"architectures\": [\"Qwen2ForCausalLM\"],"
        "\"use_sliding_window\": false, \"sliding_window\": 512, \"max_window_layers\": 1}");
    assert_string_equal(spec.architecture, "qwen2");
    assert_true(spec.layers[0].attention_bias && !spec.layers[0].output_bias);
    assert_true(!spec.layers[0].query_key_norm && model_spec_window(&spec) == 0);
    model_spec_close(&spec);
    spec = expect_json(
        "{\"model_type\": \"qwen3\", \"architectures\": [\"Qwen3ForCausalLM\"],"
        "\"layer_types\": [\"full_attention\", \"full_attention\", \"full_attention\"]}");
    assert_true(!spec.layers[0].attention_bias && spec.layers[0].query_key_norm);
    assert_int_equal(spec.layers[0].head_dim, 128); // the class's default
    model_spec_close(&spec);
}

// Which layers have windows, as words of F and W.
static void test_windows(void **state) {
    (void)state;
#define MODEL(type) "{\"model_type\": \"" type "\", \"architectures\": null, "
#define GEMMA MODEL("gemma3_text") "\"head_dim\": 16, "
    static const struct {
        const char *changes, *layers;
        int64_t window;
    } cases[] = {
        {MODEL("mistral") "\"sliding_window\": 512}", "WWW", 512},
        {MODEL("mistral") "\"sliding_window\": null}", "FFF", 0},
        {"{\"sliding_window\": 512}", "FFF", 0}, // llama knows no windows
        {MODEL("qwen2") "\"use_sliding_window\": true, \"sliding_window\": 256,"
                        "\"max_window_layers\": 2}",
         "FFW", 256},
        {MODEL("qwen2") "\"use_sliding_window\": true, \"max_window_layers\": 0}", "WWW", 4096},
        {MODEL("qwen2") "\"use_sliding_window\": true, \"sliding_window\": 256,"
                        "\"max_window_layers\": 3}",
         "FFF", 0},
        {MODEL("qwen3") "\"sliding_window\": 128, \"layer_types\":"
                        "[\"full_attention\", \"sliding_attention\", \"full_attention\"]}",
         "FWF", 128},
        {GEMMA "\"sliding_window\": 32, \"sliding_window_pattern\": 2}", "WFW", 32},
        {GEMMA "\"num_hidden_layers\": 7}", "WWWWWFW", 4096},
        {MODEL("modernbert") "\"num_hidden_layers\": 5}", "FWWFW", 128},
        {MODEL("modernbert") "\"local_attention\": 20, \"global_attn_every_n_layers\": 2}", "FWF",
         20},
        {MODEL("bert") "\"hidden_act\": \"gelu\"}", "FFF", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        struct model_spec spec = expect_json(cases[i].changes);
        assert_int_equal(model_spec_window(&spec), cases[i].window);
        assert_int_equal(spec.n_layer, strlen(cases[i].layers));
        for (int l = 0; l < spec.n_layer; ++l)
            assert_int_equal(spec.layers[l].window,
                             cases[i].layers[l] == 'W' ? cases[i].window : 0);
        model_spec_close(&spec);
    }
}

// A window for every layer of a causal network; a smaller one of a layer's own stays.
static void test_set_window(void **state) {
    (void)state;
    struct model_spec spec = expect_json(GEMMA "\"sliding_window\": 32}");
    spec.layers[1].window = 64;
    assert_int_equal(model_spec_set_window(&spec, 48, 4), OK);
    assert_true(spec.layers[0].window == 32 && spec.layers[0].sinks == 0);
    assert_true(spec.layers[1].window == 48 && spec.layers[1].sinks == 4);
    assert_int_equal(model_spec_set_window(&spec, 0, 0), ERR_CONFIG);
    spec.layers[2].index = (struct index_spec){.layout = INDEX_FULL, .k = 8};
    assert_int_equal(model_spec_set_window(&spec, 48, 0), ERR_CONFIG);
    assert_non_null(strstr(status_message(), "select their tokens"));
    model_spec_close(&spec);
    spec = expect_json(MODEL("modernbert") "\"norm_eps\": 1e-5}");
    assert_int_equal(model_spec_set_window(&spec, 48, 0), ERR_CONFIG);
    assert_non_null(strstr(status_message(), "modernbert is an encoder"));
    model_spec_close(&spec);
}

static void test_gemma3(void **state) {
    (void)state;
    struct model_spec spec = expect_json(MODEL(
        "gemma3") "\"eos_token_id\": [1, 7], \"text_config\": {\"model_type\": \"gemma3_text\","
                  "\"num_hidden_layers\": 6, \"query_pre_attn_scalar\": 64, \"rope_scaling\":"
                  "{\"rope_type\": \"linear\", \"factor\": 8}, \"hidden_size\": 2560}}");
    const struct layer_spec *layer = &spec.layers[5];
    assert_true(spec.causal && spec.tied_head && spec.n_stop == 2 && spec.context == 131072);
    assert_true(spec.norm_offset == 1 && spec.embedding_scale == sqrtf(2560) && spec.final_norm);
    assert_true(layer->n_head == 8 && layer->n_kv_head == 4 && layer->head_dim == 256);
    assert_true(layer->norm_place == NORM_SANDWICH && layer->norm == NORM_RMS);
    assert_true(layer->query_key_norm && layer->activation == ACTIVATION_GELU_TANH);
    assert_true(layer->attention_scale == 0.125f && layer->rope == 0 && layer->window == 0);
    assert_true(spec.layers[0].rope == 1 && spec.layers[0].window == 4096 && spec.n_rope == 2);
    assert_true(spec.ropes[0].method == ROPE_LINEAR && spec.ropes[0].base == 1e6);
    assert_true(spec.ropes[1].method == ROPE_DEFAULT && spec.ropes[1].base == 1e4);
    model_spec_close(&spec);
    spec = expect_json(
        GEMMA "\"use_bidirectional_attention\": true, \"rope_parameters\": {\"full_attention\":"
              "{\"rope_type\": \"linear\", \"factor\": 2, \"rope_theta\": 5e6},"
              "\"sliding_attention\": {\"rope_type\": \"default\", \"rope_theta\": 300}}}");
    assert_true(!spec.causal && spec.ropes[0].base == 5e6 && spec.ropes[0].factor == 2);
    assert_true(spec.ropes[1].base == 300 && spec.ropes[1].method == ROPE_DEFAULT);
    model_spec_close(&spec);
}

static void test_encoders(void **state) {
    (void)state;
    struct model_spec spec = expect_json(
        MODEL("modernbert") "\"global_rope_theta\": 9e4, \"mlp_bias\": true, \"norm_bias\": true,"
                            "\"norm_eps\": 1e-4, \"hidden_activation\": \"silu\"}");
    assert_true(!spec.causal && spec.embedding_norm && spec.final_norm && spec.norm_eps == 1e-4f);
    assert_true(!spec.layers[0].attention_norm && spec.layers[1].attention_norm);
    assert_true(spec.layers[0].norm == NORM_LAYER && spec.layers[0].norm_place == NORM_PRE);
    assert_true(spec.layers[0].norm_bias && spec.layers[0].feed_forward_bias);
    assert_true(!spec.layers[0].attention_bias && spec.layers[0].activation == ACTIVATION_SILU);
    assert_true(spec.ropes[0].base == 9e4 && spec.ropes[1].base == 1e4);
    model_spec_close(&spec);
    spec = expect_json(MODEL("xlm-roberta") "\"pad_token_id\": 1, \"type_vocab_size\": 1,"
                                            "\"max_position_embeddings\": 514}");
    const struct layer_spec *layer = &spec.layers[0];
    assert_true(!spec.causal && !spec.final_norm && spec.norm_eps == 1e-12f);
    assert_true(spec.n_position == 514 && spec.first_position == 2 && spec.context == 512);
    assert_true(spec.n_token_type == 1 && spec.ropes[0].dim == 0);
    assert_true(layer->norm_place == NORM_POST && layer->feed_forward == FEED_FORWARD_PLAIN);
    assert_true(layer->attention_bias && layer->output_bias && layer->feed_forward_bias);
    model_spec_close(&spec);
}

static void test_rope_dialects(void **state) {
    (void)state;
    struct model_spec spec =
        expect_json("{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 4}}");
    assert_true(spec.ropes[0].method == ROPE_LINEAR && spec.ropes[0].factor == 4);
    assert_true(spec.ropes[0].base == 5e5);
    model_spec_close(&spec);
    spec = expect_json("{\"rope_theta\": null, \"rope_parameters\": {\"rope_type\": \"llama3\","
                       "\"rope_theta\": 1e4, \"factor\": 8.0, \"low_freq_factor\": 1.0,"
                       "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 512},"
                       "\"dtype\": \"float32\"}");
    assert_true(spec.ropes[0].method == ROPE_LLAMA3 && spec.ropes[0].base == 1e4);
    assert_true(spec.ropes[0].factor == 8 && spec.ropes[0].original_context == 512);
    model_spec_close(&spec);
    // YaRN without a factor takes it from the two contexts; the trained context stays as given.
    spec = expect_json("{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": null,"
                       "\"original_max_position_embeddings\": 512, \"truncate\": false}}");
    assert_true(spec.ropes[0].method == ROPE_YARN && spec.ropes[0].factor == 4);
    assert_true(!spec.ropes[0].truncate && spec.ropes[0].beta_fast == 32);
    model_spec_close(&spec);
    // LongRoPE likewise, and the original context may stand outside of rope_scaling (Phi-3).
    spec = expect_json(
        "{\"original_max_position_embeddings\": 512, \"rope_scaling\": {\"type\": \"su\","
        "\"short_factor\": [1,1,1,1,1,1,1,1.5], \"long_factor\": [1,2,3,4,5,6,7,8]}}");
    assert_true(spec.ropes[0].method == ROPE_LONGROPE && spec.ropes[0].factor == 4);
    assert_true(spec.ropes[0].original_context == 512 && spec.ropes[0].n_factor == 8);
    assert_true(spec.ropes[0].short_factor[7] == 1.5f && spec.ropes[0].long_factor[7] == 8);
    assert_true(model_spec_reads_length(&spec));
    model_spec_close(&spec);
    spec = expect_json("{\"rope_theta\": null, \"partial_rotary_factor\": 0.5}");
    assert_true(spec.ropes[0].base == 10000 && spec.ropes[0].dim == 8);
    model_spec_close(&spec);
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *changes, *fragment;
    } cases[] = {
        {"{\"model_type\": \"gpt2\"}", "model_type gpt2) is not supported; llama, mistral"},
        {"{\"architectures\": [\"LlamaForSequenceClassification\"]}", "is not supported"},
        {"{\"architectures\": [\"MistralForCausalLM\"]}", "is not supported"},
        {"{\"architectures\": [3]}", "holds no names"},
        {"{\"model_type\": null, \"architectures\": null}", "(none)"},
        {"{\"hidden_size\": null}", "lacks one of"},
        {"{\"hidden_size\": \"64\"}", "hidden_size is not an integer"},
        {"{\"hidden_size\": -64}", "hidden_size is -64"},
        {"{\"hidden_size\": 2000000000}", "hidden size is 2000000000"},
        {"{\"hidden_size\": 66}", "no multiple of 4 heads"},
        {"{\"num_hidden_layers\": 1000000}", "number of layers"},
        {"{\"num_attention_heads\": 100000, \"head_dim\": 16}", "number of heads"},
        {"{\"num_key_value_heads\": 3}", "cannot share 3"},
        {"{\"num_key_value_heads\": 8}", "key/value heads is 8"},
        {"{\"head_dim\": 20}", "no multiple of 8"},
        {"{\"head_dim\": 8}", "size of a head is 8"},
        {"{\"head_dim\": 264}", "size of a head is 264"},
        {"{\"vocab_size\": 100000000}", "the vocabulary is"},
        {"{\"rms_norm_eps\": 0}", "epsilon"},
        {"{\"rms_norm_eps\": -1}", "rms_norm_eps is -1"},
        {"{\"hidden_act\": \"relu\"}", "hidden_act relu"},
        {"{\"tie_word_embeddings\": 1}", "not true or false"},
        {"{\"quantization_config\": {\"quant_method\": \"gptq\"}}",
         "quantization_config is not supported"},
        {"{\"rope_scaling\": {\"type\": \"axial\", \"factor\": 2}}", "rope type axial"},
        {"{\"rope_scaling\": {\"type\": \"longrope\", \"factor\": 2}}", "without short_factor"},
        {"{\"rope_scaling\": {\"type\": \"su\", \"factor\": 2, \"short_factor\": [1, 1],"
         "\"long_factor\": [1, 2, 3]}}",
         "differ in length"},
        {"{\"rope_scaling\": {\"type\": \"su\", \"factor\": 2, \"short_factor\": [1, 1],"
         "\"long_factor\": [1, 2]}}",
         "2 factors for 16"},
        {"{\"rope_scaling\": {\"type\": \"su\", \"factor\": 2, \"short_factor\": [1,1,1,1,1,1,1,0],"
         "\"long_factor\": [1,1,1,1,1,1,1,1]}}",
         "factor 7 is 0"},
        {"{\"rope_scaling\": {\"type\": \"su\", \"factor\": 2, \"short_factor\": [true],"
         "\"long_factor\": [1]}}",
         "is not a number"},
        {"{\"rope_scaling\": {\"type\": \"linear\"}}", "no factor"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": -2}}", "factor is -2"},
        {"{\"rope_scaling\": []}", "not an object"},
        {"{\"rope_parameters\": {\"full_attention\": {}}}", "differ by layer"},
        {"{\"rope_theta\": 0}", "rope base of 0"},
        {"{\"partial_rotary_factor\": 0.01}", "0 rotated elements"},
        {"{\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8, \"high_freq_factor\": 1}}",
         "must exceed"},
        {"{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 8, \"beta_fast\": 0.5}}",
         "beta_fast"},
        {"{\"eos_token_id\": \"two\"}", "eos_token_id is neither"},
        {"{\"eos_token_id\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}", "more than 16"},
        {"{\"layer_types\": [\"chunked_attention\"]}", "layer type chunked_attention"},
        {"{\"layer_types\": [\"full_attention\"]}", "1 entries for 3 layers"},
        {MODEL("mistral") "\"layer_types\": [\"full_attention\", \"full_attention\","
                          "\"sliding_attention\"]}",
         "sliding_window is not given"},
        {GEMMA "\"final_logit_softcapping\": 30.0}", "soft caps"},
        {GEMMA "\"rope_parameters\": {\"rope_type\": \"default\"}}", "neither full_attention"},
        {MODEL("bert") "\"position_embedding_type\": \"relative_key\"}", "other than absolute"},
        {MODEL("bert") "\"is_decoder\": true}", "is_decoder is not supported"},
        {MODEL("xlm-roberta") "\"pad_token_id\": 5000}", "trained context"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        struct model_spec spec;
        enum status status = build_json(cases[i].changes, &spec);
        if (status != ERR_INPUT || !strstr(status_message(), cases[i].fragment) ||
            !strstr(status_message(), "config.json"))
            fail_msg("%s: status %d, message \"%s\", expected \"%s\"", cases[i].changes, status,
                     status_message(), cases[i].fragment);
        model_spec_close(&spec);
    }
}

static void test_generation(void **state) {
    (void)state;
    struct spec_draft draft;
    const char *text = "{\"eos_token_id\": [7, 8]}", *broken = "{\"eos_token_id\": ";
    spec_draft_init(&draft);
    assert_int_equal(spec_draft_add_stop(&draft, 8, "x"), OK);
    assert_int_equal(spec_draft_read_generation(text, strlen(text), "g.json", &draft), OK);
    assert_true(draft.n_stop == 2 && draft.stop[0] == 8 && draft.stop[1] == 7);
    assert_int_equal(spec_draft_read_generation(broken, strlen(broken), "g.json", &draft),
                     ERR_INPUT);
    assert_non_null(strstr(status_message(), "g.json: line 1"));
}

// Metadata of a llama of 2 layers; the caller may have added keys, which come first.
static void add_gguf_base(struct gguf_maker *maker, const char *architecture) {
    static const struct {
        const char *suffix;
        uint32_t value;
    } keys[] = {{"block_count", 2},          {"embedding_length", 64},
                {"attention.head_count", 4}, {"attention.head_count_kv", 2},
                {"context_length", 4096},    {"feed_forward_length", 96}};
    char key[96];
    gguf_maker_string(maker, "general.architecture", architecture);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; ++i) {
        snprintf(key, sizeof key, "%s.%s", architecture, keys[i].suffix);
        gguf_maker_u32(maker, key, keys[i].value);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", architecture);
    gguf_maker_f32(maker, key, 1e-5f);
}

static enum status build_gguf(struct gguf_maker *maker, struct model_spec *out) {
    struct spec_draft draft;
    struct gguf *gguf = NULL;
    struct buffer file = gguf_maker_finish(maker);
    *out = (struct model_spec){0};
    spec_draft_init(&draft);
    assert_int_equal(gguf_parse(file.data, file.n, "m.gguf", &gguf), OK);
    enum status status = spec_draft_read_gguf(gguf, "m.gguf", &draft);
    if (draft.n_vocab == 0) draft.n_vocab = 100; // of the embedding table
    if (status == OK) status = spec_build(&draft, "m.gguf", out);
    gguf_close(&gguf);
    buffer_close(&file);
    return status;
}

static void test_gguf(void **state) {
    (void)state;
    const char *tokens[] = {"a", "b", "c"};
    float divisors[8] = {1, 1, 1, 2, 3, 8, 8, 8};
    struct gguf_maker maker = {0};
    struct model_spec spec;
    add_gguf_base(&maker, "llama");
    gguf_maker_f32(&maker, "llama.rope.freq_base", 5e5f);
    gguf_maker_u32(&maker, "tokenizer.ggml.eos_token_id", 2);
    gguf_maker_u32(&maker, "tokenizer.ggml.eot_token_id", 1);
    gguf_maker_strings(&maker, "tokenizer.ggml.tokens", tokens, 3);
    gguf_maker_tensor(&maker, "rope_freqs.weight", 8, 0, 0, divisors, sizeof divisors);
    assert_int_equal(build_gguf(&maker, &spec), OK);
    assert_true(spec.n_layer == 2 && spec.n_vocab == 3 && spec.context == 4096);
    assert_true(spec.n_stop == 2 && spec.stop[0] == 2 && spec.stop[1] == 1);
    assert_true(spec.ropes[0].interleaved && spec.ropes[0].base == 5e5);
    assert_true(spec.ropes[0].has_divisors && spec.ropes[0].divisor[4] == 3);
    assert_true(spec.layers[1].head_dim == 16 && !spec.layers[1].attention_bias);
    model_spec_close(&spec);

    add_gguf_base(&maker, "qwen3");
    gguf_maker_u32(&maker, "qwen3.attention.key_length", 32);
    gguf_maker_u32(&maker, "qwen3.attention.value_length", 32);
    gguf_maker_string(&maker, "qwen3.rope.scaling.type", "yarn");
    gguf_maker_f32(&maker, "qwen3.rope.scaling.factor", 4);
    gguf_maker_u32(&maker, "qwen3.rope.scaling.original_context_length", 1024);
    gguf_maker_f32(&maker, "qwen3.rope.scaling.attn_factor", 2);
    assert_int_equal(build_gguf(&maker, &spec), OK);
    assert_true(spec.layers[0].head_dim == 32 && spec.layers[0].query_key_norm);
    assert_true(spec.ropes[0].method == ROPE_YARN && !spec.ropes[0].interleaved);
    assert_true(spec.ropes[0].factor == 4 && spec.ropes[0].original_context == 1024);
    assert_true(fabs(spec.ropes[0].attention_factor - 2 * (0.1 * log(4) + 1)) < 1e-12);
    model_spec_close(&spec);

    add_gguf_base(&maker, "qwen2");
    assert_int_equal(build_gguf(&maker, &spec), OK);
    assert_true(spec.layers[0].attention_bias && !spec.ropes[0].interleaved);
    model_spec_close(&spec);
}

static void expect_gguf_refusal(struct gguf_maker *maker, const char *fragment) {
    struct model_spec spec;
    enum status status = build_gguf(maker, &spec);
    if (status != ERR_INPUT || !strstr(status_message(), fragment))
        fail_msg("status %d, message \"%s\", expected \"%s\"", status, status_message(), fragment);
    model_spec_close(&spec);
}

static void test_gguf_refusals(void **state) {
    (void)state;
    struct gguf_maker maker = {0};
    float bad[8] = {1, 1, 1, 1, 1, 1, 1, 0};
    gguf_maker_string(&maker, "general.name", "x");
    expect_gguf_refusal(&maker, "names no general.architecture");
    add_gguf_base(&maker, "gptneox");
    expect_gguf_refusal(&maker, "architecture gptneox is not supported");
    gguf_maker_string(&maker, "general.architecture", "llama");
    expect_gguf_refusal(&maker, "number of layers is 0");
    add_gguf_base(&maker, "llama");
    gguf_maker_u32(&maker, "llama.expert_count", 8);
    expect_gguf_refusal(&maker, "mixtures of experts");
    add_gguf_base(&maker, "llama");
    gguf_maker_u32(&maker, "llama.attention.value_length", 24);
    expect_gguf_refusal(&maker, "values of 24 elements");
    add_gguf_base(&maker, "llama");
    gguf_maker_string(&maker, "llama.rope.scaling.type", "longrope");
    expect_gguf_refusal(&maker, "LongRoPE needs both");
    add_gguf_base(&maker, "llama");
    gguf_maker_string(&maker, "llama.rope.freq_base", "1e4");
    expect_gguf_refusal(&maker, "not a finite number");
    add_gguf_base(&maker, "llama");
    gguf_maker_f32(&maker, "llama.rope.freq_base", INFINITY);
    expect_gguf_refusal(&maker, "not a finite number");
    add_gguf_base(&maker, "llama");
    gguf_maker_u32(&maker, "llama.rope.dimension_count", 4000000000u);
    expect_gguf_refusal(&maker, "rope.dimension_count");
    add_gguf_base(&maker, "llama");
    gguf_maker_tensor(&maker, "rope_freqs.weight", 8, 0, 0, bad, sizeof bad);
    expect_gguf_refusal(&maker, "rope_freqs.weight[7] is 0");
    add_gguf_base(&maker, "llama");
    gguf_maker_tensor(&maker, "rope_freqs.weight", 400, 0, 0, NULL, 1600);
    expect_gguf_refusal(&maker, "no F32 vector");
    add_gguf_base(&maker, "llama");
    gguf_maker_u32(&maker, "llama.rope.dimension_count", 12);
    gguf_maker_tensor(&maker, "rope_freqs.weight", 8, 0, 0, NULL, 32);
    expect_gguf_refusal(&maker, "8 elements for 12");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),         cmocka_unit_test(test_qwen),
        cmocka_unit_test(test_windows),       cmocka_unit_test(test_rope_dialects),
        cmocka_unit_test(test_set_window),    cmocka_unit_test(test_gemma3),
        cmocka_unit_test(test_encoders),      cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_generation),    cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_gguf_refusals),
    };
    return cmocka_run_group_tests_name("spec", tests, NULL, NULL);
}
