// The options evaluate.* as axes of a grid, and its cells.
#include <stdlib.h>
#include <string.h>

#include "launcher/evaluate.h"
#include "launcher/extension.h"

const char *grid_family_name(int family) {
    return family == CELL_CURVE ? "perplexity" : retrieval_family_name[family];
}

bool grid_has_depth(int family) {
    return family != CELL_CURVE && family != RETRIEVAL_WORDS;
}

// Calls `add` with each word of "a, b,c".
static enum status each_word(const char *text, const char *option, struct grid *grid,
                             enum status (*add)(struct grid *, const char *option,
                                                const char *word)) {
    char *copy = strdup(text ? text : ""), *rest = copy, *word;
    enum status status = OK;
    if (!copy) FAIL(ERR_MEMORY, "no memory for a text");
    while (status == OK && (word = strsep(&rest, ", "))) {
        if (*word) status = add(grid, option, word);
    }
    free(copy);
    return status;
}

static enum status parse_number(const char *option, const char *word, int64_t least, int64_t most,
                                int64_t *out) {
    char *end;
    long long x = strtoll(word, &end, 10);
    if (end == word || *end || x < least || x > most)
        FAIL(ERR_CONFIG, "%s: '%.40s' is not a whole number between %lld and %lld", option, word,
             (long long)least, (long long)most);
    *out = x;
    return OK;
}

static enum status add_length(struct grid *grid, const char *option, const char *word) {
    int64_t x;
    TRY(parse_number(option, word, 1, 1000000000, &x));
    if (grid->n_length == GRID_MAX_AXIS)
        FAIL(ERR_CONFIG, "%s: more than %d lengths", option, GRID_MAX_AXIS);
    if (grid->n_length > 0 && x <= grid->length[grid->n_length - 1])
        FAIL(ERR_CONFIG, "%s must ascend: %s comes too late", option, word);
    grid->length[grid->n_length++] = x;
    return OK;
}

static enum status add_depth(struct grid *grid, const char *option, const char *word) {
    int64_t x;
    TRY(parse_number(option, word, 0, 100, &x));
    if (grid->n_depth == GRID_MAX_AXIS)
        FAIL(ERR_CONFIG, "%s: more than %d depths", option, GRID_MAX_AXIS);
    if (grid->n_depth > 0 && x <= grid->depth[grid->n_depth - 1])
        FAIL(ERR_CONFIG, "%s must ascend: %s comes too late", option, word);
    grid->depth[grid->n_depth++] = (int)x;
    return OK;
}

static enum status add_family(struct grid *grid, const char *option, const char *word) {
    if (strcmp(word, "none") == 0) return OK;
    for (int i = 0; i < N_RETRIEVAL; i++) {
        if (strcmp(word, retrieval_family_name[i]) != 0) continue;
        for (int k = 0; k < grid->n_family; k++)
            if (grid->family[k] == (enum retrieval_family)i)
                FAIL(ERR_CONFIG, "%s names %s twice", option, word);
        grid->family[grid->n_family++] = (enum retrieval_family)i;
        return OK;
    }
    FAIL(ERR_CONFIG,
         "%s: unknown family '%.40s'; there are passkey, single, multikey, multivalue, tracking, "
         "words, and none",
         option, word);
}

// "METHOD key=value ...": keys of extension.*.
static enum status set_method(const char *text, struct options *options) {
    char *copy = strdup(text), *rest = copy, *word, path[64];
    enum status status = OK;
    bool first = true;
    if (!copy) FAIL(ERR_MEMORY, "no memory for a text");
    while (status == OK && (word = strsep(&rest, " "))) {
        char *equals = strchr(word, '=');
        if (!*word) continue;
        if (first != !equals)
            FAIL_OR(done, ERR_CONFIG,
                    "evaluate.methods: '%.80s' is not METHOD or METHOD key=value ..., e.g. "
                    "'yarn factor=4'",
                    text);
        if (equals) *equals = '\0';
        snprintf(path, sizeof path, "extension.%s", first ? "method" : word);
        status = options_set(options, path, first ? word : equals + 1, SOURCE_JOB_FILE,
                             "evaluate.methods");
        first = false;
    }
    if (status == OK) status = extension_check(options);
done:
    free(copy);
    return status;
}

