// Options as people see them: look-up, the nearest key to a misspelt one, values as text, help.
#include <stdlib.h>
#include <string.h>

#include "launcher/options.h"

static const char *const verb_help[N_VERB][2] = {
    [VERB_NONE] = {"", ""},
    [VERB_RUN] = {"run",
                  "read documents: [JOB.cfg] -> OUTPUT/results.jsonl, report.txt, report.json"},
    [VERB_PLAN] = {"plan",
                   "dry run of [JOB.cfg]: bytes and seconds per rank, refuses what cannot fit"},
    [VERB_VERIFY] = {"verify", "numerical self-test on these ranks: residuals, PASSED or FAILED"},
    [VERB_EVALUATE] = {"evaluate", "retrieval by length and depth and perplexity by position of "
                                   "[JOB.cfg] -> OUTPUT/results.jsonl, plots"},
    [VERB_SERVE] = {"serve", "HTTP service of [JOB.cfg]: documents, questions, chat, completions"},
    [VERB_INSPECT] =
        {"inspect",
         "what a checkpoint, store or result folder PATH holds, and where a job's ranks are"},
};

const char *verb_name(enum verb verb) {
    return verb_help[verb][0];
}

bool verb_writes(enum verb verb) {
    return verb == VERB_RUN || verb == VERB_EVALUATE || verb == VERB_SERVE;
}

bool options_name_documents(const struct options *o) {
    return o->documents.n > 0 || o->token_files.n > 0 || o->document_list;
}

const struct option *option_find(const char *path) {
    for (int i = 0; i < n_option; i++) {
        if (strcmp(option_table[i].path, path) == 0) return &option_table[i];
    }
    return NULL;
}

static int least(int a, int b) {
    return a < b ? a : b;
}

// Optimal string alignment distance, over the first 63 characters of each.
int edit_distance(const char *a, const char *b) {
    enum { LONGEST = 63 };
    int n = (int)strnlen(a, LONGEST), m = (int)strnlen(b, LONGEST);
    int d[LONGEST + 1][LONGEST + 1];
    for (int i = 0; i <= n; i++) d[i][0] = i;
    for (int j = 0; j <= m; j++) d[0][j] = j;
    for (int i = 1; i <= n; i++) {
        for (int j = 1; j <= m; j++) {
            d[i][j] = least(d[i - 1][j], d[i][j - 1]) + 1;
            d[i][j] = least(d[i][j], d[i - 1][j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d[i][j] = least(d[i][j], d[i - 2][j - 2] + 1);
        }
    }
    return d[n][m];
}

const struct option *option_nearest(const char *path) {
    const struct option *best = option_table;
    int best_distance = 1 << 20;
    for (int i = 0; i < n_option; i++) {
        // A key without its group is as near as its own name.
        const char *leaf = strchr(option_table[i].path, '.') + 1;
        int distance =
            least(edit_distance(path, option_table[i].path), edit_distance(path, leaf) + 1);
        if (distance < best_distance) best = &option_table[i], best_distance = distance;
    }
    return best;
}

void option_nearest_group(const char *path, char *group, size_t bytes) {
    int best_distance = 1 << 20;
    for (int i = 0; i < n_option; i++) {
        char candidate[32];
        snprintf(candidate, sizeof candidate, "%.*s", (int)strcspn(option_table[i].path, "."),
                 option_table[i].path);
        int distance = edit_distance(path, candidate);
        if (distance >= best_distance) continue;
        best_distance = distance;
        snprintf(group, bytes, "%s", candidate);
    }
}

void option_format(const struct options *options, const struct option *option, char *text,
                   size_t bytes) {
    const void *field = (const char *)options + option->offset;
    const char *string;
    switch (option->type) {
    case OPTION_STRING:
        string = *(char *const *)field;
        snprintf(text, bytes, "%s", string ? string : "");
        break;
    case OPTION_LIST: {
        const struct string_list *list = field;
        size_t used = 0;
        text[0] = '\0';
        for (int i = 0; i < list->n && used < bytes; i++)
            used +=
                (size_t)snprintf(text + used, bytes - used, "%s%s", i ? ", " : "", list->items[i]);
        break;
    }
    case OPTION_INT:
        snprintf(text, bytes, "%lld", (long long)*(const int64_t *)field);
        break;
    case OPTION_REAL:
        snprintf(text, bytes, "%.9g", *(const double *)field);
        break;
    case OPTION_BOOL:
        snprintf(text, bytes, "%s", *(const bool *)field ? "true" : "false");
        break;
    case OPTION_CHOICE:
        string = option->choices;
        for (int i = *(const int *)field; i > 0; i--) string = strchr(string, '|') + 1;
        snprintf(text, bytes, "%.*s", (int)strcspn(string, "|"), string);
        break;
    }
}

static void print_option(FILE *out, const struct option *o) {
    fprintf(out, "  %-20s ", o->path);
    if (o->flag) fprintf(out, "(%s) ", o->flag);
    fprintf(out, "%s", o->help);
    if (o->choices) fprintf(out, "; %s", o->choices);
    if (o->most > 0)
        fprintf(out, "; %g to %.16g%s%s", o->least, o->most, o->unit ? " " : "",
                o->unit ? o->unit : "");
    fprintf(out, "%s%s%s\n", o->initial ? " [" : "", o->initial ? o->initial : "",
            o->initial ? "]" : "");
}

void options_print_help(FILE *out, enum verb verb) {
    if (verb == VERB_NONE) {
        fprintf(out, "Halka reads very long documents with open-weight language models on a "
                     "cluster.\n\n");
        fprintf(out, "  [mpirun -np N] halka VERB [JOB.cfg | PATH] [options]\n\nVerbs:\n");
        for (int v = VERB_NONE + 1; v < N_VERB; v++)
            fprintf(out, "  %-8s %s\n", verb_help[v][0], verb_help[v][1]);
        fprintf(out, "\nhalka VERB --help lists the options.\n");
        return;
    }
    fprintf(out, "halka %s: %s\n\n", verb_help[verb][0], verb_help[verb][1]);
    if (verb == VERB_INSPECT) return;
    fprintf(out, "  --set KEY=VALUE      any key below; may be repeated\n"
                 "  --overwrite          replace the results of another job in the output folder\n"
                 "  --check-config       only check the job file and the options\n"
                 "  --verbose            also say where in the source an error was found\n"
                 "  --version, --help\n\nKeys of job file and --set, with [default]:\n");
    for (int i = 0; i < n_option; i++) print_option(out, &option_table[i]);
}

void options_print_changed(FILE *out, const struct options *options) {
    char text[512];
    for (int i = 0; i < n_option; i++) {
        if (options->source[i] == SOURCE_DEFAULT) continue;
        option_format(options, &option_table[i], text, sizeof text);
        if (option_table[i].initial && strcmp(text, option_table[i].initial) == 0) continue;
        fprintf(out, "  %s = %s\n", option_table[i].path, text);
    }
}
