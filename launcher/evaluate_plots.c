// What results.jsonl holds as a table and as plots: accuracy by length and depth, one panel for a
// method and family, and perplexity by position, one curve for a method.
#include <errno.h>
#include <math.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "launcher/evaluate.h"

extern char **environ;

enum { N_COLOUR = 8 }; // of gnuplot's own

struct mean {
    double sum;
    int64_t n;
};

struct summary {
    const struct grid *grid;
    struct mean *score; // [n_method, n_family, n_length, n_depth]
    struct mean *nll;   // [n_method, n_bin]
    int64_t n_bin;
    int64_t trained; // context
};

static int find_method(const struct grid *g, const char *label) {
    for (int i = 0; label && i < g->n_method; i++)
        if (strcmp(g->methods[i].label, label) == 0) return i;
    return -1;
}

static struct mean *score_at(const struct summary *s, int method, int family, int length,
                             int depth) {
    const struct grid *g = s->grid;
    return &s->score[((method * g->n_family + family) * g->n_length + length) * g->n_depth + depth];
}

static void add(struct mean *mean, const json_t *number) {
    if (!json_is_number(number)) return;
    mean->sum += json_number_value(number);
    mean->n++;
}

static void add_curve(struct summary *s, int method, const json_t *line) {
    const json_t *bins = json_object_get(line, "nll");
    for (int64_t i = 0; i < s->n_bin; i++)
        add(&s->nll[method * s->n_bin + i], json_array_get(bins, (size_t)i));
}

static void add_line(struct summary *s, const json_t *line) {
    const struct grid *g = s->grid;
    const char *family = json_string_value(json_object_get(line, "family"));
    int method = find_method(g, json_string_value(json_object_get(line, "method")));
    json_int_t length = json_integer_value(json_object_get(line, "length"));
    json_int_t depth = json_integer_value(json_object_get(line, "depth"));
    if (method < 0 || !family) return;
    if (strcmp(family, grid_family_name(CELL_CURVE)) == 0) add_curve(s, method, line);
    for (int f = 0; f < g->n_family; f++) {
        if (strcmp(family, grid_family_name(g->family[f])) != 0) continue;
        for (int l = 0; l < g->n_length; l++)
            for (int d = 0; d < (grid_has_depth(g->family[f]) ? g->n_depth : 1); d++)
                if (g->length[l] == length &&
                    (g->depth[d] == depth || !grid_has_depth(g->family[f])))
                    add(score_at(s, method, f, l, d), json_object_get(line, "score"));
    }
}

static enum status read_results(const char *folder, struct summary *s) {
    char *path, *line = NULL;
    size_t capacity = 0;
    if (asprintf(&path, "%s/results.jsonl", folder) < 0) FAIL(ERR_MEMORY, "no memory for a path");
    FILE *file = fopen(path, "r");
    free(path);
    if (!file) FAIL(ERR_IO, "cannot read %s/results.jsonl: %s", folder, strerror(errno));
    while (getline(&line, &capacity, file) > 0) {
        json_t *object = json_loads(line, 0, NULL);
        add_line(s, object);
        json_decref(object);
    }
    free(line);
    fclose(file);
    return OK;
}

static const char *length_name(int64_t length, char out[24]) {
    if (length % 1024 == 0)
        snprintf(out, 24, "%lldK", (long long)length / 1024);
    else
        snprintf(out, 24, "%lld", (long long)length);
    return out;
}

static void print_scores(FILE *out, const struct summary *s) {
    const struct grid *g = s->grid;
    char name[24];
    fprintf(out, "Share of the expected answers that were given, mean over depths and samples\n\n");
    fprintf(out, "  %-36s %-12s", "method", "family");
    for (int l = 0; l < g->n_length; l++) fprintf(out, " %8s", length_name(g->length[l], name));
    fputc('\n', out);
    for (int m = 0; m < g->n_method; m++)
        for (int f = 0; f < g->n_family; f++) {
            fprintf(out, "  %-36s %-12s", g->methods[m].label, grid_family_name(g->family[f]));
            for (int l = 0; l < g->n_length; l++) {
                struct mean all = {0};
                for (int d = 0; d < g->n_depth; d++) {
                    const struct mean *one = score_at(s, m, f, l, d);
                    all.sum += one->sum;
                    all.n += one->n;
                }
                all.n ? fprintf(out, " %8.3f", all.sum / (double)all.n) : fprintf(out, " %8s", "-");
            }
            fputc('\n', out);
        }
}

