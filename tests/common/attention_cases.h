// Cases of attention for tests of its operations: shapes, what a query sees, where positions lie
// and what keys and values hold; their arguments; and the backends that they run on.
#ifndef HALKA_TESTS_COMMON_ATTENTION_CASES_H
#define HALKA_TESTS_COMMON_ATTENTION_CASES_H

#include "tests/common/cases.h"

enum positions {
    LAST,   // queries are the last tokens of the sequence that the keys cover
    AFTER,  // queries come after all keys
    BEFORE, // queries come before all keys: none is visible
    SHARDS, // two zigzag pieces of queries against two of keys, far apart and interleaved
    APART,  // every third position of the keys, other ones of the queries
};
// What a query at a position sees.
enum visibility {
    FULL,
    CAUSAL,
    WINDOW,    // the last `window` keys
    SYMMETRIC, // those at most `window` away
    FAR,       // all but the last `window`
    SINKS,     // WINDOW, and the first `window` / 4 positions of the keys
    DOCUMENTS, // those of its own window + 1 positions, counted from ORIGIN
};
enum content {
    RANDOM,
    EQUAL,      // all scores 0
    LARGE,      // scores about 1e6: one key takes all the weight
    HUGE_SCORE, // scores about 1e30
    NAN_KEY,    // the last three keys hold NaN
    NAN_VALUE,  // their values do
    INF_KEY,    // one key gives scores of +inf to some rows and -inf to others
    INF_VALUE,
    VALUE_IN_KEY,     // a value is the start of its key
    NAN_VALUE_IN_KEY, // so it is, and the last three hold NaN
    NAN_MIDDLE,       // three keys in the middle hold NaN
    NAN_VALUE_MIDDLE, // their values do
};

struct attention_case {
    const char *name;
    int64_t n_query, n_key;
    int n_head, n_kv_head, head_dim, value_dim;
    enum visibility visibility;
    enum positions positions;
    enum content content;
    int gap;    // elements between rows, which hold NaN
    int window; // see enum visibility
};

extern const struct attention_case attention_cases[];
extern const int n_attention_case;

struct attention_format {
    enum dtype query, kv;
};
enum { N_ATTENTION_FORMAT = 4 };
extern const struct attention_format attention_formats[N_ATTENTION_FORMAT];

// Whether a run of the tests has time for the case (see case_is_wanted).
bool attention_case_is_wanted(const struct attention_case *c, struct attention_format format);

// Forms of attention: the cpu's instruction sets, then a device's.
enum { FORM_PLAIN = ISA_PLAIN, FORM_AVX512 = ISA_AVX512, FORM_DEVICE = ISA_AVX512_BF16 + 1 };
int attention_first_form(void); // of those to test: light tests (see case_is_wanted) have one
struct backend attention_backend_open(enum backend_kind kind, enum isa isa, int n_thread);
struct backend attention_form_open(int form, int n_thread);
void attention_backend_close(struct backend *backend);
// Set-up and tear-down of a cmocka group: the device, a mirror of it, is opened once.
int attention_device_open(void **state);
int attention_device_close(void **state);

// Inputs of the case, outputs of its size.
struct attention_args attention_arguments_open(const struct attention_case *c,
                                               enum dtype query_dtype, enum dtype kv_dtype);
void attention_arguments_close(struct attention_args *a);
// Runs attention into poisoned outputs with one guard element behind each.
void attention_attend(struct backend *backend, const struct attention_args *a);
// A NaN is expected exactly where the reference has one, and it must not be the poison.
void attention_assert_close(const char *what, const float *got, const float *expected, int64_t n,
                            struct tolerance tolerance);
// Every form of attention, on one thread and on several, against the reference.
void attention_check_case(struct backend *reference, const struct attention_case *c,
                          struct attention_format format);

#endif
