// What Hugging Face transformers computed for a fixture: reference.json of scripts/make_*_fixtures.
#ifndef HALKA_TESTS_COMMON_REFERENCE_H
#define HALKA_TESTS_COMMON_REFERENCE_H

#include <stdbool.h>
#include <stdint.h>

enum { REFERENCE_MAX = 8 };

struct reference_case {
    char name[32];
    int64_t n_token;
    int32_t *token;  // [n_token]
    double *logprob; // [n_token] entry 0 is NaN
    int64_t n_logit; // 0: none were kept
    double *last_logits;
};

struct reference_greedy {
    int64_t n_prompt, n_token;
    int32_t *prompt;
    int32_t *token; // [n_token]
    double *margin; // [n_token] lead of the best logit over the second
};

struct reference {
    int n_case, n_greedy;
    struct reference_case cases[REFERENCE_MAX];
    struct reference_greedy greedy[REFERENCE_MAX];
};

// false, with a line on stderr, when the file is missing or is not such a file.
bool reference_open(const char *path, struct reference *out);
void reference_close(struct reference *reference); // accepts a zeroed struct

#endif
