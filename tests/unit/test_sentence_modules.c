// Modules and prompts beside a network: what is read of them, and what is refused with which words.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model/sentence_modules.h"
#include "model/sentence_prompts.h"
#include "tests/common/make_files.h"

enum { N_HIDDEN = 32 };
#define TYPE(name) "\"type\": \"sentence_transformers.models." name "\""
#define NETWORK "{" TYPE("Transformer") ", \"path\": \"\"}"
#define POOLING "{" TYPE("Pooling") ", \"path\": \"1_Pooling\"}"
#define DENSE "{" TYPE("Dense") ", \"path\": \"2_Dense\"}"
#define DROPOUT "{" TYPE("Dropout") ", \"path\": \"3_Dropout\"}"
#define NORMALIZE "{" TYPE("Normalize") ", \"path\": \"4_Normalize\"}"

static void expect_refusal(enum status status, const char *fragment) {
    if (status != ERR_INPUT || !strstr(status_message(), fragment) ||
        !strstr(status_message(), "x.json"))
        fail_msg("status %d, message \"%s\", expected \"%s\"", status, status_message(), fragment);
}

static void test_lists(void **state) {
    (void)state;
    static const char *const good[] = {
        "[]",
        "[" NETWORK "]",
        "[" NETWORK "," POOLING "]",
        "[" NETWORK "," POOLING "," NORMALIZE "]",
        "[" NETWORK "," POOLING "," DENSE "," DROPOUT "," DENSE "," NORMALIZE "]",
    };
    static const struct {
        const char *text, *fragment;
    } bad[] = {
        {"{}", "list was expected"},
        {"[1]", "module 0 is no object"},
        {"[{" TYPE("Transformer") "}]", "no path"},
        {"[{\"path\": \"\"}]", "no type"},
        {"[{\"type\": 3, \"path\": \"\"}]", "not a string"},
        {"[" NETWORK ",{" TYPE("LayerNorm") ", \"path\": \"1\"}]", "LayerNorm, which is not"},
        {"[{\"type\": \"mine.Transformer\", \"path\": \"\"}]", "mine.Transformer, which is not"},
        {"[{\"type\": \"sentence_transformers.\", \"path\": \"\"}]", "not supported"},
        {"[{\"type\": \"Pooling\", \"path\": \"\"}]", "a Pooling, which is not"},
        {"[{" TYPE("Transformer") ", \"path\": \"../x\"}]", "no folder beside"},
        {"[{" TYPE("Transformer") ", \"path\": \"a/b\"}]", "no folder beside"},
        {"[{" TYPE("Transformer") ", \"path\": \"0_BERT\"}]", "lies in the folder 0_BERT"},
        {"[" POOLING "]", "module 0, Pooling, is not in an order"},
        {"[" NETWORK "," DENSE "]", "module 1, Dense, is not in an order"},
        {"[" NETWORK "," NETWORK "]", "module 1, Transformer, is not in an order"},
        {"[" NETWORK "," POOLING "," POOLING "]", "module 2, Pooling, is not in an order"},
        {"[" NETWORK "," POOLING "," NORMALIZE "," DENSE "]", "module 3, Dense, is not in"},
        {"[" NETWORK "," POOLING "," NORMALIZE "," NORMALIZE "]", "module 3, Normalize, is not"},
        {"[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "17 modules; 16 at most"},
    };
    struct module_list list;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        if (module_list_parse(good[i], strlen(good[i]), "x.json", &list) != OK)
            fail_msg("%s", status_message());
    }
    assert_int_equal(list.n, 6);
    assert_int_equal(list.items[4].kind, MODULE_DENSE);
    assert_string_equal(list.items[4].folder, "2_Dense");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_refusal(module_list_parse(bad[i].text, strlen(bad[i].text), "x.json", &list),
                       bad[i].fragment);
}

static enum status pooling(const char *text, struct sentence_modules *out) {
    return pooling_parse(text, strlen(text), "x.json", N_HIDDEN, out);
}

