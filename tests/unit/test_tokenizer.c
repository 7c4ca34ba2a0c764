// The tokenizer against Hugging Face tokenizers on tests/fixtures/tokenizers (see
// scripts/make_tokenizer_fixtures.py), and its own promises: offsets, flags, limits.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/tokenizer.h"

#define FOLDER "tests/fixtures/tokenizers/"
enum { N_LINE = 2316, N_TURN = 163 };

static char *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*bytes + 1);
    assert_int_equal(fread(data, 1, *bytes, file), *bytes);
    data[*bytes] = 0;
    fclose(file);
    return data;
}

struct line {
    char *text;
    size_t bytes;
};

// A file of n_line lines with its escapes undone; texts point into *data.
static void read_lines(const char *path, size_t n_line, char **data, struct line line[n_line]) {
    size_t bytes, n = 0;
    *data = read_file(path, &bytes);
    assert_non_null(*data);
    char *out = *data, *begin = out;
    for (const char *in = *data, *end = in + bytes; in < end; in++) {
        if (*in == '\n') {
            assert_true(n < n_line);
            line[n++] = (struct line){.text = begin, .bytes = (size_t)(out - begin)};
            begin = out;
        } else if (*in == '\\') {
            in++;
            *out++ = *in == 'n' ? '\n' : *in == 'r' ? '\r' : *in == 't' ? '\t' : '\\';
        } else {
            *out++ = *in;
        }
    }
    assert_int_equal(n, n_line);
}

static uint32_t crc32_add(uint32_t crc, const void *data, size_t bytes) {
    const unsigned char *byte = data;
    crc = ~crc;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= byte[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0xEDB88320) : 0);
    }
    return ~crc;
}

static void must(enum status status) {
    if (status != OK) fail_msg("status %d: %s", status, status_message());
}

struct opened {
    struct tokenizer *tokenizer;
    struct gguf *gguf;
    char *data;
};

static void open_path(const char *path, struct opened *out) {
    size_t bytes;
    *out = (struct opened){0};
    if (strstr(path, ".json")) {
        must(tokenizer_open_json(path, &out->tokenizer));
        return;
    }
    out->data = read_file(path, &bytes);
    assert_non_null(out->data);
    must(gguf_parse(out->data, bytes, path, &out->gguf));
    must(tokenizer_open(NULL, out->gguf, &out->tokenizer));
}

static void close_opened(struct opened *opened) {
    tokenizer_close(&opened->tokenizer);
    gguf_close(&opened->gguf);
    free(opened->data);
}

static void check_offsets(const struct token_list *list, size_t bytes) {
    int64_t at = 0;
    for (int64_t i = 0; i < list->n; i++) {
        assert_true(list->byte_begin[i] >= at && list->byte_end[i] >= list->byte_begin[i]);
        at = list->byte_end[i];
    }
    assert_true(at <= (int64_t)bytes);
}

static uint32_t line_crc(const struct tokenizer *t, const struct line *line,
                         struct token_list *parsed) {
    struct token_list plain = {0};
    char *text;
    size_t bytes;
    parsed->n = 0;
    must(tokenizer_encode(t, line->text, line->bytes, ENCODE_ADD_SPECIALS | ENCODE_PARSE_SPECIALS,
                          parsed));
    must(tokenizer_encode(t, line->text, line->bytes, 0, &plain));
    must(tokenizer_decode(t, parsed->id, parsed->n, false, &text, &bytes));
    check_offsets(parsed, line->bytes);
    check_offsets(&plain, line->bytes);
    uint32_t crc = crc32_add(0, parsed->id, (size_t)parsed->n * sizeof(int32_t));
    crc = crc32_add(crc, plain.id, (size_t)plain.n * sizeof(int32_t));
    crc = crc32_add(crc, text, bytes);
    free(text);
    token_list_close(&plain);
    return crc;
}

