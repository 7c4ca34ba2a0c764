// `halka evaluate`: a grid of cells, (method of extension) x (family, length, depth, sample), and
// curves of perplexity by position. A cell is a line of results.jsonl and is computed once.
#ifndef HALKA_LAUNCHER_EVALUATE_H
#define HALKA_LAUNCHER_EVALUATE_H

#include "launcher/results.h"
#include "launcher/retrieval.h"

enum { GRID_MAX_AXIS = 64, CELL_CURVE = N_RETRIEVAL };

// Options with those of one entry of evaluate.methods in place; every extension.* that the entry
// does not name has its default. Without entries: the job's own options.
struct grid_method {
    char *label;            // owned
    struct options options; // borrows all but extension_factors
};

struct grid {
    int n_method, n_family, n_length, n_depth;
    struct grid_method *methods; // [n_method] owned
    enum retrieval_family family[N_RETRIEVAL];
    int64_t length[GRID_MAX_AXIS]; // ascending
    int depth[GRID_MAX_AXIS];      // percent, ascending
    int64_t n_sample;
    int64_t curve, bin; // tokens of a curve of perplexity and of a point on it; curve 0: none
};

struct grid_cell {
    int method;
    int family; // enum retrieval_family, or CELL_CURVE
    int64_t length;
    int depth; // 0 where the family has none
    int64_t sample;
};

// evaluate_grid.c. Reads and checks evaluate.*: ERR_CONFIG. Close it even after a failure.
enum status grid_open(const struct options *options, struct grid *out);
void grid_close(struct grid *grid); // accepts a zeroed struct
int64_t grid_longest(const struct grid *grid);
// All cells, method by method; the caller frees *cells.
enum status grid_list_cells(const struct grid *grid, struct grid_cell **cells, int *n);
const char *grid_family_name(int family); // "perplexity" for curves
bool grid_has_depth(int family);

// evaluate_plots.c. From OUTPUT/results.jsonl: evaluation.txt, and where gnuplot is installed
// retrieval and perplexity as SVG and PNG, beside the data and commands that drew them. Rank 0.
enum status evaluate_write_plots(const struct job *job, const struct grid *grid);

#endif
