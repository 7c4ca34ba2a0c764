// Passages: paragraphs to the byte, given spans in bytes and tokens, and the file that gives them.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "launcher/passages.h"

// A text whose tokens are words with the white space before them, between two specials.
struct tokenised {
    struct document_text text;
    int64_t begin[200], end[200];
    char bytes[1000];
};

static void tokenise(const char *source, struct tokenised *t) {
    *t = (struct tokenised){0};
    size_t n = strlen(source), at = 0;
    int64_t n_token = 1;
    strcpy(t->bytes, source);
    while (at < n) {
        t->begin[n_token] = (int64_t)at;
        at += strspn(source + at, " \n\t\r");
        at += strcspn(source + at, " \n\t\r");
        t->end[n_token++] = (int64_t)at;
    }
    t->begin[n_token] = t->end[n_token] = (int64_t)n;
    t->text = (struct document_text){
        .text = t->bytes,
        .bytes = n,
        .tokens = {.n = n_token + 1, .byte_begin = t->begin, .byte_end = t->end}};
}

static void check_paragraphs(const char *source, int n, const char *const *expected) {
    struct tokenised t;
    struct passage_list list = {0};
    tokenise(source, &t);
    assert_int_equal(passages_paragraphs(&t.text, "text", &list), OK);
    assert_int_equal(list.n, n);
    for (int i = 0; i < n; i++) {
        const struct text_passage *p = &list.items[i];
        assert_int_equal(p->byte_end - p->byte_begin, strlen(expected[i]));
        assert_memory_equal(source + p->byte_begin, expected[i], strlen(expected[i]));
        assert_true(p->token_begin < p->token_end);
        assert_true(i == 0 || p->token_begin >= list.items[i - 1].token_end);
    }
    passage_list_close(&list);
}

static void paragraphs_are_cut_at_blank_lines(void **state) {
    (void)state;
    check_paragraphs("one two\nthree\n\nfour", 2, (const char *[]){"one two\nthree", "four"});
    check_paragraphs("\n\n  one\r\n \t\r\ntwo \n\n", 2, (const char *[]){"one", "two"});
    check_paragraphs("a\n\n\n\nb\n", 2, (const char *[]){"a", "b"});
    check_paragraphs("a", 1, (const char *[]){"a"});
    check_paragraphs("a\n", 1, (const char *[]){"a"});
    check_paragraphs(" \n\n\t\n", 0, NULL);
}

static struct passage_list given(const struct document_text *text, const char *lines,
                                 enum span_unit unit, enum status code, const char *message) {
    struct span_file file = {0};
    struct passage_list list = {0};
    assert_int_equal(span_file_parse(lines, strlen(lines), "spans", &file), OK);
    assert_int_equal(passages_given(text, "text", &file, unit, &list), code);
    if (code != OK && !strstr(status_message(), message)) fail_msg("%s", status_message());
    span_file_close(&file);
    return list;
}

static void tokens_lie_where_they_begin(void **state) {
    (void)state;
    struct tokenised t;
    tokenise("one two three", &t); // [special] "one" " two" " three" [special]
    struct passage_list list = given(&t.text, "0 5\n5 13\n4 8\n0 13\n", SPAN_BYTE, OK, NULL);
    const int64_t begin[] = {1, 3, 2, 1}, end[] = {3, 4, 3, 4};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(list.items[i].token_begin, begin[i]);
        assert_int_equal(list.items[i].token_end, end[i]);
    }
    passage_list_close(&list);
    list = given(&t.text, "5 8\n", SPAN_BYTE, ERR_INPUT, "spans:1: no token of text begins");
    passage_list_close(&list);
    list = given(&t.text, "0 5\n0 14\n", SPAN_BYTE, ERR_INPUT, "spans:2: the span ends at 14");
    passage_list_close(&list);
}

static void tokens_have_bytes(void **state) {
    (void)state;
    struct tokenised t;
    tokenise("one two three", &t);
    struct passage_list list = given(&t.text, "0 5\n2 4\n", SPAN_TOKEN, OK, NULL);
    assert_int_equal(list.items[0].byte_end, 13);
    assert_int_equal(list.items[1].byte_begin, 3);
    assert_int_equal(list.items[1].byte_end, 13);
    passage_list_close(&list);
    list = given(&t.text, "0 6\n", SPAN_TOKEN, ERR_INPUT, "has 5 tokens");
    passage_list_close(&list);
}