// Every line of the file (of at most N_LINE) gives Hugging Face's ids and text; returns the lines
// that differ.
static int count_wrong(const struct tokenizer *t, const char *lines_path, int n_line,
                       const char *expect_path, const char *name) {
    static struct line line[N_LINE];
    char *lines;
    read_lines(lines_path, (size_t)n_line, &lines, line);
    FILE *file = fopen(expect_path, "r");
    assert_non_null(file);
    char *row = NULL;
    size_t room = 0;
    int wrong = 0;
    struct token_list list = {0};
    for (int i = 0; i < n_line; i++) {
        assert_true(getline(&row, &room, file) > 0);
        if (row[0] == '-') continue;
        char *rest;
        uint32_t expected = (uint32_t)strtoul(row, &rest, 16);
        bool same = line_crc(t, &line[i], &list) == expected;
        for (int64_t k = 0; i % 20 == 0 && k < list.n; k++) {
            char *before = rest;
            if (strtol(before, &rest, 10) != list.id[k] || rest == before) same = false;
        }
        if (!same && wrong++ < 5)
            print_message("%s differs at line %d: %.60s\n", name, i + 1, line[i].text);
    }
    token_list_close(&list);
    free(row);
    fclose(file);
    free(lines);
    return wrong;
}

static void test_equals_hugging_face(void **state) {
    (void)state;
    static const char *const files[][2] = {
        {"smollm.json", "smollm"},
        {"smollm.gguf", "smollm"},
        {"gpt2.json", "gpt2"},
        {"gpt2.gguf", "gpt2"},
        {"llama3.json", "llama3"},
        {"llama3.gguf", "llama3"},
        {"qwen2.json", "qwen2"},
        {"qwen2.gguf", "qwen2"},
        {"llama2.json", "llama2"},
        {"llama2.gguf", "llama2"},
        {"gemma.json", "gemma"},
        {"gemma.gguf", "gemma"},
        {"mistral.json", "mistral"},
        {"mixed.json", "mixed"},
        {"deepseek.json", "deepseek"},
        {"deepseek.gguf", "deepseek"},
        {"glm.json", "glm"},
        {"glm.gguf", "glm"},
        {"modernbert.json", "modernbert"},
        {"roberta.json", "roberta"},
        {"bert.json", "bert"},
        {"bert-cased.json", "bert-cased"},
        {"unigram.json", "unigram"},
    };
    int wrong = 0;
    for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++) {
        char path[128], expect[128];
        struct opened opened;
        snprintf(path, sizeof(path), FOLDER "%s", files[i][0]);
        snprintf(expect, sizeof(expect), FOLDER "%s.expect", files[i][1]);
        open_path(path, &opened);
        wrong += count_wrong(opened.tokenizer, FOLDER "corpus.txt", N_LINE, expect, files[i][0]);
        close_opened(&opened);
    }
    assert_int_equal(wrong, 0);
}

static void test_chat_markers(void **state) {
    (void)state;
    static const char *const files[][2] = {{"deepseek.json", "deepseek"},
                                           {"deepseek.gguf", "deepseek"},
                                           {"glm.json", "glm"},
                                           {"glm.gguf", "glm"}};
    int wrong = 0;
    for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++) {
        char path[128], expect[128];
        struct opened opened;
        snprintf(path, sizeof(path), FOLDER "%s", files[i][0]);
        snprintf(expect, sizeof(expect), FOLDER "%s.turns", files[i][1]);
        open_path(path, &opened);
        wrong += count_wrong(opened.tokenizer, FOLDER "turns.txt", N_TURN, expect, files[i][0]);
        close_opened(&opened);
    }
    assert_int_equal(wrong, 0);
}

static bool demo_model(char path[4096]) {
    const char *cache = getenv("HALKA_CACHE"), *home = getenv("HOME");
    snprintf(path, 4096, "%s%s/SmolLM2-135M-Instruct.Q4_1.gguf",
             cache  ? cache
             : home ? home
                    : ".",
             cache ? "" : "/.cache/halka");
    return access(path, R_OK) == 0;
}

static void test_published_vocabulary(void **state) {
    (void)state;
    char path[4096];
    if (!demo_model(path)) skip();
    struct opened opened;
    open_path(path, &opened);
    assert_int_equal(tokenizer_size(opened.tokenizer), 49152);
    assert_int_equal(tokenizer_eos(opened.tokenizer), 2);
    assert_int_equal(tokenizer_find(opened.tokenizer, "<|im_end|>"), 2);
    assert_non_null(strstr(tokenizer_chat_template(opened.tokenizer), "<|im_start|>"));
    assert_int_equal(count_wrong(opened.tokenizer, FOLDER "corpus.txt", N_LINE,
                                 FOLDER "smollm2.expect", "SmolLM2"),
                     0);
    close_opened(&opened);
}

static void encode(const struct tokenizer *t, const char *text, size_t bytes, int flags,
                   struct token_list *list) {
    list->n = 0;
    must(tokenizer_encode(t, text, bytes, flags, list));
}

