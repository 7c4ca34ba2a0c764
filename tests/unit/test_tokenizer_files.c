// What the files of a tokenizer may hold: tokenizer.json's refusals, the files beside it, the
// special tokens that their settings add.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/tokenizer.h"

static void must(enum status status) {
    if (status != OK) fail_msg("status %d: %s", status, status_message());
}

static void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

#define MODEL                                                                                      \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *json, *message;
    } cases[] = {
        {"{\"normalizer\":{\"type\":\"Nmt\"}," MODEL "}", "Nmt"},
        {"{\"pre_tokenizer\":{\"type\":\"Whitespace\"}," MODEL "}", "Whitespace"},
        {"{\"post_processor\":{\"type\":\"RobertaProcessing\"}," MODEL "}", "lacks its 'cls'"},
        {"{\"post_processor\":{\"type\":\"BertProcessing\",\"cls\":[\"a\",0],\"sep\":[\"x\",9]}"
         "," MODEL "}",
         "special tokens are wrong"},
        {"{\"post_processor\":{\"type\":\"BertProcessing\",\"cls\":[\"a\",0],\"sep\":[\"x\",1]},"
         "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":2},\"merges\":[]}}",
         "token 1 goes around each text, but is not in the vocabulary"},
        {"{\"decoder\":{\"type\":\"CTC\"}," MODEL "}", "CTC"},
        {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{\"a\":0}}}", "lacks the unknown token"},
        {"{\"model\":{\"type\":\"WordPiece\",\"max_input_chars_per_word\":-1,"
         "\"vocab\":{\"[UNK]\":0}}}",
         "words of -1"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":"
         "\"Isolated\"}," MODEL "}",
         "cannot be compiled"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a{1,3}+\"},\"behavior\":"
         "\"Isolated\"}," MODEL "}",
         "interval"},
        {"{\"model\":{\"type\":\"WordLevel\",\"vocab\":{},\"merges\":[]}}", "WordLevel"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":{},\"merges\":[]}}", "Unigram"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":1,\"vocab\":[[\"a\",-1]]}}", "unk_id"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"a\",-1],[\"b\"]]}}",
         "piece 1"},
        {"{\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AA!A\"}," MODEL "}",
         "not base64"},
        {"{\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"EAAAAAAA\"}," MODEL
         "}",
         "holds no table"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", "merge 0"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "named twice"},
        {"{\"model\":{\"vocab\":{\"a\":2000000000},\"merges\":[]}}", "2000000000"},
        {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "not a number"},
        {"{", "line 1"},
    };
    char path[] = "/tmp/halka-tokenizer-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct tokenizer *t = NULL;
        write_file(path, cases[i].json);
        assert_int_equal(tokenizer_open_json(path, &t), ERR_INPUT);
        if (!strstr(status_message(), cases[i].message)) fail_msg("message: %s", status_message());
        assert_null(t);
    }
    unlink(path);
    struct tokenizer *t = NULL;
    assert_int_equal(tokenizer_open_json(path, &t), ERR_NO_INPUT);
    assert_int_equal(mkfifo(path, 0600), 0); // a pipe without a writer: no waiting for one
    assert_int_equal(tokenizer_open_json(path, &t), ERR_NO_INPUT);
    unlink(path);
    must(tokenizer_open("/nonexistent", NULL, &t));
    assert_null(t);
    char folder[] = "/tmp/halka-tokenizer-XXXXXX", link[64];
    assert_non_null(mkdtemp(folder));
    snprintf(link, sizeof link, "%s/tokenizer.json", folder);
    assert_int_equal(symlink("../blobs/1", link), 0);
    assert_int_equal(tokenizer_open(folder, NULL, &t), ERR_NO_INPUT);
    unlink(link);
    rmdir(folder);
}

static void test_companions(void **state) {
    (void)state;
    char folder[] = "/tmp/halka-tokenizer-XXXXXX", path[64];
    struct tokenizer *first = NULL, *second = NULL;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/tokenizer.json", folder);
    write_file(path, "{" MODEL "}");
    snprintf(path, sizeof(path), "%s/tokenizer_config.json", folder);
    write_file(path, "{\"eos_token\":{\"content\":\"b\"},\"model_max_length\":"
                     "1000000000000000019884624838656,\"chat_template\":[{\"name\":\"tool\","
                     "\"template\":\"no\"},{\"name\":\"default\",\"template\":\"yes\"}]}");
    must(tokenizer_open(folder, NULL, &first));
    assert_int_equal(tokenizer_eos(first), 1);
    assert_string_equal(tokenizer_chat_template(first), "yes");
    assert_int_equal(strlen(tokenizer_digest(first)), 32);
    unlink(path);
    snprintf(path, sizeof(path), "%s/chat_template.jinja", folder);
    write_file(path, "a file");
    must(tokenizer_open(folder, NULL, &second));
    assert_int_equal(tokenizer_eos(second), -1);
    assert_string_equal(tokenizer_chat_template(second), "a file");
    assert_string_equal(tokenizer_digest(first), tokenizer_digest(second));
    tokenizer_close(&second);
    unlink(path);
    // Another rule, another digest.
    snprintf(path, sizeof(path), "%s/tokenizer.json", folder);
    write_file(path, "{\"normalizer\":{\"type\":\"NFC\"}," MODEL "}");
    must(tokenizer_open(folder, NULL, &second));
    assert_string_not_equal(tokenizer_digest(first), tokenizer_digest(second));
    tokenizer_close(&first);
    tokenizer_close(&second);
    unlink(path);
    rmdir(folder);
}