// Perplexity in stretches of positions, each up to a power of two.
static void print_curves(FILE *out, const struct summary *s) {
    const struct grid *g = s->grid;
    char name[24];
    fprintf(out, "\nPerplexity of the positions up to\n\n  %-36s", "method");
    for (int64_t end = 1; end / 2 < s->n_bin; end *= 2)
        fprintf(out, " %8s", length_name((end < s->n_bin ? end : s->n_bin) * g->bin, name));
    fputc('\n', out);
    for (int m = 0; m < g->n_method; m++) {
        fprintf(out, "  %-36s", g->methods[m].label);
        for (int64_t begin = 0, end = 1; begin < s->n_bin; begin = end, end *= 2) {
            struct mean all = {0};
            for (int64_t i = begin; i < end && i < s->n_bin; i++) {
                all.sum += s->nll[m * s->n_bin + i].sum;
                all.n += s->nll[m * s->n_bin + i].n;
            }
            all.n ? fprintf(out, " %8.3f", exp(all.sum / (double)all.n))
                  : fprintf(out, " %8s", "-");
        }
        fputc('\n', out);
    }
}

// A gnuplot string: single quotes are doubled.
static void print_quoted(FILE *out, const char *text) {
    fputc('\'', out);
    for (; *text; text++) fprintf(out, *text == '\'' ? "''" : "%c", *text);
    fputc('\'', out);
}

// Both files from one set of commands: CALL is the plot.
static void print_terminals(FILE *out, const char *name, int width, int height) {
    fprintf(out,
            "png = strstrt(GPVAL_TERMINALS, 'pngcairo') ? 'pngcairo' : 'png'\n"
            "do for [kind in 'svg png'] {\n"
            "if (kind eq 'svg') {\n"
            "set terminal svg noenhanced size %d,%d font 'sans-serif,13' background 'white'\n"
            "} else {\n"
            "set terminal @png noenhanced size %d,%d font 'sans-serif,13'\n"
            "}\n"
            "set output '%s.'.kind\n",
            width, height, width, height, name);
}

static void print_heat_data(FILE *out, const struct summary *s) {
    const struct grid *g = s->grid;
    for (int m = 0; m < g->n_method; m++)
        for (int f = 0; f < g->n_family; f++) {
            fprintf(out, "# %s, %s: length, depth, score\n", g->methods[m].label,
                    grid_family_name(g->family[f]));
            for (int l = 0; l < g->n_length; l++)
                for (int d = 0; d < (grid_has_depth(g->family[f]) ? g->n_depth : 1); d++) {
                    const struct mean *one = score_at(s, m, f, l, d);
                    if (one->n) fprintf(out, "%d %d %.4f\n", l, d, one->sum / (double)one->n);
                }
            fprintf(out, "-1 -1 0\n\n\n"); // no panel is empty
        }
}

static void print_heat_axes(FILE *out, const struct grid *g, int family) {
    char name[24];
    fprintf(out, "set xrange [-0.5:%d.5]\nset xtics (", g->n_length - 1);
    for (int l = 0; l < g->n_length; l++)
        fprintf(out, "%s'%s' %d", l ? ", " : "", length_name(g->length[l], name), l);
    fprintf(out, ")\n");
    if (!grid_has_depth(family)) {
        fprintf(out, "set yrange [0.5:-0.5]\nunset ytics\nset ylabel ' '\n");
        return;
    }
    fprintf(out, "set yrange [%d.5:-0.5]\nset ylabel 'depth, %%'\nset ytics (", g->n_depth - 1);
    for (int d = 0; d < g->n_depth; d++) fprintf(out, "%s'%d' %d", d ? ", " : "", g->depth[d], d);
    fprintf(out, ")\n");
}

