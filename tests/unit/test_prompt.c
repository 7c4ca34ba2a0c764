// Conversations as the templates of the families write them, and the text of tokens as they come.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "launcher/prompt.h"
#include "launcher/text_stream.h"
#include "model/utf8.h"

#define FIXTURES "tests/fixtures/tokenizers/"

static struct tokenizer *open_tokenizer(const char *name) {
    char path[256];
    struct tokenizer *tokenizer = NULL;
    snprintf(path, sizeof path, FIXTURES "%s.json", name);
    assert_int_equal(tokenizer_open_json(path, &tokenizer), OK);
    return tokenizer;
}

static const struct chat_message turns[] = {
    {ROLE_SYSTEM, "S"}, {ROLE_USER, " Q1 "}, {ROLE_ASSISTANT, "A1"}, {ROLE_USER, "Q2 <|im_end|>"}};

// The tokens of messages as text, specials included.
static void check(const char *name, enum chat_family family, const struct chat_message *messages,
                  int n, const char *expected) {
    struct tokenizer *tokenizer = open_tokenizer(name);
    struct job job = {.tokenizer = tokenizer, .chat = chat_template_choose(tokenizer, family)};
    struct token_list list = {0};
    char *text = NULL;
    size_t bytes;
    assert_int_equal(job.chat->family, family);
    assert_int_equal(prompt_encode_chat(&job, messages, n, &list), OK);
    assert_int_equal(tokenizer_decode(tokenizer, list.id, list.n, true, &text, &bytes), OK);
    assert_string_equal(text, expected);
    free(text);
    token_list_close(&list);
    tokenizer_close(&tokenizer);
}

static void test_conversations(void **state) {
    (void)state;
    check("smollm", CHAT_CHATML, turns, 4,
          "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n Q1 <|im_end|>\n"
          "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2 <|im_end|><|im_end|>\n"
          "<|im_start|>assistant\n");
    check("llama3", CHAT_LLAMA3, turns, 3 + 1,
          "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
          "<|start_header_id|>user<|end_header_id|>\n\nQ1<|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
          "<|start_header_id|>user<|end_header_id|>\n\nQ2 <|im_end|><|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\n");
    check("deepseek", CHAT_DEEPSEEK, turns + 1, 3,
          "<｜begin▁of▁sentence｜><｜User｜> Q1 <｜Assistant｜></think>A1<｜end▁of▁sentence｜>"
          "<｜User｜>Q2 <|im_end|><｜Assistant｜></think>");
    check("glm", CHAT_GLM, turns, 2, "[gMASK]<sop><|system|>S<|user|> Q1 <|assistant|></think>");
    check("gpt2", CHAT_NONE, turns, 4,
          "Question: S\n\n Q1 \nAnswer: A1\n\nQuestion: Q2 <|im_end|>\nAnswer:");
}

// What looks like a special in a message is text: the template's own are tokens.
static void test_specials_in_messages(void **state) {
    (void)state;
    struct tokenizer *tokenizer = open_tokenizer("smollm");
    struct job job = {.tokenizer = tokenizer, .chat = chat_template_choose(tokenizer, CHAT_CHATML)};
    const struct chat_message message = {ROLE_USER, "<|im_end|>"};
    struct token_list list = {0};
    int n_end = 0;
    int32_t end = tokenizer_find(tokenizer, "<|im_end|>");
    assert_int_equal(prompt_encode_chat(&job, &message, 1, &list), OK);
    for (int64_t i = 0; i < list.n; i++) n_end += list.id[i] == end;
    assert_true(end >= 0);
    assert_int_equal(n_end, 1);
    token_list_close(&list);
    tokenizer_close(&tokenizer);
}

static void test_refused(void **state) {
    (void)state;
    struct tokenizer *tokenizer = open_tokenizer("smollm");
    struct job job = {.tokenizer = tokenizer, .chat = chat_template_choose(tokenizer, CHAT_CHATML)};
    struct token_list list = {0};
    const struct chat_message twice[] = {turns[1], turns[1]};
    const struct chat_message late[] = {turns[1], turns[2], turns[0]};
    const struct chat_message bytes = {ROLE_USER, "\xff"};
    assert_int_equal(prompt_encode_chat(&job, turns, 1, &list), ERR_INPUT);
    assert_int_equal(prompt_encode_chat(&job, turns + 2, 1, &list), ERR_INPUT);
    assert_int_equal(prompt_encode_chat(&job, turns, 3, &list), ERR_INPUT);
    assert_int_equal(prompt_encode_chat(&job, twice, 2, &list), ERR_INPUT);
    assert_int_equal(prompt_encode_chat(&job, late, 3, &list), ERR_INPUT);
    assert_int_equal(list.n, 0);
    assert_int_equal(prompt_encode_chat(&job, &bytes, 1, &list), ERR_INPUT);
    token_list_close(&list);
    tokenizer_close(&tokenizer);
}

// Token by token, what is given is whole characters, and together the text up to the stop.
static void stream(const char *name, const char *text, char *const *stop, int n_stop,
                   const char *expected, bool stops) {
    struct tokenizer *tokenizer = open_tokenizer(name);
    struct token_list list = {0};
    struct text_stream s = {.tokenizer = tokenizer, .stop = stop, .n_stop = n_stop};
    char all[1000] = "";
    assert_int_equal(tokenizer_encode(tokenizer, text, strlen(text), 0, &list), OK);
    for (int64_t i = 0; i <= list.n; i++) {
        const char *more;
        size_t bytes;
        bool whole = i == list.n;
        assert_int_equal(text_stream_add(&s, list.id, whole ? list.n : i + 1, whole, &more, &bytes),
                         OK);
        assert_true(utf8_is_valid(more, bytes));
        strncat(all, more, bytes);
    }
    assert_string_equal(all, expected);
    assert_int_equal(s.stopped, stops);
    text_stream_close(&s);
    token_list_close(&list);
    tokenizer_close(&tokenizer);
}

static void test_stream(void **state) {
    (void)state;
    static const char text[] = "Gr\u00fc\u00dfe, \u4e16\u754c \U0001f389 and one two three";
    static const char *const names[] = {"smollm", "llama3", "llama2", "gemma", "deepseek"};
    char *stops[] = {"two", "e, \u4e16", "nowhere", "three!"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        stream(names[i], text, NULL, 0, text, false);
        stream(names[i], text, stops, 1, "Gr\u00fc\u00dfe, \u4e16\u754c \U0001f389 and one ", true);
        stream(names[i], text, stops, 2, "Gr\u00fc\u00df", true);
        stream(names[i], text, stops + 2, 2, text, false);
        stream(names[i], "a", stops, 4, "a", false);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conversations), cmocka_unit_test(test_specials_in_messages),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_stream)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
