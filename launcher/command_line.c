// argv -> struct options: the verb, its job file or path, shorthand flags and --set.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/embed_units.h"
#include "launcher/evaluate.h"
#include "launcher/extension.h"

static const char *const later_verbs[] = {"distill"};

static enum status parse_verb(const char *word, enum verb *out) {
    for (int v = VERB_NONE + 1; v < N_VERB; v++) {
        if (strcmp(word, verb_name((enum verb)v)) == 0) {
            *out = (enum verb)v;
            return OK;
        }
    }
    for (size_t i = 0; i < sizeof later_verbs / sizeof *later_verbs; i++) {
        if (strcmp(word, later_verbs[i]) == 0) {
            FAIL(ERR_USAGE, "`halka %s` is not in this version", word);
        }
    }
    enum verb nearest = VERB_RUN;
    for (int v = VERB_RUN; v < N_VERB; v++) {
        if (edit_distance(word, verb_name((enum verb)v)) < edit_distance(word, verb_name(nearest)))
            nearest = (enum verb)v;
    }
    FAIL(ERR_USAGE, "unknown verb '%.80s'; did you mean '%s'? `halka --help` lists them", word,
         verb_name(nearest));
}

static enum status set_assignment(struct options *options, const char *text) {
    const char *equals = strchr(text, '=');
    if (!equals || equals == text) {
        FAIL(ERR_USAGE, "--set takes key=value, e.g. --set task.max_tokens=64, not '%.80s'", text);
    }
    char *path = strndup(text, (size_t)(equals - text));
    if (!path) FAIL(ERR_MEMORY, "no memory for a text");
    enum status status = options_set(options, path, equals + 1, SOURCE_COMMAND_LINE, "--set");
    free(path);
    return status;
}

// Whether the flag is one without a value; sets it in *options where that is given.
static bool find_switch(const char *flag, struct options *options) {
    static const struct {
        const char *flag;
        size_t offset; // in struct options
    } switches[] = {{"--help", offsetof(struct options, help)},
                    {"-h", offsetof(struct options, help)},
                    {"--version", offsetof(struct options, version)},
                    {"--verbose", offsetof(struct options, verbose)},
                    {"--check-config", offsetof(struct options, check_config)},
                    {"--overwrite", offsetof(struct options, overwrite)}};
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) {
        if (strcmp(flag, switches[i].flag) != 0) continue;
        if (options) *(bool *)((char *)options + switches[i].offset) = true;
        return true;
    }
    return false;
}

static const struct option *find_flag(const char *flag) {
    for (int i = 0; i < n_option; i++) {
        if (option_table[i].flag && strcmp(option_table[i].flag, flag) == 0)
            return &option_table[i];
    }
    return NULL;
}

// A flag and its value, in the next argument or after '='. Returns by *used how many it took.
static enum status parse_flag(struct options *options, int n_left, char **argument, int *used) {
    *used = 1;
    if (find_switch(*argument, options)) return OK;
    char flag[64];
    size_t n = strcspn(*argument, "=");
    snprintf(flag, sizeof flag, "%.*s", (int)(n < sizeof flag ? n : sizeof flag - 1), *argument);
    const struct option *option = find_flag(flag);
    bool assignment = strcmp(flag, "--set") == 0;
    if (!option && !assignment) {
        FAIL(ERR_USAGE, "unknown flag '%.80s'; `halka VERB --help` lists them", *argument);
    }
    const char *value = (*argument)[n] ? *argument + n + 1 : NULL;
    if (!value) {
        if (n_left < 2) FAIL(ERR_USAGE, "%s needs a value after it", flag);
        value = argument[1];
        *used = 2;
    }
    if (assignment) return set_assignment(options, value);
    return options_set(options, option->path, value, SOURCE_COMMAND_LINE, flag);
}

static enum status take_position(struct options *options, const char *text) {
    if (options->verb == VERB_NONE) return parse_verb(text, &options->verb);
    char **slot = options->verb == VERB_INSPECT ? &options->inspect_path : &options->job_file;
    if (*slot) {
        FAIL(ERR_USAGE, "'%.80s' is one argument too many: `halka %s` has '%.80s' already", text,
             verb_name(options->verb), *slot);
    }
    if (!(*slot = strdup(text))) FAIL(ERR_MEMORY, "no memory for a text");
    return OK;
}

// The job file comes first, wherever it stands on the command line, so that flags override it.
static enum status parse_arguments(int argc, char **argv, struct options *options, bool flags) {
    for (int i = 1, used = 1; i < argc; i += used) {
        used = 1;
        if (argv[i][0] == '-' && argv[i][1]) {
            if (flags) {
                TRY(parse_flag(options, argc - i, argv + i, &used));
            } else if (!strchr(argv[i], '=') && !find_switch(argv[i], NULL) && i + 1 < argc) {
                used = 2;
            }
        } else if (!flags) {
            TRY(take_position(options, argv[i]));
        }
    }
    return OK;
}

