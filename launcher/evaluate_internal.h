// What evaluate.c, which goes through the grid, and evaluate_cells.c, which runs a cell, share.
#ifndef HALKA_LAUNCHER_EVALUATE_INTERNAL_H
#define HALKA_LAUNCHER_EVALUATE_INTERNAL_H

#include "launcher/evaluate.h"
#include "launcher/progress.h"
#include "launcher/prompt.h"

struct evaluation {
    struct job *job;
    struct grid grid;
    int n_cell;
    struct grid_cell *cells;
    bool *finished;               // [n_cell]
    char (*ids)[RESULT_ID_BYTES]; // [n_cell] rank 0
    struct results results;       // rank 0
    struct document_text text;
    bool *is_boundary; // [text.tokens.n]
    struct prompt stops;
    struct model_spec spec;    // as the checkpoint has it; its layers are the job's, whose
    struct layer_spec *layers; // contents were these: [spec.n_layer] owned
    struct memory_plan plan;   // of the largest session
};

// On rank 0: what prompts are made of.
struct retrieval_source evaluate_source(const struct evaluation *e);
// Runs a cell in the open session, which it empties first. Every rank calls it; on rank 0 *line is
// then what results.jsonl says of it, and *score its share of right words, or its perplexity.
enum status evaluate_question(struct evaluation *e, const struct grid_cell *cell,
                              struct progress *progress, json_t **line, double *score);
enum status evaluate_curve(struct evaluation *e, const struct grid_cell *cell,
                           struct progress *progress, json_t **line, double *score);

#endif
