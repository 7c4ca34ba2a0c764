// What embed and locate read of a document: units, sequences that the network reads by themselves.
// A unit is the whole document, one of its windows (document.window), or one of its passages
// (task.late_chunking = false). A window takes the document's head and tail (specials and prefix)
// around its part. Of a token in two windows the state counts that has most context: in encoders
// the one of the window whose end is farther away, in causal networks the earlier window's.
#ifndef HALKA_LAUNCHER_EMBED_UNITS_H
#define HALKA_LAUNCHER_EMBED_UNITS_H

#include "launcher/passages.h"
#include "launcher/pool.h"
#include "launcher/task.h"

// A document between being opened and being written. Its tokens have places: their index in the
// document, or, where passages are read by themselves, in these one behind the other.
struct embed_document {
    const struct task *task; // NULL: the questions of locate
    struct document_text text;
    struct passage_list passages; // the same on every rank
    int64_t n_head, n_tail;       // tokens without bytes around the document
    struct token_list own;        // tokens of passages that are read by themselves ...
    struct span *own_spans;       // ... [passages.n] of each; NULL: the document is read whole
    int64_t window, stride;       // tokens of the document's body in a window, and to the next
    struct pool pool;
    int64_t n_unit, n_done;      // to be read, and read
    bool packed;                 // a unit of it shared a batch
    double seconds;              // its share of its batches' time
    struct embed_document *next; // in the embedder's list
};

struct embed_unit {
    struct embed_document *document;
    const int32_t *token;         // of the document, or of its passages
    int64_t n_head, n_tail;       // tokens of the document's head and tail in it
    struct span body;             // and of what is between them
    int64_t tail;                 // where the tail begins
    int64_t keep_begin, keep_end; // tokens of the unit whose states count
    int64_t shift;                // from a token of the unit to its place
};

enum passage_kind { PASSAGES_WHOLE, PASSAGES_PARAGRAPHS, PASSAGES_GIVEN };
enum passage_kind embed_passage_kind(const struct options *options);

struct embed_needs {
    int64_t longest, all; // tokens of the longest unit and of all units
    int64_t n_row;
};
// Planning, rank 0. ERR_INPUT where passages do not lie in the document or a unit is longer than
// the context.
enum status embed_measure(const struct job *job, const char *name, const struct document_text *text,
                          struct embed_needs *out);
// Reads, cuts and shares a document. Close it even after a failure.
enum status embed_document_open(const struct task *task, struct embed_document *out);
// The questions of locate, each a passage that is read by itself. On every rank.
enum status embed_questions_open(const struct job *job, struct embed_document *out);
void embed_document_close(struct embed_document *document); // accepts a zeroed struct

struct embed_unit embed_unit_get(struct embed_document *document, bool causal, int64_t index);
int64_t embed_unit_length(const struct embed_unit *unit);
void embed_unit_copy(const struct embed_unit *unit, int32_t *out); // [length]

#endif