static enum status check_windows(const struct options *o) {
    if (o->window > 0 && o->task == TASK_ANSWER)
        FAIL(ERR_CONFIG, "document.window is not for task.kind = answer, which reads the whole "
                         "document");
    if (o->window == 1) FAIL(ERR_CONFIG, "document.window must be at least 2 tokens");
    if (o->stride > 0 && o->window == 0) FAIL(ERR_CONFIG, "document.stride needs document.window");
    if (o->window > 0 && o->stride >= o->window)
        FAIL(ERR_CONFIG, "document.stride (%lld) must be less than document.window (%lld)",
             (long long)o->stride, (long long)o->window);
    if (o->attention_sinks > 0 && o->attention_window == 0)
        FAIL(ERR_CONFIG, "attention.sinks needs attention.window");
    if (o->attention_window > 0 && o->attention_kind == ATTENTION_WISH_DSA)
        FAIL(ERR_CONFIG, "attention.window and attention.kind = dsa exclude each other: a token "
                         "either sees a window or selects what it sees");
    return OK;
}

// The options that only embed and locate have.
static enum status check_vectors(const struct options *o) {
    bool vectors = o->task == TASK_EMBED || o->task == TASK_LOCATE;
    enum passage_kind passages = embed_passage_kind(o);
    if (!vectors && (o->passages || o->prefix || o->prompt))
        FAIL(ERR_CONFIG, "%s is for task.kind = embed or locate",
             o->passages ? "task.passages"
             : o->prefix ? "task.prefix"
                         : "task.prompt");
    if (o->prefix && o->prompt)
        FAIL(ERR_CONFIG, "task.prefix and task.prompt exclude each other: one is a text, the other "
                         "the name of one that the model's folder has");
    if (o->query_prefix && o->task != TASK_LOCATE)
        FAIL(ERR_CONFIG, "task.query_prefix is for task.kind = locate");
    if (!vectors) return OK;
    if (o->task == TASK_LOCATE && o->questions.n == 0)
        FAIL(ERR_CONFIG, "locate needs a question: add --question TEXT");
    if (o->pooling == POOLING_NONE && (o->task == TASK_LOCATE || passages != PASSAGES_WHOLE))
        FAIL(ERR_CONFIG, "task.pooling = none gives a vector to every token, and passages need "
                         "one each: set task.pooling to mean or last");
    TRY(vector_head_check(o, (enum pooling)o->pooling));
    if (o->late_chunking == TRUTH_NO && o->window > 0)
        FAIL(ERR_CONFIG, "passages that are read by themselves (task.late_chunking = false) are "
                         "not cut: leave out document.window");
    return OK;
}

static enum status check_service(const struct options *o) {
    if (o->task != TASK_ANSWER)
        FAIL(ERR_CONFIG, "halka serve answers: leave out task.kind, or set it to answer");
    if (o->questions.n > 0)
        FAIL(ERR_CONFIG, "halka serve is asked over HTTP: leave out the questions");
    if (o->serve_token && !*o->serve_token)
        FAIL(ERR_CONFIG, "serve.token is empty: write none for a service without token");
    return OK;
}

enum status options_check(const struct options *o) {
    if (o->verb == VERB_INSPECT) {
        if (!o->inspect_path)
            FAIL(ERR_USAGE, "`halka inspect` needs a PATH: a checkpoint, results or a store");
        return OK;
    }
    TRY(check_windows(o));
    TRY(check_vectors(o));
    if (o->questions.n > 0 && (o->task == TASK_SCORE || o->task == TASK_EMBED))
        FAIL(ERR_CONFIG, "questions are for task.kind = answer or locate: add --task answer");
    for (int i = 0; i < o->questions.n; i++)
        if (!*o->questions.items[i]) FAIL(ERR_CONFIG, "question %d is empty", i + 1);
    TRY(extension_check(o));
    if (o->verb == VERB_VERIFY) return OK;
    if (!o->model_path || !*o->model_path) {
        FAIL(ERR_CONFIG, "no model: give --model PATH or model.path in the job file");
    }
    if (o->verb == VERB_SERVE) TRY(check_service(o));
    if (o->verb == VERB_PLAN && o->plan_tokens > 0) return OK;
    if (o->verb != VERB_SERVE && !options_name_documents(o)) {
        FAIL(ERR_CONFIG, "no document: give --document FILE, --tokens FILE or document.list");
    }
    if (verb_writes(o->verb) && (!o->output || !*o->output)) {
        FAIL(ERR_CONFIG, "no output folder: give --output DIR or output.dir in the job file");
    }
    if (o->verb != VERB_EVALUATE) return OK;
    struct grid grid;
    enum status status = grid_open(o, &grid);
    grid_close(&grid);
    return status;
}

enum status options_parse(int argc, char **argv, struct options *out) {
    TRY(options_set_defaults(out));
    TRY(parse_arguments(argc, argv, out, false));
    if (out->job_file) TRY(options_read_job_file(out, out->job_file));
    TRY(parse_arguments(argc, argv, out, true));
    if (out->help || out->version) return OK;
    if (out->verb == VERB_NONE) FAIL(ERR_USAGE, "no verb; `halka --help` lists them");
    bool told = out->source[option_find("task.kind") - option_table] != SOURCE_DEFAULT;
    if (out->verb == VERB_SERVE && !told) out->task = TASK_ANSWER;
    return options_check(out);
}
