// The option table and its readers: defaults, sources, choices, nearest keys.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "launcher/options.h"

static void table_is_consistent(void **state) {
    (void)state;
    struct options options;
    assert_int_equal(options_set_defaults(&options), OK);
    for (int i = 0; i < n_option; i++) {
        const struct option *o = &option_table[i];
        char text[64];
        assert_ptr_equal(option_find(o->path), o);
        assert_ptr_equal(option_nearest(o->path), o);
        assert_non_null(strchr(o->path, '.'));
        option_format(&options, o, text, sizeof text);
        assert_string_equal(text, o->initial ? o->initial : "");
        assert_true(o->type != OPTION_CHOICE || o->choices);
    }
    options_close(&options);
}

static void every_choice_is_read_back(void **state) {
    (void)state;
    struct options options;
    assert_int_equal(options_set_defaults(&options), OK);
    for (int i = 0; i < n_option; i++) {
        const struct option *o = &option_table[i];
        if (o->type != OPTION_CHOICE) continue;
        char words[128], text[64];
        snprintf(words, sizeof words, "%s", o->choices);
        for (char *rest = words, *word; (word = strsep(&rest, "|"));) {
            assert_int_equal(options_set(&options, o->path, word, SOURCE_JOB_FILE, "test"), OK);
            option_format(&options, o, text, sizeof text);
            assert_string_equal(text, word);
        }
        assert_int_equal(options_set(&options, o->path, o->choices, SOURCE_JOB_FILE, "test"),
                         ERR_CONFIG);
        assert_int_equal(options_set(&options, o->path, "", SOURCE_JOB_FILE, "test"), ERR_CONFIG);
    }
    options_close(&options);
}

static void limits_are_kept(void **state) {
    (void)state;
    struct options options;
    assert_int_equal(options_set_defaults(&options), OK);
    for (int i = 0; i < n_option; i++) {
        const struct option *o = &option_table[i];
        if (o->type != OPTION_INT && o->type != OPTION_REAL) continue;
        const double values[] = {o->least, o->most, o->least - 1, o->most * 2 + 1};
        for (int v = 0; v < 4; v++) {
            char text[64];
            snprintf(text, sizeof text, "%.17g", values[v]);
            assert_int_equal(options_set(&options, o->path, text, SOURCE_COMMAND_LINE, "--set"),
                             v < 2 ? OK : ERR_CONFIG);
        }
        assert_int_equal(options_set(&options, o->path, "1x", SOURCE_COMMAND_LINE, "--set"),
                         ERR_CONFIG);
    }
    options_close(&options);
}

static void lists_add_within_a_source_and_replace_across(void **state) {
    (void)state;
    struct options options;
    assert_int_equal(options_set_defaults(&options), OK);
    assert_int_equal(
        options_read_job_text(&options, "task: { questions = [\"a\", \"b\"]; };", "job"), OK);
    assert_int_equal(options.questions.n, 2);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(
            options_set(&options, "task.questions", "c", SOURCE_COMMAND_LINE, "--question"), OK);
    }
    assert_int_equal(options.questions.n, 3);
    assert_string_equal(options.questions.items[0], "c");
    options_close(&options);
}

static void mistakes_name_line_and_nearest_key(void **state) {
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"run: {\n  thread = 2;\n};",
         "job:2: unknown key 'run.thread'; did you mean 'run.threads'?"},
        {"max_tokens = 2;", "job:1: unknown key 'max_tokens'; did you mean 'task.max_tokens'?"},
        {"\ntask = 3;", "job:2: task is a group of keys, not one of them"},
        {"task: { questons = []; };",
         "unknown key 'task.questons'; did you mean 'task.questions'?"},
        {"kv: { presicion = \"fp32\"; };", "did you mean 'kv.precision'?"},
        {"\nprefil: { chunk = 1; };", "job:2: unknown group 'prefil'; did you mean 'prefill'?"},
        {"run: { threads: { a = 1; }; };", "job:1: run.threads must be a value, not a group"},
        {"task: { questions = ([1]); };", "must hold texts"},
        {"task: { token_logprobs = 1; };", "true or false"},
        {"task: { token_logprobs = \"true\"; };", "without quotes"},
        {"task: { kind = true; };", "text in quotes"},
        {"run: { seed = -1; };", "between 0 and"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct options options;
        assert_int_equal(options_set_defaults(&options), OK);
        assert_int_equal(options_read_job_text(&options, cases[i].text, "job"), ERR_CONFIG);
        if (!strstr(status_message(), cases[i].message)) fail_msg("%s", status_message());
        options_close(&options);
    }
}

static void truth_may_be_a_choice(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int value;
    } cases[] = {{"", TRUTH_AUTO},
                 {"task: { normalise = \"auto\"; };", TRUTH_AUTO},
                 {"task: { normalise = true; };", TRUTH_YES},
                 {"task: { normalise = \"true\"; };", TRUTH_YES},
                 {"task: { normalise = false; };", TRUTH_NO}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct options options;
        assert_int_equal(options_set_defaults(&options), OK);
        assert_int_equal(options_read_job_text(&options, cases[i].text, "job"), OK);
        assert_int_equal(options.normalise, cases[i].value);
        options_close(&options);
    }
}

static void command_line_is_parsed(void **state) {
    (void)state;
    struct options options;
    char *good[] = {"halka", "run",   "--model=m",  "--document", "-", "--tokens",
                    "t",     "--set", "run.seed=7", "--output",   "o", "--overwrite"};
    assert_int_equal(options_parse(sizeof good / sizeof *good, good, &options), OK);
    assert_int_equal(options.verb, VERB_RUN);
    assert_string_equal(options.model_path, "m");
    assert_string_equal(options.documents.items[0], "-");
    assert_int_equal(options.token_files.n, 1);
    assert_int_equal(options.seed, 7);
    assert_true(options.overwrite);
    assert_null(options.job_file);
    options_close(&options);
    char *unknown[] = {"halka", "run", "--set", "run.sed=7"};
    assert_int_equal(options_parse(4, unknown, &options), ERR_USAGE);
    options_close(&options);
}

static void edit_distances(void **state) {
    (void)state;
    assert_int_equal(edit_distance("", ""), 0);
    assert_int_equal(edit_distance("abc", ""), 3);
    assert_int_equal(edit_distance("abc", "acb"), 1);
    assert_int_equal(edit_distance("kitten", "sitting"), 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_is_consistent),
        cmocka_unit_test(every_choice_is_read_back),
        cmocka_unit_test(limits_are_kept),
        cmocka_unit_test(lists_add_within_a_source_and_replace_across),
        cmocka_unit_test(mistakes_name_line_and_nearest_key),
        cmocka_unit_test(truth_may_be_a_choice),
        cmocka_unit_test(command_line_is_parsed),
        cmocka_unit_test(edit_distances),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
