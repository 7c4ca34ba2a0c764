// What Hugging Face transformers computed for a fixture: reference.json of scripts/make_*_fixtures.
#ifndef HALKA_TESTS_COMMON_FIXTURE_H
#define HALKA_TESTS_COMMON_FIXTURE_H

#include <stdbool.h>
#include <stdint.h>

enum { FIXTURE_MAX = 8 };

struct fixture_case {
    char name[32];
    int64_t n_token;
    int32_t *token;  // [n_token]
    double *logprob; // [n_token] entry 0 is NaN
    int64_t n_logit; // 0: none were kept
    double *last_logits;
    // Of encoders, in place of log-probabilities: [n_token, n_state / n_token] last states, where
    // documents may be packed.
    int64_t n_state;
    double *state;
    int n_document;
    int64_t *document_end; // [n_document]
};

struct fixture_greedy {
    int64_t n_prompt, n_token;
    int32_t *prompt;
    int32_t *token; // [n_token]
    double *margin; // [n_token] lead of the best logit over the second
};

struct fixture {
    int n_case, n_greedy;
    struct fixture_case cases[FIXTURE_MAX];
    struct fixture_greedy greedy[FIXTURE_MAX];
};

// false, with a line on stderr, when the file is missing or is not such a file.
bool fixture_open(const char *path, struct fixture *out);
void fixture_close(struct fixture *fixture); // accepts a zeroed struct

#endif
