// An answer as an object of results.jsonl. Rank 0.
#ifndef HALKA_LAUNCHER_ANSWER_LINE_H
#define HALKA_LAUNCHER_ANSWER_LINE_H

#include "launcher/evidence.h"

struct answered {
    const char *document; // its name
    const char *question; // NULL: the document was continued
    int64_t n_prompt;     // tokens before the answer
    const int32_t *token; // [n_token] generated
    int64_t n_token;
    const struct evidence *evidence; // of which the best n_passage are listed
    const struct document_text *text;
    int64_t n_passage;
    int64_t length; // session_set_length's
    double seconds;
};

enum status answer_line(const struct job *job, const struct answered *answered, json_t **out);

#endif