static enum status add_method(const struct options *base, const char *text, struct grid *grid) {
    struct grid_method *method = &grid->methods[grid->n_method];
    method->options = *base;
    method->options.extension_factors = NULL; // from here on the method's own
    grid->n_method++;
    for (int i = 0; i < n_option; i++) {
        const struct option *o = &option_table[i];
        if (strncmp(o->path, "extension.", 10) == 0 && o->initial)
            TRY(options_set(&method->options, o->path, o->initial, SOURCE_DEFAULT, "default"));
    }
    if (!(method->label = strdup(text))) FAIL(ERR_MEMORY, "no memory for a text");
    return set_method(text, &method->options);
}

static enum status add_own_method(const struct options *base, struct grid *grid) {
    struct grid_method *method = &grid->methods[grid->n_method++];
    char label[32];
    option_format(base, option_find("extension.method"), label, sizeof label);
    method->options = *base;
    method->options.extension_factors = NULL;
    method->label = strdup(label);
    if (base->extension_factors)
        method->options.extension_factors = strdup(base->extension_factors);
    if (!method->label || (base->extension_factors && !method->options.extension_factors))
        FAIL(ERR_MEMORY, "no memory for a text");
    return OK;
}

enum status grid_open(const struct options *o, struct grid *out) {
    int n = o->evaluate_methods.n;
    *out = (struct grid){
        .n_sample = o->evaluate_samples, .curve = o->evaluate_perplexity, .bin = o->evaluate_bin};
    TRY(each_word(o->evaluate_lengths, "evaluate.lengths", out, add_length));
    TRY(each_word(o->evaluate_depths, "evaluate.depths", out, add_depth));
    TRY(each_word(o->evaluate_families, "evaluate.families", out, add_family));
    if (out->n_family == 0 && out->curve == 0)
        FAIL(ERR_CONFIG, "nothing to evaluate: name evaluate.families, or set evaluate.perplexity");
    if (out->n_family > 0 && (out->n_length == 0 || out->n_depth == 0))
        FAIL(ERR_CONFIG, "evaluate.lengths and evaluate.depths must each name a number");
    if (out->curve > 0 && out->bin > out->curve)
        FAIL(ERR_CONFIG, "evaluate.bin (%lld) must not exceed evaluate.perplexity (%lld)",
             (long long)out->bin, (long long)out->curve);
    out->methods = calloc((size_t)(n > 0 ? n : 1), sizeof *out->methods);
    if (!out->methods) FAIL(ERR_MEMORY, "no memory for %d methods", n);
    if (n == 0) return add_own_method(o, out);
    for (int i = 0; i < n; i++) TRY(add_method(o, o->evaluate_methods.items[i], out));
    return OK;
}

void grid_close(struct grid *grid) {
    for (int i = 0; i < grid->n_method; i++) {
        free(grid->methods[i].label);
        free(grid->methods[i].options.extension_factors);
    }
    free(grid->methods);
    *grid = (struct grid){0};
}

int64_t grid_longest(const struct grid *grid) {
    int64_t longest = grid->curve;
    if (grid->n_family > 0 && grid->length[grid->n_length - 1] > longest)
        longest = grid->length[grid->n_length - 1];
    return longest;
}

// Cells of one method, into `cells` unless NULL; returns how many.
static int list_method(const struct grid *g, int method, struct grid_cell *cells) {
    int n = 0;
    for (int64_t sample = 0; g->curve > 0 && sample < g->n_sample; sample++, n++)
        if (cells) cells[n] = (struct grid_cell){method, CELL_CURVE, g->curve, 0, sample};
    for (int l = 0; l < g->n_length; l++)
        for (int f = 0; f < g->n_family; f++)
            for (int d = 0; d < (grid_has_depth(g->family[f]) ? g->n_depth : 1); d++)
                for (int64_t sample = 0; sample < g->n_sample; sample++, n++)
                    if (cells)
                        cells[n] = (struct grid_cell){
                            method, g->family[f], g->length[l],
                            grid_has_depth(g->family[f]) ? g->depth[d] : 0, sample};
    return n;
}

enum status grid_list_cells(const struct grid *grid, struct grid_cell **cells, int *n) {
    int each = list_method(grid, 0, NULL);
    *n = each * grid->n_method;
    *cells = calloc((size_t)*n + 1, sizeof **cells);
    if (!*cells) FAIL(ERR_MEMORY, "no memory for %d cells", *n);
    for (int method = 0; method < grid->n_method; method++)
        list_method(grid, method, *cells + (size_t)method * (size_t)each);
    return OK;
}
