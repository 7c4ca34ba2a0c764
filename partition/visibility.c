#include "partition/visibility.h"

#include <stddef.h>

#include "partition/run.h"

// Far beyond any position, and not near overflow when positions are added.
enum { FAR_BITS = 61 };
static const int64_t far_away = (int64_t)1 << FAR_BITS;

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// The document of a position: the first that ends after it, or n_document behind the last one.
static int document_of(const struct visibility *v, int64_t position) {
    int low = 0, high = v->n_document;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (v->document_end[middle] <= position)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int64_t document_begin(const struct visibility *v, int document) {
    return document > 0 ? v->document_end[document - 1] : 0;
}

static int64_t document_end(const struct visibility *v, int document) {
    return document < v->n_document ? v->document_end[document] : VISIBLE_ALL;
}

// Keys of blocks [b - back, b + ahead] for a query of block b.
static int64_t block_begin(const struct visibility *v, int64_t position) {
    if (v->back == VISIBLE_ALL) return 0;
    return max64(0, position / v->block - v->back) * v->block;
}

static int64_t block_end(const struct visibility *v, int64_t position) {
    if (v->ahead == 0) return position + 1;
    return max64(0, position / v->block + v->ahead + 1) * v->block;
}

int64_t visibility_sinks(const struct visibility *v) {
    return v->n_document > 0 || v->block > 0 || v->back == VISIBLE_ALL ? 0 : v->sinks;
}

static int64_t begin_in(const struct visibility *v, int document, int64_t position) {
    if (v->block > 0) return block_begin(v, position);
    int64_t begin = document_begin(v, document);
    return v->back == VISIBLE_ALL ? begin : max64(begin, position - v->back);
}

static int64_t end_in(const struct visibility *v, int document, int64_t position) {
    if (v->block > 0) return block_end(v, position);
    int64_t end = document_end(v, document);
    if (v->ahead >= far_away) return end;
    return max64(document_begin(v, document), min64(end, position + v->ahead + 1));
}

int64_t visibility_begin(const struct visibility *v, int64_t position) {
    return begin_in(v, document_of(v, position), position);
}

int64_t visibility_end(const struct visibility *v, int64_t position) {
    return end_in(v, document_of(v, position), position);
}

void visibility_bounds(const struct visibility *v, const int64_t *position, int64_t n,
                       int64_t *begin, int64_t *end) {
    int document = n > 0 ? document_of(v, position[0]) : 0;
    for (int64_t i = 0; i < n; i++) {
        while (document < v->n_document && v->document_end[document] <= position[i]) document++;
        if (begin) begin[i] = begin_in(v, document, position[i]);
        if (end) end[i] = end_in(v, document, position[i]);
    }
}

struct span visibility_keys(const struct visibility *v, int64_t position) {
    int64_t begin = visibility_begin(v, position), end = visibility_end(v, position);
    return (struct span){begin, max64(0, end - begin)};
}

int64_t visible_sinks(const struct visible_range *r) {
    return min64(visibility_sinks(&r->visibility), r->key_begin);
}

bool visible_is_held(const struct visible_range *r) {
    const struct visibility *v = &r->visibility;
    return r->query_begin >= r->query_end || visibility_begin(v, r->query_begin) >= r->key_begin;
}

int64_t visible_held_before(const struct visible_range *r, int rank, int64_t end) {
    int64_t sinks = sequence_count(r->sequence, rank, 0, min64(end, visible_sinks(r)));
    return sinks + sequence_count(r->sequence, rank, r->key_begin, min64(end, visible_key_end(r)));
}

int64_t visible_held(const struct visible_range *r, int rank) {
    return visible_held_before(r, rank, visible_key_end(r));
}

// Pairs with key position <= query position + offset.
static int64_t pairs_up_to(struct run query, const struct run *key, int64_t offset) {
    if (offset >= far_away) return query.count * key->count;
    query.start += max64(offset, -far_away);
    return run_causal_pairs(&query, key);
}

// Of a document that holds both runs.
static int64_t band_pairs(const struct visibility *v, struct run query, struct run key) {
    int64_t pairs = pairs_up_to(query, &key, v->ahead);
    if (v->back == VISIBLE_ALL) return pairs;
    int64_t hidden = -v->back - 1; // keys up to there are before the window
    struct run sinks = run_clip(key, 0, visibility_sinks(v));
    return pairs - pairs_up_to(query, &key, hidden) + pairs_up_to(query, &sinks, hidden);
}

static int64_t last_of(const struct run *run) {
    return run->start + (run->count - 1) * run->stride;
}

// Block by block of the queries.
static int64_t block_pairs(const struct visibility *v, const struct run *query,
                           const struct run *key) {
    int64_t pairs = 0;
    for (int64_t p = query->start; p <= last_of(query); p = (p / v->block + 1) * v->block) {
        int64_t end = (p / v->block + 1) * v->block;
        struct run queries = run_clip(*query, p, end);
        struct run keys = run_clip(*key, block_begin(v, p), v->ahead ? block_end(v, p) : end);
        pairs += pairs_up_to(queries, &keys, v->ahead ? VISIBLE_ALL : 0);
    }
    return pairs;
}

static int64_t run_pairs(const struct visibility *v, const struct run *query,
                         const struct run *key) {
    if (query->count == 0 || key->count == 0) return 0;
    if (v->block > 0) return block_pairs(v, query, key);
    if (v->n_document == 0) return band_pairs(v, *query, *key);
    int first = document_of(v, max64(query->start, key->start));
    int last = document_of(v, min64(last_of(query), last_of(key)));
    int64_t pairs = 0;
    for (int d = first; d <= last; d++) {
        int64_t begin = document_begin(v, d), end = document_end(v, d);
        pairs += band_pairs(v, run_clip(*query, begin, end), run_clip(*key, begin, end));
    }
    return pairs;
}

int64_t visible_pairs(const struct visible_range *r, int query_rank, int key_rank) {
    const struct sequence *sequence = r->sequence;
    int64_t pairs = 0;
    for (int q = 0; q < sequence->n_extent; q++) {
        const struct extent *queries = &sequence->extents[q];
        if (queries->start >= r->query_end || queries->start + queries->kept <= r->query_begin)
            continue;
        struct run query[RUNS_PER_EXTENT];
        run_of_extent(queries, sequence->size, query_rank, r->query_begin, r->query_end, query);
        for (int k = 0; k < sequence->n_extent; k++) {
            struct run key[RUNS_PER_EXTENT];
            run_of_extent(&sequence->extents[k], sequence->size, key_rank, 0, visible_key_end(r),
                          key);
            for (int i = 0; i < RUNS_PER_EXTENT * RUNS_PER_EXTENT; i++)
                pairs += run_pairs(&r->visibility, &query[i / 2], &key[i % 2]);
        }
    }
    return pairs;
}

static int add_span(struct span *out, int n, int64_t begin, int64_t end) {
    if (end <= begin) return n;
    struct span *last = n ? &out[n - 1] : NULL;
    if (!last || begin > last->start + last->length) {
        out[n] = (struct span){begin, end - begin};
        return n + 1;
    }
    last->length = max64(last->length, end - last->start);
    return n;
}

int visible_max_spans(const struct visible_range *r) {
    int n = 1; // the sinks
    for (int e = 0; e < r->sequence->n_extent; e++) {
        const struct extent *extent = &r->sequence->extents[e];
        bool asks = extent->start < r->query_end && extent->start + extent->kept > r->query_begin;
        if (asks) n += RUNS_PER_EXTENT;
    }
    return n;
}

static int add_extent_spans(const struct visible_range *r, const struct extent *extent, int rank,
                            struct span *out, int n) {
    const struct visibility *v = &r->visibility;
    struct run runs[RUNS_PER_EXTENT];
    if (v->block == 0 && v->back != VISIBLE_ALL && v->ahead < -v->back) return n; // sinks only
    run_of_extent(extent, r->sequence->size, rank, r->query_begin, r->query_end, runs);
    for (int i = 0; i < RUNS_PER_EXTENT; i++) {
        if (runs[i].count == 0) continue;
        int64_t end = min64(visibility_end(v, last_of(&runs[i])), visible_key_end(r));
        n = add_span(out, n, visibility_begin(v, runs[i].start), end);
    }
    return n;
}

static int64_t last_query(const struct visible_range *r, int rank) {
    for (int e = r->sequence->n_extent - 1; e >= 0; e--) {
        struct run runs[RUNS_PER_EXTENT];
        run_of_extent(&r->sequence->extents[e], r->sequence->size, rank, r->query_begin,
                      r->query_end, runs);
        for (int i = RUNS_PER_EXTENT - 1; i >= 0; i--)
            if (runs[i].count) return last_of(&runs[i]);
    }
    return -1;
}

int visible_spans(const struct visible_range *r, int rank, struct span *out) {
    int64_t last = last_query(r, rank);
    if (last < 0) return 0;
    int64_t end = min64(visibility_end(&r->visibility, last), visible_key_end(r));
    int n = add_span(out, 0, 0, min64(visibility_sinks(&r->visibility), end));
    for (int e = 0; e < r->sequence->n_extent; e++)
        n = add_extent_spans(r, &r->sequence->extents[e], rank, out, n);
    return n;
}

int64_t visible_in_spans(const struct visible_range *r, int rank, const struct span *spans,
                         int n_span) {
    int64_t n = 0;
    for (int i = 0; i < n_span; i++) {
        int64_t end = spans[i].start + spans[i].length;
        n += visible_held_before(r, rank, end) - visible_held_before(r, rank, spans[i].start);
    }
    return n;
}