// The method's name stands at the left above its row of panels, which is as wide as they are
// together; a panel has its family's name.
static void print_heat_row(FILE *out, const struct summary *s, int method, double top) {
    const struct grid *g = s->grid;
    fprintf(out, "set label 1 at screen 0, screen %.4f left offset 1.5,-0.8 ", top);
    print_quoted(out, g->methods[method].label);
    fputc('\n', out);
    for (int f = 0, panel = method * g->n_family; f < g->n_family; f++, panel++) {
        print_heat_axes(out, g, g->family[f]);
        fprintf(out,
                "set title '%s'\n"
                "plot 'retrieval.dat' index %d using 1:2:($1-.49):($1+.49):($2-.49):($2+.49)"
                ":3 with boxxyerror linecolor palette, \\\n"
                "  '' index %d using 1:2:($1 >= 0 && $3 < 0.6 ? sprintf('%%.2f', $3) : '') with "
                "labels textcolor rgb 'white', \\\n"
                "  '' index %d using 1:2:($1 >= 0 && $3 >= 0.6 ? sprintf('%%.2f', $3) : '') "
                "with labels textcolor rgb 'black'\n"
                "unset label 1\n",
                grid_family_name(g->family[f]), panel, panel, panel);
    }
}

static void print_heat_plot(FILE *out, const struct summary *s) {
    const struct grid *g = s->grid;
    int width = 60 + g->n_family * (110 + 52 * g->n_length), longest = 0;
    int height = g->n_method * (150 + 34 * g->n_depth);
    for (int m = 0; m < g->n_method; m++) {
        int n = (int)strlen(g->methods[m].label);
        if (n > longest) longest = n;
    }
    if (width < 40 + 10 * longest) width = 40 + 10 * longest;
    print_terminals(out, "retrieval", width, height);
    fprintf(out,
            "set multiplot layout %d,%d\nset palette defined (0 '#440154', 0.25 '#3b528b', "
            "0.5 '#21918c', 0.75 '#5ec962', 1 '#fde725')\nset cbrange [0:1]\nunset colorbox\n"
            "unset key\nset style fill solid noborder\nset xlabel 'tokens'\nset tmargin 3.5\n",
            g->n_method, g->n_family);
    for (int m = 0; m < g->n_method; m++) print_heat_row(out, s, m, 1 - (double)m / g->n_method);
    fprintf(out, "unset multiplot\n}\n");
}

// The text itself varies more than methods do: the ratio to the first method shows these.
static void print_curve_data(FILE *out, const struct summary *s) {
    const struct grid *g = s->grid;
    for (int m = 0; m < g->n_method; m++) {
        fprintf(out, "# %s: position in thousands of tokens, perplexity, over that of %s\n",
                g->methods[m].label, g->methods[0].label);
        for (int64_t i = 0; i < s->n_bin; i++) {
            const struct mean *one = &s->nll[m * s->n_bin + i], *first = &s->nll[i];
            if (!one->n) continue;
            double mean = one->sum / (double)one->n;
            fprintf(out, "%.4f %.5g %.5g\n", ((double)i + 0.5) * (double)g->bin / 1000, exp(mean),
                    first->n ? exp(mean - first->sum / (double)first->n) : NAN);
        }
        fprintf(out, "\n\n");
    }
}

static void print_curves_of(FILE *out, const struct summary *s, int first, int column) {
    const struct grid *g = s->grid;
    fprintf(out, "plot ");
    for (int m = first; m < g->n_method; m++) {
        fprintf(out,
                "%s'perplexity.dat' index %d using 1:%d with lines linewidth 2 linecolor %d "
                "dashtype %d title ",
                m > first ? ", \\\n  " : "", m, column, m % N_COLOUR + 1, m / N_COLOUR + 1);
        print_quoted(out, g->methods[m].label);
    }
    fputc('\n', out);
}

