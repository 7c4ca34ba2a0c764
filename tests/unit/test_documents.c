// Documents: lists and globs, byte order marks, standard input's rules, token files, refusals.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "launcher/documents.h"

static char folder[] = "/tmp/halka-documents-XXXXXX";
static struct tokenizer *tokenizer;
static struct comm comm;
static struct document_reader reader;

static char *path_of(const char *name) {
    static char path[8][256];
    static int next;
    char *out = path[next++ % 8];
    snprintf(out, sizeof path[0], "%s/%s", folder, name);
    return out;
}

static void write_file(const char *name, const char *text, size_t bytes) {
    FILE *file = fopen(path_of(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, bytes, file), bytes);
    fclose(file);
}

static enum status open_documents(const char *key, const char *value, struct document_set *set) {
    struct options options;
    assert_int_equal(options_set_defaults(&options), OK);
    assert_int_equal(options_set(&options, key, value, SOURCE_JOB_FILE, "test"), OK);
    *set = (struct document_set){0};
    enum status status = document_set_open(&options, &reader, set);
    options_close(&options);
    return status;
}

static void refuse(const char *key, const char *name, enum status code, const char *message) {
    struct document_set set;
    assert_int_equal(open_documents(key, path_of(name), &set), code);
    if (!strstr(status_message(), message)) fail_msg("%s", status_message());
    document_set_close(&set);
}

static int set_up(void **state) {
    (void)state;
    if (!mkdtemp(folder) || comm_self_open(&comm, NULL) != OK) return -1;
    if (tokenizer_open_json("tests/fixtures/tokenizers/smollm.json", &tokenizer) != OK) return -1;
    reader = (struct document_reader){.tokenizer = tokenizer,
                                      .n_vocab = tokenizer_size(tokenizer),
                                      .encode_flags = ENCODE_ADD_SPECIALS};
    write_file("plain.txt", "Ring attention.", 15);
    write_file("marked.txt", "\xef\xbb\xbfRing attention.", 18);
    write_file("list", "\n", 0);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    char command[300];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    tokenizer_close(&tokenizer);
    comm_close(&comm);
    return system(command);
}

static void a_byte_order_mark_is_not_text(void **state) {
    (void)state;
    struct document_text plain, marked;
    struct document_set set;
    assert_int_equal(open_documents("document.path", path_of("*.txt"), &set), OK);
    assert_int_equal(set.n, 2); // in order of name: marked, plain
    assert_string_not_equal(set.items[0].digest, set.items[1].digest);
    assert_int_equal(document_text_open(&set, 0, &reader, &comm, &marked), OK);
    assert_int_equal(document_text_open(&set, 1, &reader, &comm, &plain), OK);
    assert_int_equal(marked.mark_bytes, 3);
    assert_int_equal(plain.mark_bytes, 0);
    assert_string_equal(marked.text, "Ring attention.");
    assert_int_equal(marked.tokens.n, plain.tokens.n);
    assert_int_equal(set.items[0].n_token, plain.tokens.n);
    assert_memory_equal(marked.tokens.id, plain.tokens.id, (size_t)plain.tokens.n * 4);
    document_text_close(&marked);
    document_text_close(&plain);
    document_set_close(&set);
}

static void a_list_names_one_document_a_line(void **state) {
    (void)state;
    struct document_set set;
    char text[600];
    int n = snprintf(text, sizeof text, "%s\r\n\n%s", path_of("plain.txt"), path_of("marked.txt"));
    write_file("list", text, (size_t)n);
    assert_int_equal(open_documents("document.list", path_of("list"), &set), OK);
    assert_int_equal(set.n, 2);
    assert_string_equal(set.items[1].name, path_of("marked.txt"));
    document_set_close(&set);
    write_file("list", "\n\n", 2);
    refuse("document.list", "list", ERR_INPUT, "names no document");
}

static void a_document_that_changes_is_refused(void **state) {
    (void)state;
    struct document_set set;
    struct document_text text;
    write_file("changing", "one", 3);
    assert_int_equal(open_documents("document.path", path_of("changing"), &set), OK);
    write_file("changing", "two", 3);
    assert_int_equal(document_text_open(&set, 0, &reader, &comm, &text), ERR_IO);
    document_text_close(&text);
    document_set_close(&set);
}

static void bad_documents_are_refused(void **state) {
    (void)state;
    write_file("empty", "", 0);
    write_file("invalid", "abc \xff", 5);
    write_file("surrogate", "\xed\xa0\x80", 3);
    refuse("document.path", "none", ERR_NO_INPUT, "none: cannot open");
    refuse("document.path", "none*", ERR_NO_INPUT, "no file matches");
    refuse("document.path", "", ERR_NO_INPUT, "is a folder");
    refuse("document.path", "empty", ERR_INPUT, "empty is empty");
    refuse("document.path", "invalid", ERR_INPUT, "4");
    refuse("document.path", "surrogate", ERR_INPUT, "surrogate: ");
}

static enum status parse(const char *text, struct token_list *out) {
    *out = (struct token_list){0};
    return document_parse_tokens(text, strlen(text), "ids", 50, out);
}

static void token_files_are_parsed(void **state) {
    (void)state;
    static const char *const bad[] = {
        "",   " \n", "x", "1 x", "1,2", "1.5", "-1", "50", "1e1", "0x1", "1 99999999999999999999",
        "1-2"};
    struct token_list list;
    assert_int_equal(parse(" 3\t4\n\r\n49 0", &list), OK);
    assert_int_equal(list.n, 4);
    assert_int_equal(list.id[2], 49);
    token_list_close(&list);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(parse(bad[i], &list), ERR_INPUT);
        token_list_close(&list);
    }
    char many[20000] = "";
    for (int i = 0; i < 9000; i++) strcpy(many + 2 * i, "7 ");
    assert_int_equal(parse(many, &list), OK);
    assert_int_equal(list.n, 9000);
    token_list_close(&list);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_byte_order_mark_is_not_text),
        cmocka_unit_test(a_list_names_one_document_a_line),
        cmocka_unit_test(a_document_that_changes_is_refused),
        cmocka_unit_test(bad_documents_are_refused),
        cmocka_unit_test(token_files_are_parsed),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