static void test_pooling(void **state) {
    (void)state;
    static const struct {
        const char *text;
        enum pooling pooling;
    } good[] = {
        {"{\"pooling_mode\": \"mean\"}", POOLING_MEAN},
        {"{\"pooling_mode\": \"lasttoken\", \"embedding_dimension\": 32}", POOLING_LAST},
        {"{\"pooling_mode\": [\"cls\"], \"pooling_mode_max_tokens\": true}", POOLING_CLS},
        {"{\"pooling_mode\": null, \"pooling_mode_cls_token\": true}", POOLING_CLS},
        {"{\"pooling_mode_lasttoken\": true, \"pooling_mode_cls_token\": false}", POOLING_LAST},
        {"{\"word_embedding_dimension\": 32}", POOLING_AUTO},
    };
    static const struct {
        const char *text, *fragment;
    } bad[] = {
        {"[]", "object was expected"},
        {"{\"pooling_mode\": \"max\"}", "pooling by max is not supported: set task.pooling"},
        {"{\"pooling_mode\": \"median\"}", "pooling by median"},
        {"{\"pooling_mode\": 1}", "no word"},
        {"{\"pooling_mode\": [[]]}", "no word"},
        {"{\"pooling_mode\": [\"mean\", \"cls\"]}", "mean and cls side by side"},
        {"{\"pooling_mode_cls_token\": true, \"pooling_mode_mean_tokens\": true}", "side by side"},
        {"{\"pooling_mode_weightedmean_tokens\": true}", "pooling by weightedmean"},
        {"{\"pooling_mode_cls_token\": 1}", "true or false"},
        {"{\"word_embedding_dimension\": 31}", "word_embedding_dimension is 31"},
        {"{\"include_prompt\": \"no\"}", "true or false"},
    };
    struct sentence_modules out;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        out = (struct sentence_modules){0};
        if (pooling(good[i].text, &out) != OK) fail_msg("%s", status_message());
        assert_int_equal(out.pooling, good[i].pooling);
        assert_false(out.without_prompt);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        out = (struct sentence_modules){0};
        expect_refusal(pooling(bad[i].text, &out), bad[i].fragment);
    }
    out = (struct sentence_modules){.pooling = POOLING_LAST}; // another one is asked for
    assert_int_equal(pooling("{\"pooling_mode\": \"max\", \"include_prompt\": false}", &out), OK);
    assert_int_equal(out.pooling, POOLING_LAST);
    assert_true(out.without_prompt);
}

#define SIZES "\"in_features\": 32, \"out_features\": 3"
#define ACTIVATION(name) "{" SIZES ", \"activation_function\": \"" name "\"}"
static void test_dense(void **state) {
    (void)state;
    static const struct {
        const char *text, *fragment;
    } bad[] = {
        {"{}", "no in_features"},
        {"{\"in_features\": 32}", "no out_features"},
        {"{\"in_features\": -1}", "in_features is -1"},
        {"{\"in_features\": 32, \"out_features\": 99999999}", "out_features is 99999999"},
        {"{" SIZES ", \"bias\": 1}", "true or false"},
        {"{" SIZES ", \"use_residual\": true}", "use_residual is not supported"},
        {"{" SIZES ", \"module_input_name\": \"token_embeddings\"}", "is token_embeddings"},
        {ACTIVATION("torch.nn.modules.activation.Softmax"), "activation.Softmax is not supported"},
        {ACTIVATION("mine.Tanh"), "mine.Tanh is not supported"},
        {ACTIVATION("Tanh"), "Tanh is not supported"},
    };
    struct dense_config config;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_refusal(dense_parse(bad[i].text, strlen(bad[i].text), "x.json", &config),
                       bad[i].fragment);
    const char *text = ACTIVATION("torch.nn.modules.linear.Identity");
    assert_int_equal(dense_parse(text, strlen(text), "x.json", &config), OK);
    assert_int_equal(config.activation, DENSE_IDENTITY);
    assert_true(config.bias);
    text = "{" SIZES ", \"bias\": false, \"module_output_name\": null}";
    assert_int_equal(dense_parse(text, strlen(text), "x.json", &config), OK);
    assert_int_equal(config.activation, DENSE_TANH);
    assert_false(config.bias);
    assert_int_equal(config.n_out, 3);
}

static void test_activations(void **state) {
    (void)state;
    const float x[] = {-2, 0, 0.5f};
    const double expected[N_DENSE_ACTIVATION][3] = {// torch's
                                                    {-2, 0, 0.5},
                                                    {-0.9640275801, 0, 0.4621171573},
                                                    {0, 0, 0.5},
                                                    {0.1192029220, 0.5, 0.6224593312},
                                                    {-0.0455002639, 0, 0.3457312306}};
    for (int a = 0; a < N_DENSE_ACTIVATION; a++) {
        float y[3];
        memcpy(y, x, sizeof y);
        sentence_activate((enum dense_activation)a, y, 3);
        for (int i = 0; i < 3; i++) assert_true(fabs(y[i] - expected[a][i]) < 1e-7);
    }
}