// do_lower_case of sentence-transformers, and the normaliser Lowercase: found with tokenizers.
static void test_lower_case(void **state) {
    (void)state;
    static const char added[] =
        "\"added_tokens\":[{\"id\":3,\"content\":\"<X>\",\"normalized\":true}],",
                      replace[] =
                          "\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"A\"},"
                          "\"content\":\"b\"},",
                      lower[] = "\"normalizer\":{\"type\":\"Lowercase\"},";
    static const struct {
        const char *rule, *sentences;
        int64_t n;
        int32_t id[3];
    } cases[] = {
        {replace, "{\"do_lower_case\":false,\"max_seq_length\":256}", 2, {1, 3}},
        {replace, "{\"do_lower_case\":true}", 2, {2, 3}}, // before the replacement
        {lower, "{\"do_lower_case\":true}", 2, {2, 3}},
        {lower, "{}", 2, {2, 3}},
    };
    char folder[] = "/tmp/halka-tokenizer-XXXXXX", path[64], sentences[64], json[512];
    struct token_list list = {0};
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    snprintf(sentences, sizeof sentences, "%s/sentence_bert_config.json", folder);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tokenizer *t = NULL;
        snprintf(json, sizeof json, "{%s%s%s}", added, cases[i].rule, MODEL);
        write_file(path, json);
        write_file(sentences, cases[i].sentences);
        must(tokenizer_open(folder, NULL, &t));
        list.n = 0;
        must(tokenizer_encode(t, i ? "AB<X>" : "A<X>", i ? 5 : 4, 0, &list));
        assert_int_equal(list.n, cases[i].n);
        assert_memory_equal(list.id, cases[i].id, (size_t)list.n * sizeof(int32_t));
        tokenizer_close(&t);
    }
    token_list_close(&list);
    struct tokenizer *t = NULL;
    write_file(sentences, "{\"do_lower_case\":");
    assert_int_equal(tokenizer_open(folder, NULL, &t), ERR_INPUT);
    assert_non_null(strstr(status_message(), "sentence_bert_config.json, line 1"));
    unlink(path);
    unlink(sentences);
    rmdir(folder);
}

// add_bos_token and add_eos_token count where tokenizer.json's post-processor adds nothing.
static void test_added_specials(void **state) {
    (void)state;
    static const char post[] = "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":"
                               "[{\"SpecialToken\":{\"id\":\"ab\"}},{\"Sequence\":{\"id\":\"A\"}}],"
                               "\"special_tokens\":{\"ab\":{\"ids\":[2]}}},";
    static const struct {
        const char *post, *config;
        int64_t n;
        int32_t id[3];
    } cases[] = {
        {"", "{\"bos_token\":\"a\"}", 1, {1}},
        {"", "{\"bos_token\":\"a\",\"add_bos_token\":null}", 1, {1}},
        {"", "{\"bos_token\":\"a\",\"add_bos_token\":false}", 1, {1}},
        {"", "{\"bos_token\":null,\"add_bos_token\":true}", 1, {1}},
        {"", "{\"bos_token\":\"a\",\"add_bos_token\":true}", 2, {0, 1}},
        {"",
         "{\"bos_token\":{\"content\":\"a\"},\"eos_token\":\"b\",\"add_bos_token\":true,"
         "\"add_eos_token\":true}",
         3,
         {0, 1, 1}},
        {post, "{\"bos_token\":\"a\",\"add_bos_token\":true}", 2, {2, 1}},
        {post, "{\"bos_token\":\"a\",\"add_bos_token\":false}", 2, {2, 1}},
    };
    char folder[] = "/tmp/halka-tokenizer-XXXXXX", path[64], config[64], json[512];
    struct token_list list = {0};
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/tokenizer.json", folder);
    snprintf(config, sizeof(config), "%s/tokenizer_config.json", folder);
    char plain[33] = "";
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct tokenizer *t = NULL;
        snprintf(json, sizeof(json), "{%s%s}", cases[i].post, MODEL);
        write_file(path, json);
        write_file(config, cases[i].config);
        must(tokenizer_open(folder, NULL, &t));
        list.n = 0;
        must(tokenizer_encode(t, "b", 1, ENCODE_ADD_SPECIALS, &list));
        assert_int_equal(list.n, cases[i].n);
        assert_memory_equal(list.id, cases[i].id, (size_t)list.n * sizeof(int32_t));
        if (i == 0) memcpy(plain, tokenizer_digest(t), sizeof(plain));
        assert_int_equal(strcmp(plain, tokenizer_digest(t)) == 0, list.n == 1);
        tokenizer_close(&t);
    }
    token_list_close(&list);
    unlink(path);
    unlink(config);
    rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_companions),
        cmocka_unit_test(test_lower_case),
        cmocka_unit_test(test_added_specials),
    };
    return cmocka_run_group_tests_name("tokenizer files", tests, NULL, NULL);
}
