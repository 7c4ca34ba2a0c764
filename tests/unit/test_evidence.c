// How documents are cut into passages.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "launcher/evidence.h"

// Words, spaces and line ends as tokens: a word takes the white space before it.
enum { MOST_BYTES = 5000 };
struct text {
    char bytes[MOST_BYTES + 1];
    int64_t n_token, begin[MOST_BYTES], end[MOST_BYTES];
    struct passage *passages;
    int64_t n_passage;
};

static void cut(const char *source, struct text *t) {
    size_t n = strlen(source);
    assert_true(n <= MOST_BYTES);
    *t = (struct text){.n_token = 0};
    strcpy(t->bytes, source);
    for (size_t i = 0; i < n;) {
        t->begin[t->n_token] = (int64_t)i;
        if (source[i] == '\n') {
            i++;
        } else {
            i += source[i] == ' ';
            while (i < n && source[i] != ' ' && source[i] != '\n') i++;
        }
        t->end[t->n_token++] = (int64_t)i;
    }
    enum status status =
        evidence_cut(t->bytes, t->begin, t->end, t->n_token, &t->passages, &t->n_passage);
    assert_int_equal(status, OK);
    // Whatever the text: passages follow one another, none is too long, bytes are within tokens.
    int64_t token = 0;
    for (int64_t i = 0; i < t->n_passage; i++) {
        const struct passage *p = &t->passages[i];
        assert_int_equal(p->token_begin, token);
        assert_in_range(p->token_end - p->token_begin, 1, PASSAGE_TOKENS);
        assert_true(p->byte_begin >= t->begin[p->token_begin]);
        assert_true(p->byte_end <= t->end[p->token_end - 1]);
        token = p->token_end;
    }
    assert_int_equal(token, t->n_token);
}

static void release(struct text *t) {
    free(t->passages);
}

static char *repeat(const char *text, int n) {
    char *out = calloc((size_t)n + 1, strlen(text));
    assert_non_null(out);
    for (int i = 0; i < n; i++) strcat(out, text);
    return out;
}

static void paragraphs_are_passages(void **state) {
    (void)state;
    struct text t;
    char *words = repeat(" word", 40), source[1000];
    snprintf(source, sizeof source, "first%s\n\nsecond%s\n\n\nthird%s\n", words, words, words);
    cut(source, &t);
    assert_int_equal(t.n_passage, 3);
    assert_memory_equal(t.bytes + t.passages[1].byte_begin, "second", 6);
    assert_memory_equal(t.bytes + t.passages[2].byte_begin, "third", 5);
    release(&t);
    free(words);
}

static void headings_belong_to_what_follows(void **state) {
    (void)state;
    struct text t;
    char *words = repeat(" word", 40), source[1000];
    snprintf(source, sizeof source, "Title\n\nBody%s\n\nEnd%s", words, words);
    cut(source, &t);
    assert_int_equal(t.n_passage, 2);
    assert_int_equal(t.passages[0].byte_begin, 0);
    release(&t);
    free(words);
}

static void long_paragraphs_are_cut_at_sentences(void **state) {
    (void)state;
    struct text t;
    char *source = repeat(" It was a line of ten words that ended here.", 60);
    cut(source, &t);
    for (int64_t i = 0; i < t.n_passage; i++) {
        assert_int_equal(t.bytes[t.passages[i].byte_end - 1], '.');
    }
    release(&t);
    free(source);
}

static void texts_without_any_end_are_cut(void **state) {
    (void)state;
    struct text t;
    char *source = repeat(" word", 1000);
    cut(source, &t);
    assert_int_equal(t.n_passage, (1000 + PASSAGE_TOKENS - 1) / PASSAGE_TOKENS);
    release(&t);
    free(source);
    cut("\n", &t);
    assert_int_equal(t.n_passage, 1);
    release(&t);
}

static void token_files_are_cut_by_length(void **state) {
    (void)state;
    struct passage *passages;
    int64_t n;
    assert_int_equal(evidence_cut(NULL, NULL, NULL, 300, &passages, &n), OK);
    assert_int_equal(n, 3);
    assert_int_equal(passages[2].token_end, 300);
    assert_int_equal(passages[2].byte_begin, -1);
    free(passages);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(paragraphs_are_passages),
        cmocka_unit_test(headings_belong_to_what_follows),
        cmocka_unit_test(long_paragraphs_are_cut_at_sentences),
        cmocka_unit_test(texts_without_any_end_are_cut),
        cmocka_unit_test(token_files_are_cut_by_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