// A folder whose one Dense layer has this tensor table.
static enum status open_folder(const char *header, size_t n_zero, enum pooling wanted,
                               struct sentence_modules *out) {
    static const char list[] = "[" NETWORK "," POOLING "," DENSE "]", mean[] = "{}",
                      dense[] = "{" SIZES ", \"bias\": true}";
    char *folder = folder_make(), inner[3][256];
    const char *parts[] = {"1_Pooling", "2_Dense", ""};
    for (int i = 0; i < 3; i++) snprintf(inner[i], sizeof inner[i], "%s/%s", folder, parts[i]);
    mkdir(inner[0], 0700);
    mkdir(inner[1], 0700);
    struct buffer file = make_safetensors(header, n_zero);
    free(folder_write(folder, "modules.json", list, sizeof list - 1));
    free(folder_write(inner[0], "config.json", mean, sizeof mean - 1));
    free(folder_write(inner[1], "config.json", dense, sizeof dense - 1));
    if (*header) free(folder_write(inner[1], "model.safetensors", file.data, file.n));
    buffer_close(&file);
    struct checkpoint checkpoint = {.folder = folder, .path = folder, .spec.n_hidden = N_HIDDEN};
    enum status status = sentence_modules_open(&checkpoint, wanted, out);
    folder_remove(strdup(inner[0]));
    folder_remove(strdup(inner[1]));
    folder_remove(folder);
    return status;
}

#define TENSOR(name, shape, begin, end)                                                            \
    "\"linear." name "\": {\"dtype\": \"F32\", \"shape\": " shape ", \"data_offsets\": [" begin    \
    ", " end "]}"
static void test_weights(void **state) {
    (void)state;
    static const char good[] =
        "{" TENSOR("weight", "[3, 32]", "0", "384") "," TENSOR("bias", "[3]", "384", "396") "}";
    static const struct {
        const char *header, *fragment;
    } bad[] = {
        {"{}", "has no tensor linear.weight"},
        {"{" TENSOR("weight", "[3, 32]", "0", "384") "}", "has no tensor linear.bias"},
        {"{" TENSOR("weight", "[32, 3]", "0", "384") "}", "linear.weight is [32, 3], not [3, 32]"},
        {"{" TENSOR("weight", "[96]", "0", "384") "}", "linear.weight is [96], not [3, 32]"},
        {"{" TENSOR("weight", "[3, 32]", "0", "384") "," TENSOR("bias", "[3, 1]", "384", "396") "}",
         "linear.bias is [3, 1], not [3]"},
        {"{\"linear.weight\": {\"dtype\": \"I32\", \"shape\": [3, 32], \"data_offsets\": [0, "
         "384]}}",
         "is of I32"},
        {"", "pytorch_model.bin"},
    };
    struct sentence_modules out;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        enum status status = open_folder(bad[i].header, 396, POOLING_AUTO, &out);
        if (status == OK || !strstr(status_message(), bad[i].fragment))
            fail_msg("\"%s\", expected \"%s\"", status_message(), bad[i].fragment);
        sentence_modules_close(&out);
    }
    assert_int_equal(open_folder(good, 396, POOLING_AUTO, &out), OK);
    assert_int_equal(out.pooling, POOLING_MEAN);
    assert_int_equal(out.n_dense, 1);
    assert_int_equal(sentence_modules_width(&out, N_HIDDEN), 3);
    assert_int_equal(strlen(out.digest), 32);
    assert_false(out.normalise);
    sentence_modules_close(&out);
    assert_int_equal(open_folder("", 0, POOLING_NONE, &out), OK); // nothing is read
    assert_int_equal(sentence_modules_width(&out, N_HIDDEN), N_HIDDEN);
    sentence_modules_close(&out);
}