static void test_round_trip(void **state) {
    (void)state;
    static const char *const exact[] = {"smollm", "gpt2",   "llama3", "deepseek",
                                        "glm",    "llama2", "gemma"};
    static struct line line[N_LINE];
    char *corpus;
    read_lines(FOLDER "corpus.txt", N_LINE, &corpus, line);
    for (size_t k = 0; k < sizeof(exact) / sizeof(*exact); k++) {
        char path[128];
        struct opened opened;
        struct token_list list = {0};
        snprintf(path, sizeof(path), FOLDER "%s.json", exact[k]);
        open_path(path, &opened);
        for (int i = 0; i < N_LINE; i++) {
            char *text;
            size_t bytes;
            // SentencePiece's mark in a text cannot be told from a space.
            if (strstr(line[i].text, "▁") && k >= 5) continue;
            encode(opened.tokenizer, line[i].text, line[i].bytes, 0, &list);
            must(tokenizer_decode(opened.tokenizer, list.id, list.n, true, &text, &bytes));
            assert_int_equal(bytes, line[i].bytes);
            assert_memory_equal(text, line[i].text, bytes);
            // The tokens tile the text.
            for (int64_t j = 0; j < list.n; j++)
                assert_int_equal(list.byte_begin[j], j ? list.byte_end[j - 1] : 0);
            if (list.n > 0) assert_int_equal(list.byte_end[list.n - 1], bytes);
            free(text);
        }
        token_list_close(&list);
        close_opened(&opened);
    }
    free(corpus);
}

static void test_offsets(void **state) {
    (void)state;
    struct opened opened;
    struct token_list list = {0};
    // NFC makes one character of e and its accent: three bytes of the text, on its first token.
    const char *text = "xe\xCC\x81y<|im_end|>";
    open_path(FOLDER "qwen2.json", &opened);
    encode(opened.tokenizer, text, strlen(text), ENCODE_PARSE_SPECIALS, &list);
    int64_t last = list.n - 1;
    assert_int_equal(list.id[last], tokenizer_find(opened.tokenizer, "<|im_end|>"));
    assert_int_equal(list.byte_begin[last], 5);
    assert_int_equal(list.byte_end[last], 15);
    for (int64_t i = 0; i <= last; i++) {
        assert_int_not_equal(list.byte_begin[i], 2);
        assert_int_not_equal(list.byte_begin[i], 3);
    }
    close_opened(&opened);

    // A prefix and added specials cover nothing; a second text's offsets start at 0 again.
    open_path(FOLDER "llama2.json", &opened);
    list.n = 0;
    must(tokenizer_encode(opened.tokenizer, "ab", 2, ENCODE_ADD_SPECIALS, &list));
    assert_int_equal(list.id[0], tokenizer_find(opened.tokenizer, "<s>"));
    assert_int_equal(list.byte_begin[0], 0);
    assert_int_equal(list.byte_end[0], 0);
    assert_int_equal(list.byte_begin[1], 0);
    assert_int_equal(list.byte_end[list.n - 1], 2);
    int64_t n = list.n;
    must(tokenizer_encode(opened.tokenizer, "ab", 2, 0, &list));
    assert_int_equal(list.byte_begin[n], 0);
    assert_int_equal(list.byte_end[list.n - 1], 2);
    close_opened(&opened);
    token_list_close(&list);
}

