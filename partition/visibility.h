// Which keys a query sees, as pure integer functions of positions: causal, a window behind, a
// window on both sides, everything, the first tokens besides (sinks), packed documents, blocks.
// Counts and needs are closed forms per contiguous piece, never loops over tokens.
#ifndef HALKA_PARTITION_VISIBILITY_H
#define HALKA_PARTITION_VISIBILITY_H

#include "partition/partition.h"

#define VISIBLE_ALL INT64_MAX

// Both bounds rise with the query's position. back + ahead >= -1.
struct visibility {
    int64_t back, ahead; // a query at p sees keys in [p - back, p + ahead]; VISIBLE_ALL: no bound.
                         // ahead 0: causal; it may be negative: only what is so far behind
    int64_t block; // > 0: back and ahead count blocks of so many positions; ahead is 0 or less, and
                   // of its own block a query sees up to itself. No sinks, no documents
    int64_t sinks; // and those of the first so many positions that are not after p + ahead
    int n_document; // packed documents: a query sees keys of its own only, and there are no
                    // sinks; 0: one document
    const int64_t *document_end; // [n_document] ascending global positions
};
#define VISIBILITY_CAUSAL ((struct visibility){.back = VISIBLE_ALL})
#define VISIBILITY_FULL ((struct visibility){.back = VISIBLE_ALL, .ahead = VISIBLE_ALL})

// Whether some query's keys are bounded below, above.
static inline bool visibility_bounds_begin(const struct visibility *v) {
    return v->back != VISIBLE_ALL || v->n_document > 0;
}
static inline bool visibility_bounds_end(const struct visibility *v) {
    return v->ahead != VISIBLE_ALL || v->n_document > 0;
}

// Positions below this are seen from beyond the window, too: 0 where there is none to look beyond.
int64_t visibility_sinks(const struct visibility *visibility);
// Keys at [begin, end) are seen, without the sinks; none where end <= begin. No bound above:
// VISIBLE_ALL.
int64_t visibility_begin(const struct visibility *visibility, int64_t position);
int64_t visibility_end(const struct visibility *visibility, int64_t position);
struct span visibility_keys(const struct visibility *visibility, int64_t position);
// The bounds of n queries at ascending positions, for kernels. Either array may be NULL.
void visibility_bounds(const struct visibility *visibility, const int64_t *position, int64_t n,
                       int64_t *begin, int64_t *end);

// One attention: queries at [query_begin, query_end) of the sequence, and the keys that the ranks
// hold for them: positions [key_begin, key_end) and, before these, the sinks.
struct visible_range {
    const struct sequence *sequence;
    struct visibility visibility;
    int64_t key_begin, query_begin, query_end;
    int64_t key_end; // 0: query_end
};
static inline int64_t visible_key_end(const struct visible_range *range) {
    return range->key_end ? range->key_end : range->query_end;
}

// Sinks held before key_begin.
int64_t visible_sinks(const struct visible_range *range);
// Whether what the queries see is held.
bool visible_is_held(const struct visible_range *range);

// Keys that a rank holds, and how many of them are at positions below `end`: held in the order of
// positions, those at [a, b) are the rows [visible_held_before(a), visible_held_before(b)).
int64_t visible_held(const struct visible_range *range, int rank);
int64_t visible_held_before(const struct visible_range *range, int rank, int64_t end);

// Pairs of a query of one rank and a key of another that it sees. With one rank: all.
int64_t visible_pairs(const struct visible_range *range, int query_rank, int key_rank);

// The keys that a rank's queries see, whoever holds them: ascending spans that do not touch, into
// out[visible_max_spans]; returns how many. A run of queries needs one span: where queries
// alternate over more ranks than a window is long, what lies between windows is needed too.
int visible_spans(const struct visible_range *range, int rank, struct span *out);
int visible_max_spans(const struct visible_range *range);
// How many of the keys in these spans a rank holds.
int64_t visible_in_spans(const struct visible_range *range, int rank, const struct span *spans,
                         int n_span);

#endif