static void test_gguf(void **state) {
    (void)state;
    const enum pooling expected[] = {POOLING_MEAN, POOLING_MEAN, POOLING_CLS, POOLING_LAST};
    for (uint32_t type = 0; type < 5; type++) {
        struct gguf_maker maker = {0};
        struct checkpoint checkpoint = {.path = "x.json", .spec.architecture = "qwen3"};
        struct sentence_modules out;
        gguf_maker_u32(&maker, "qwen3.pooling_type", type);
        struct buffer file = gguf_maker_finish(&maker);
        assert_int_equal(gguf_parse(file.data, file.n, "x", &checkpoint.gguf), OK);
        enum status status = sentence_modules_open(&checkpoint, POOLING_AUTO, &out);
        if (type < 4)
            assert_int_equal(out.pooling, expected[type]);
        else
            expect_refusal(status, "qwen3.pooling_type is not 0 to 3");
        assert_int_equal(sentence_modules_open(&checkpoint, POOLING_LAST, &out), OK);
        assert_int_equal(out.pooling, POOLING_LAST);
        gguf_close(&checkpoint.gguf);
        buffer_close(&file);
    }
}

static enum status prompts(const char *text, struct sentence_prompts *out) {
    return sentence_prompts_parse(text, strlen(text), "x.json", out);
}

static void test_prompts(void **state) {
    (void)state;
    static const struct {
        const char *text, *fragment;
    } bad[] = {
        {"[]", "object was expected"},
        {"{\"prompts\": []}", "not an object"},
        {"{\"prompts\": {\"query\": 1}}", "the prompt query is no text"},
        {"{\"prompts\": {\"query\": null}}", "the prompt query is no text"},
        {"{\"default_prompt_name\": 3}", "not a string"},
        {"{\"default_prompt_name\": \"query\"}", "query, which is none of the prompts"},
        {"{\"prompts\": {\"a\": \"\"}, \"default_prompt_name\": \"b\"}", "is b, which is none"},
    };
    struct sentence_prompts out;
    char names[8];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_refusal(prompts(bad[i].text, &out), bad[i].fragment);
    assert_int_equal(prompts("{}", &out), OK);
    assert_null(sentence_prompts_find(&out, "query"));
    assert_string_equal(sentence_prompts_names(&out, names, sizeof names), "none");
    sentence_prompts_close(&out);
    assert_int_equal(prompts("{\"prompts\": {\"query\": \"q: \", \"document\": \"\"}, "
                             "\"default_prompt_name\": \"query\"}",
                             &out),
                     OK);
    assert_string_equal(out.standard, "q: ");
    assert_string_equal(sentence_prompts_find(&out, "document"), "");
    assert_null(sentence_prompts_find(&out, "passage"));
    assert_int_equal(strlen(sentence_prompts_names(&out, names, sizeof names)), 7); // cut short
    sentence_prompts_close(&out);
    assert_int_equal(sentence_prompts_open("/nonexistent", &out), OK);
    assert_null(out.texts);
}

static void test_limits(void **state) {
    (void)state;
    static const struct {
        const char *sentences, *tokenizer;
        int64_t limit;
    } cases[] = {
        {"{\"max_seq_length\": 40}", "{\"model_max_length\": 60}", 40},
        {"{\"max_seq_length\": null}", "{\"model_max_length\": 60}", 60},
        {"{}", "{\"model_max_length\": 1000000000000000019884624838656}", 0},
        {"{\"max_seq_length\": 0}", "{\"model_max_length\": \"60\"}", 0},
    };
    char *folder = folder_make();
    int64_t limit = -1;
    assert_int_equal(sentence_max_tokens(NULL, &limit), OK);
    assert_int_equal(limit, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *texts[] = {cases[i].sentences, cases[i].tokenizer};
        free(folder_write(folder, "sentence_bert_config.json", texts[0], strlen(texts[0])));
        free(folder_write(folder, "tokenizer_config.json", texts[1], strlen(texts[1])));
        if (sentence_max_tokens(folder, &limit) != OK) fail_msg("%s", status_message());
        assert_int_equal(limit, cases[i].limit);
    }
    free(folder_write(folder, "sentence_bert_config.json", "{", 1));
    assert_int_equal(sentence_max_tokens(folder, &limit), ERR_INPUT);
    assert_non_null(strstr(status_message(), "sentence_bert_config.json: line 1"));
    folder_remove(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lists),   cmocka_unit_test(test_pooling),
        cmocka_unit_test(test_dense),   cmocka_unit_test(test_activations),
        cmocka_unit_test(test_weights), cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_prompts), cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