static void test_flags(void **state) {
    (void)state;
    struct opened opened;
    struct token_list list = {0};
    char *text;
    size_t bytes;
    open_path(FOLDER "llama2.json", &opened);
    const struct tokenizer *t = opened.tokenizer;
    int32_t mark = tokenizer_find(t, "▁"), byte = tokenizer_find(t, "<0x7F>");
    assert_true(mark >= 0 && byte >= 0);
    encode(t, "\x7F", 1, 0, &list);
    assert_int_equal(list.n, 2);
    assert_int_equal(list.id[0], mark);
    assert_int_equal(list.id[1], byte);
    encode(t, "\x7F", 1, ENCODE_CONTINUE, &list);
    assert_int_equal(list.n, 1);
    assert_int_equal(list.id[0], byte);
    // A special in the text is plain text unless it is asked for; decoding leaves it out.
    encode(t, "</s>", 4, 0, &list);
    for (int64_t i = 0; i < list.n; i++) assert_false(tokenizer_is_special(t, list.id[i]));
    encode(t, "\x7F</s>\x7F", 6, ENCODE_PARSE_SPECIALS, &list);
    assert_int_equal(list.n, 5);
    assert_true(tokenizer_is_special(t, list.id[2]));
    must(tokenizer_decode(t, list.id, list.n, false, &text, &bytes));
    assert_string_equal(text, "\x7F \x7F");
    free(text);
    must(tokenizer_decode(t, list.id, list.n, true, &text, &bytes));
    assert_string_equal(text, "\x7F</s> \x7F");
    free(text);
    // Part of a character's bytes.
    encode(t, "\xF4\x8F\xBF\xBF", 4, ENCODE_CONTINUE, &list);
    assert_int_equal(list.n, 4);
    must(tokenizer_decode(t, list.id, 2, true, &text, &bytes));
    assert_int_equal(bytes, 2);
    assert_memory_equal(text, "\xF4\x8F", 2);
    free(text);
    int32_t outside = (int32_t)tokenizer_size(t);
    assert_int_equal(tokenizer_decode(t, &outside, 1, true, &text, &bytes), ERR_INPUT);
    assert_int_equal(tokenizer_find(t, "no such token"), -1);
    token_list_close(&list);
    close_opened(&opened);
}

static void test_malformed_text(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t bytes;
        const char *offset;
    } cases[] = {
        {"abc\xFF", 4, "byte 3"},          {"\xC0\x80", 2, "byte 0"},
        {"ok \xE2\x82", 5, "byte 3"},      {"\xED\xA0\x80", 3, "byte 0"},
        {"0123456789\x80", 11, "byte 10"}, {"é\xF4\x90\x80\x80", 6, "byte 2"},
        {"a\xE0\x80\x80", 4, "byte 1"},    {"\xF0\x9F\x98z", 4, "byte 0"},
    };
    struct opened opened;
    struct token_list list = {0};
    open_path(FOLDER "smollm.json", &opened);
    must(tokenizer_encode(opened.tokenizer, "one", 3, 0, &list));
    int64_t n = list.n;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        assert_int_equal(
            tokenizer_encode(opened.tokenizer, cases[i].text, cases[i].bytes, 0, &list), ERR_INPUT);
        assert_non_null(strstr(status_message(), cases[i].offset));
        assert_int_equal(list.n, n);
    }
    token_list_close(&list);
    close_opened(&opened);
}

// A megabyte without a break, of letters, spaces, line feeds, digits, marks out of order: what is
// quadratic anywhere takes minutes.
static void test_hostile_text(void **state) {
    (void)state;
    static const char *const units[] = {
        "a", "ab",           " ",  "\n",  " \n",       "7", "\xCC\x81\xCC\xA3", "<|",
        "▁", "\xE6\xBC\xA2", "<s", "  x", "\t\t\t\t\r"};
    static const char *const names[] = {"smollm", "llama3",     "qwen2",   "llama2",
                                        "gemma",  "mixed",      "mistral", "deepseek",
                                        "bert",   "modernbert", "unigram"};
    enum { SIZE = 1 << 20, LIMIT_SECONDS = 10 };
    char *text = malloc(SIZE + 8);
    struct token_list list = {0};
    for (size_t k = 0; k < sizeof(names) / sizeof(*names); k++) {
        char path[128];
        struct opened opened;
        snprintf(path, sizeof(path), FOLDER "%s.json", names[k]);
        open_path(path, &opened);
        for (size_t u = 0; u < sizeof(units) / sizeof(*units); u++) {
            size_t n = strlen(units[u]), bytes = 0;
            for (; bytes + n <= SIZE; bytes += n) memcpy(text + bytes, units[u], n);
            clock_t start = clock();
            encode(opened.tokenizer, text, bytes, ENCODE_PARSE_SPECIALS, &list);
            double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
            if (seconds > LIMIT_SECONDS) fail_msg("%s, unit %zu: %.1f s", names[k], u, seconds);
            check_offsets(&list, bytes);
            bool drops_spaces = !strcmp(names[k], "bert") || !strcmp(names[k], "unigram");
            assert_true(list.n > 0 || drops_spaces);
        }
        close_opened(&opened);
    }
    token_list_close(&list);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equals_hugging_face),
        cmocka_unit_test(test_chat_markers),
        cmocka_unit_test(test_published_vocabulary),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_offsets),
        cmocka_unit_test(test_flags),
        cmocka_unit_test(test_malformed_text),
        cmocka_unit_test(test_hostile_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