static void bytes_are_those_of_the_file(void **state) {
    (void)state;
    struct tokenised t;
    tokenise("one two", &t);
    t.text.mark_bytes = 3;
    struct passage_list list = given(&t.text, "0 6\n7 10\n", SPAN_BYTE, OK, NULL);
    assert_int_equal(list.items[0].byte_begin, 0);
    assert_int_equal(list.items[0].byte_end, 3);
    assert_int_equal(list.items[1].token_begin, 2);
    passage_list_close(&list);
    list = given(&t.text, "0 3\n", SPAN_BYTE, ERR_INPUT, "no token");
    passage_list_close(&list);
}

static void token_files_have_tokens_only(void **state) {
    (void)state;
    struct document_text text = {.tokens = {.n = 5}};
    struct passage_list list = given(&text, "1 5\n", SPAN_TOKEN, OK, NULL);
    assert_int_equal(list.items[0].byte_begin, -1);
    passage_list_close(&list);
    list = given(&text, "1 5\n", SPAN_BYTE, ERR_INPUT, "span_unit = token");
    assert_int_equal(passages_paragraphs(&text, "text", &list), ERR_INPUT);
    assert_int_equal(passages_whole(&text, &list), OK);
    assert_int_equal(list.items[0].token_end, 5);
    passage_list_close(&list);
}

static void frames_are_tokens_without_bytes(void **state) {
    (void)state;
    struct tokenised t;
    int64_t n_head, n_tail;
    tokenise("one two", &t);
    passages_frame(&t.text, &n_head, &n_tail);
    assert_int_equal(n_head, 1);
    assert_int_equal(n_tail, 1);
    tokenise("", &t); // specials alone
    passages_frame(&t.text, &n_head, &n_tail);
    assert_int_equal(n_head + n_tail, t.text.tokens.n);
}

static void lines_are_read(void **state) {
    (void)state;
    struct span_file file = {0};
    const char *lines = "  0\t4  \n\n{\"end\": 9, \"start\": 4, \"document\": \"a b\"}\r\n10 12";
    assert_int_equal(span_file_parse(lines, strlen(lines), "spans", &file), OK);
    assert_int_equal(file.n, 3);
    assert_int_equal(file.lines[1].begin, 4);
    assert_int_equal(file.lines[1].end, 9);
    assert_string_equal(file.lines[1].document, "a b");
    assert_int_equal(file.lines[2].line, 4);
    span_file_close(&file);
}

static void refuse(const char *lines, size_t bytes, const char *message) {
    struct span_file file = {0};
    assert_int_equal(span_file_parse(lines, bytes, "spans", &file), ERR_INPUT);
    if (!strstr(status_message(), message)) fail_msg("%s", status_message());
    span_file_close(&file);
}

static void what_is_no_span_is_refused(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"", "holds no spans"},
        {"1\n", "spans:1: '1' is not a span"},
        {"0 1\n0 1 2\n", "spans:2:"},
        {"0 +1\n", "not a span"},
        {"0 1.5\n", "not a span"},
        {"0 99999999999999999999\n", "not a span"},
        {"5 5\n", "ends behind its start"},
        {"{}\n", "whole numbers"},
        {"{\"start\": 0, \"end\": 2.0}\n", "whole numbers"},
        {"{\"start\": -1, \"end\": 2}\n", "begins at 0"},
        {"{\"start\": 0, \"end\": 2, \"document\": 1}\n", "a name in quotes"},
        {"{\"start\": 0, \"start\": 0, \"end\": 2}\n", "spans:1:"},
        {"{\"start\": 0, \"end\": 2} 3\n", "spans:1:"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(cases[i][0], strlen(cases[i][0]), cases[i][1]);
    refuse("0 1\0\n", 5, "a zero byte");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(paragraphs_are_cut_at_blank_lines),
        cmocka_unit_test(tokens_lie_where_they_begin),
        cmocka_unit_test(tokens_have_bytes),
        cmocka_unit_test(bytes_are_those_of_the_file),
        cmocka_unit_test(token_files_have_tokens_only),
        cmocka_unit_test(frames_are_tokens_without_bytes),
        cmocka_unit_test(lines_are_read),
        cmocka_unit_test(what_is_no_span_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
