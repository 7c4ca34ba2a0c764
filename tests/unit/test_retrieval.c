// Prompts of `halka evaluate`: lengths, places of needles, sameness of draws, scores.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/retrieval.h"

enum { N_TEXT = 500 };

static struct tokenizer *tokenizer;
static struct token_list text;
static bool is_boundary[N_TEXT];
static struct retrieval_source source;

static int open_source(void **state) {
    (void)state;
    char words[8 * N_TEXT] = "";
    for (int i = 0; i < N_TEXT; i++) strcat(words, i % 10 == 9 ? "end. " : "word ");
    if (tokenizer_open_json("tests/fixtures/tokenizers/gpt2.json", &tokenizer) != OK) return -1;
    if (tokenizer_encode(tokenizer, words, strlen(words), 0, &text) != OK || text.n < N_TEXT)
        return -1;
    retrieval_mark_boundaries(words, strlen(words), text.byte_end, N_TEXT, is_boundary);
    source = (struct retrieval_source){.tokenizer = tokenizer,
                                       .chat = chat_template_choose(tokenizer, CHAT_NONE),
                                       .text = text.id,
                                       .is_boundary = is_boundary,
                                       .n_text = N_TEXT};
    return 0;
}

static int close_source(void **state) {
    (void)state;
    token_list_close(&text);
    tokenizer_close(&tokenizer);
    return 0;
}

static struct retrieval_prompt build(struct retrieval_cell cell) {
    struct retrieval_prompt prompt;
    if (retrieval_build(&source, &cell, &prompt) != OK) fail_msg("%s", status_message());
    return prompt;
}

static char *decode(const struct retrieval_prompt *prompt) {
    struct {
        char *text;
        size_t bytes;
    } out = {NULL, 0};
    assert_int_equal(
        tokenizer_decode(tokenizer, prompt->token, prompt->n, true, &out.text, &out.bytes), OK);
    assert_non_null(out.text);
    return out.text;
}

static void test_lengths_and_answers(void **state) {
    (void)state;
    static const int n_expected[N_RETRIEVAL] = {1, 1, 1, 4, 5, 3};
    for (int family = 0; family < N_RETRIEVAL; family++) {
        for (int64_t length = 900; length < 3000; length += 700) {
            struct retrieval_prompt prompt =
                build((struct retrieval_cell){.family = family, .length = length, .depth = 50});
            int64_t spare = length - prompt.max_tokens - prompt.n;
            // Coded words are whole; all else fills its length.
            assert_true(spare >= 0 && (family == RETRIEVAL_WORDS ? spare < 12 : spare == 0));
            assert_int_equal(prompt.max_tokens, retrieval_max_tokens(family));
            assert_int_equal(prompt.n_expected, n_expected[family]);
            char *all = decode(&prompt);
            assert_true(retrieval_score(&prompt, all) == 1); // the answer is there
            assert_true(retrieval_score(&prompt, "nothing") == 0);
            free(all);
            retrieval_prompt_close(&prompt);
        }
    }
}

static void test_depths(void **state) {
    (void)state;
    double last = -1;
    for (int depth = 0; depth <= 100; depth += 25) {
        struct retrieval_prompt prompt = build(
            (struct retrieval_cell){.family = RETRIEVAL_SINGLE, .length = 3000, .depth = depth});
        char *all = decode(&prompt);
        const char *needle = strstr(all, " One of the special");
        const char *begin = strstr(all, "\n\n") + 2, *end = strstr(all, "\n\nQuestion");
        assert_true(needle && end && needle >= begin && needle < end);
        double where = (double)(needle - begin) / (double)(end - begin);
        assert_true(where > last);
        if (depth == 50) assert_true(where > 0.4 && where <= 0.5);
        if (needle > begin) assert_true(needle[-1] == '.' || depth == 100); // after a sentence
        last = where;
        free(all);
        retrieval_prompt_close(&prompt);
    }
}

static void test_draws(void **state) {
    (void)state;
    struct retrieval_cell cell = {.family = RETRIEVAL_TRACKING, .length = 1500, .seed = 7};
    struct retrieval_prompt a = build(cell), b = build(cell);
    assert_string_equal(a.digest, b.digest);
    assert_int_equal(strlen(a.digest), 32);
    assert_memory_equal(a.token, b.token, (size_t)a.n * sizeof *a.token);
    for (int i = 0; i < 4; i++) {
        struct retrieval_cell other = cell;
        if (i == 0) other.seed++;
        if (i == 1) other.sample++;
        if (i == 2) other.depth++;
        if (i == 3) other.length++;
        struct retrieval_prompt c = build(other);
        assert_string_not_equal(a.digest, c.digest);
        assert_string_not_equal(a.expected[0], c.expected[0]);
        retrieval_prompt_close(&c);
    }
    retrieval_prompt_close(&a);
    retrieval_prompt_close(&b);
}

static void test_score(void **state) {
    (void)state;
    struct retrieval_prompt prompt = {.n_expected = 4,
                                      .expected = {"1234567", "ABCD1", "xyz", "7654321"}};
    assert_true(retrieval_score(&prompt, "they are 1234567, abcd1 and XYZ.") == 0.75);
    assert_true(retrieval_score(&prompt, "123456") == 0);
}

static void test_no_room(void **state) {
    (void)state;
    struct retrieval_prompt prompt;
    struct retrieval_cell cell = {.family = RETRIEVAL_MULTIVALUE, .length = 60};
    assert_int_equal(retrieval_build(&source, &cell, &prompt), ERR_CONFIG);
    assert_non_null(strstr(status_message(), "multivalue"));
    assert_null(prompt.token);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths_and_answers),
        cmocka_unit_test(test_depths),
        cmocka_unit_test(test_draws),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_no_room),
    };
    return cmocka_run_group_tests_name("retrieval", tests, open_source, close_source);
}
