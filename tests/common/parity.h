// Compares a session with a reference: every log-probability, the last logits, greedy
// continuations.
#ifndef HALKA_TESTS_COMMON_PARITY_H
#define HALKA_TESTS_COMMON_PARITY_H

#include "model/extension.h"
#include "model/session.h"
#include "tests/common/fixture.h"

struct parity_model {
    struct checkpoint *checkpoint;
    struct backend *backend;
    struct comm *comm;
    enum precision precision;
    int64_t chunk; // 0: the whole prompt at once
    enum layout layout;
    enum exchange exchange; // of sparse attention
    enum index_precision index_precision;
    bool dense, sharded;
};

// Largest and mean distance between Halka's log-probabilities (and last logits) and the case's.
// Fails the cmocka test when a call fails or a value is missing.
struct parity_distance {
    double logprob_max, logprob_mean, logit_max;
    double state_max;  // of an encoder, over the states of this rank's tokens
    double perplexity; // Halka's over the case's, less one
};
struct parity_distance parity_measure(const struct parity_model *model,
                                      const struct fixture_case *from);

// Fails unless the greedy tokens are the reference's as long as its margin exceeds `margin`. After
// a different token at a smaller margin nothing more can be compared. Returns the tokens compared.
int64_t parity_check_greedy(const struct parity_model *model, const struct fixture_greedy *from,
                            double margin);

// Every case and greedy continuation of a reference beside the checkpoint tests/fixtures/NAME, on
// all ranks of mpi_test_comm with one thread each, in fp32.
struct parity_run {
    const char *name;
    const char *file;      // of the folder: a GGUF file; NULL: the folder is the checkpoint
    const char *reference; // NULL: reference.json
    enum backend_kind kind;
    int64_t chunk;
    enum exchange exchange;
    enum index_precision index_precision; // AUTO: fp32
    bool sharded;                         // weights
    enum layout layout;
    const struct extension *extension; // NULL: as the checkpoint says
    int64_t window, sinks;             // model_spec_set_window; window 0: as the checkpoint has
};
void parity_check(const struct parity_run *run);

#endif
