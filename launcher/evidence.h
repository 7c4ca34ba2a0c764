// Which passages an answer was read from: the attention mass of the answer's queries on each
// passage, weighed against the mass that the passage receives under an empty question. Passages are
// paragraphs (blank lines part them) of at most PASSAGE_TOKENS; longer ones are cut, at the end of
// a line or sentence where there is one.
#ifndef HALKA_LAUNCHER_EVIDENCE_H
#define HALKA_LAUNCHER_EVIDENCE_H

#include <jansson.h>

#include "launcher/job.h"

enum { PASSAGE_TOKENS = 128, SINK_TOKENS = 4 };

struct passage {
    int64_t token_begin, token_end; // of the document alone
    int64_t byte_begin, byte_end;   // of the text; -1 for token files
    double baseline, mass, weight;
};

struct evidence {
    int64_t n_passage;
    struct passage *passages; // owned; on every rank the same but for bytes, known to rank 0
    int64_t first_position;   // of the document's first token in the sequence
};

// Cuts the document. Rank 0's passages are those of every rank.
enum status evidence_open(const struct job *job, const struct document_text *text,
                          int64_t first_position, struct evidence *out);
void evidence_close(struct evidence *evidence); // accepts a zeroed struct

// Takes the session's attention mass of n_query queries: as the baseline, or as an answer's.
enum status evidence_take_baseline(struct evidence *evidence, struct session *session,
                                   int64_t n_query);
enum status evidence_take_answer(struct evidence *evidence, struct session *session,
                                 int64_t n_query);
// The best passages as JSON, rank 0.
json_t *evidence_list(const struct job *job, const struct evidence *evidence,
                      const struct document_text *text, int64_t n_best);

// Cuts one text, for its tests. byte_end[n_token]: ends of tokens; NULL for token files.
enum status evidence_cut(const char *text, const int64_t *byte_begin, const int64_t *byte_end,
                         int64_t n_token, struct passage **out, int64_t *n_out);

#endif
