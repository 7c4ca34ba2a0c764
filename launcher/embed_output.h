// Where the rows of a document go: embed writes them to OUTPUT/vectors.npy with a line that says
// which rows they are, locate ranks them by the questions. All ranks make these calls, as rows are
// put together from all; rank 0 writes. A line is written after its rows are durable.
#ifndef HALKA_LAUNCHER_EMBED_OUTPUT_H
#define HALKA_LAUNCHER_EMBED_OUTPUT_H

#include "launcher/embed_units.h"
#include "launcher/npy.h"

struct embed_line {
    const char *id;
    json_t *object; // owned
};

struct embed_output {
    struct job *job;
    struct results *results; // rank 0, as all below
    struct npy vectors;      // embed
    double *questions;       // locate: [n_question, vector_head.n_out], each of length 1
    int n_line, capacity;
    struct embed_line *lines; // not written yet
};

// Continues the vectors of the lines that are there already, cutting off others.
enum status embed_output_open(struct job *job, struct results *results, struct embed_output *out);
void embed_output_close(struct embed_output *output); // accepts a zeroed struct

// A document whose states are all in its pool.
enum status embed_output_add(struct embed_output *output, struct embed_document *document);
// Rows and lines of the documents added so far become durable.
enum status embed_output_commit(struct embed_output *output);

// For locate.c: what lines of both tasks begin with; a passage's place; a line to be written.
json_t *embed_describe(const struct job *job, const struct embed_document *document);
json_t *embed_describe_passage(const struct embed_document *document, int64_t passage);
enum status embed_output_add_line(struct embed_output *output, const char *id, json_t *object);

enum status locate_take_questions(struct embed_output *output, struct embed_document *questions);
enum status locate_rank(struct embed_output *output, struct embed_document *document);

#endif
