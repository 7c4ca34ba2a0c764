// Contexts that a test saves and restores: a text of three pages, an open checkpoint, a folder that
// all ranks use. context_test_open and context_test_close set a group of tests up and tear it down;
// failures end the test.
#ifndef HALKA_TESTS_COMMON_CONTEXT_TEST_H
#define HALKA_TESTS_COMMON_CONTEXT_TEST_H

#include "model/context_store.h"
#include "model/extension.h"
#include "tests/common/mpi_test.h"

// Three pages, the last of them part; what comes behind is not of the document.
enum { N_TOKEN = 600, N_ALL = 616 };

extern struct comm context_test_self;             // this rank alone
extern struct checkpoint context_test_checkpoint; // opened and closed by each test
extern const struct session_options context_test_plain;

int context_test_open(void **state); // not 0: the reason was printed
int context_test_close(void **state);

// Another order of sums in fp32: of ln p and logits to 13, 3 layers.
#define CONTEXT_FP32_SUMS 1e-4
// What rows are kept of.
struct context_network {
    const char *name; // of the test
    const char *folder;
    int64_t window, sinks; // set on it; 0: none
    struct extension extension;
    enum precision precision;
    enum index_precision index_precision;
    double tolerance;
};
enum { N_CONTEXT_NETWORK = 7 };
extern const struct context_network context_test_networks[N_CONTEXT_NETWORK];
// Into context_test_checkpoint: a folder of tests/fixtures, a network.
void context_test_open_checkpoint(const char *name);
void context_test_open_network(const struct context_network *network);

void context_test_succeed(enum status status);
// n log-probabilities ("token") or logits ("logit"), none of them further from what is expected.
void context_test_compare(const char *what, const char *of, int64_t n, const float *got,
                          const float *expected, double tolerance);
// All ranks are here.
void context_test_meet(void);
struct session *context_test_open_session(struct comm *comm, const struct session_options *options);
struct context context_test_named(const char *identity);
// Tokens [from, from + n).
void context_test_append(struct session *session, int64_t from, int64_t n, float *logprob,
                         float *logits);
// A session that holds the text.
struct session *context_test_restore(struct comm *comm, const struct session_options *options,
                                     const struct context *context);
// Of a file of the context; free() it.
char *context_test_path(const struct context *context, const char *name);
bool context_test_exists(const struct context *context, const char *name);

#endif