static void print_curve_plot(FILE *out, const struct summary *s) {
    const struct grid *g = s->grid;
    double trained = (double)s->trained / 1000;
    bool several = g->n_method > 1;
    print_terminals(out, "perplexity", 900, several ? 860 : 480);
    fprintf(out,
            "set multiplot layout %d,1\nset key below maxcols 3 samplen 2\nset grid\n"
            "set logscale y 2\nset format y '%%g'\nset autoscale y\nset xrange [0:%.4f]\n"
            "set xlabel 'position, thousands of tokens'\nset ylabel 'perplexity'\n",
            several ? 2 : 1, (double)g->curve / 1000);
    if (s->trained < g->curve)
        fprintf(out,
                "set arrow 1 from %.4f, graph 0 to %.4f, graph 1 nohead dashtype 2\n"
                "set label 1 'trained' at %.4f, graph 0.96 right offset -1\n",
                trained, trained, trained);
    print_curves_of(out, s, 0, 2);
    if (several) {
        fprintf(out, "set ylabel ");
        char label[160];
        snprintf(label, sizeof label, "perplexity over that of %s", g->methods[0].label);
        print_quoted(out, label);
        fprintf(out, "\nunset key\nunset logscale y\nset yrange [0.7:1.3]\n");
        print_curves_of(out, s, 1, 3);
    }
    fprintf(out, "unset multiplot\n}\n");
}

static void print_summary(FILE *out, const struct summary *s) {
    if (s->grid->n_family > 0) print_scores(out, s);
    if (s->grid->curve > 0) print_curves(out, s);
}

static enum status write_file(const struct options *options, const char *name,
                              void (*print)(FILE *, const struct summary *),
                              const struct summary *s) {
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    if (!out) FAIL(ERR_MEMORY, "no memory for %s", name);
    print(out, s);
    fclose(out);
    enum status status = output_write(options, name, text);
    free(text);
    return status;
}

// Runs gnuplot in the output folder. That it is missing or fails is no failure of the job: the
// results are there.
static enum status run_gnuplot(const char *folder, const char *script) {
    char *arguments[] = {"gnuplot", (char *)script, NULL};
    posix_spawn_file_actions_t actions;
    pid_t process;
    int code = -1;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addchdir_np(&actions, folder);
    int error = posix_spawnp(&process, "gnuplot", &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    while (error == 0 && waitpid(process, &code, 0) < 0 && errno == EINTR) continue;
    if (error == 0 && code == 0) return OK;
    fprintf(stderr,
            "halka: warning: no plots, because gnuplot %s: run `gnuplot %s` in %s where it is "
            "installed\n",
            error ? "cannot be started" : "failed", script, folder);
    return OK;
}

static enum status write_all(const struct options *options, const struct summary *s) {
    const char *folder = options->output;
    TRY(write_file(options, "evaluation.txt", print_summary, s));
    if (s->grid->n_family > 0) {
        TRY(write_file(options, "retrieval.dat", print_heat_data, s));
        TRY(write_file(options, "retrieval.gp", print_heat_plot, s));
        TRY(run_gnuplot(folder, "retrieval.gp"));
    }
    if (s->grid->curve > 0) {
        TRY(write_file(options, "perplexity.dat", print_curve_data, s));
        TRY(write_file(options, "perplexity.gp", print_curve_plot, s));
        TRY(run_gnuplot(folder, "perplexity.gp"));
    }
    print_summary(stdout, s);
    return OK;
}

enum status evaluate_write_plots(const struct job *job, const struct grid *g) {
    struct summary s = {.grid = g,
                        .n_bin = (g->curve + g->bin - 1) / g->bin,
                        .trained = job->checkpoint.spec.context};
    enum status status = OK;
    s.score =
        calloc((size_t)(g->n_method * g->n_family * g->n_length * g->n_depth) + 1, sizeof *s.score);
    s.nll = calloc((size_t)(g->n_method * s.n_bin) + 1, sizeof *s.nll);
    if (!s.score || !s.nll) FAIL_OR(done, ERR_MEMORY, "no memory for the plots");
    TRY_OR(done, read_results(job->options->output, &s));
    TRY_OR(done, write_all(job->options, &s));
done:
    free(s.score);
    free(s.nll);
    return status;
}
