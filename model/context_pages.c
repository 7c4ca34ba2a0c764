// The rows of a segment of a saved context. Page p holds, layer by layer and part by part
// (kv_store_parts), the rows of positions [p * CONTEXT_PAGE, ..) in their order; those of positions
// before the segment, or that a layer does not hold, are left as they are, zeroes. Its digest is
// the sum of the hashes of its rows, each of which knows where it belongs: so ranks add up what
// they hold of a page, and any number of them finds the same sum. All ranks go slab by slab of
// pages in step, so that none waits long for another.
#include <stdlib.h>
#include <string.h>

#include "model/context_internal.h"
#include "model/durable.h"

enum { PAGE_ALIGNMENT = 4096, SLAB_BYTES = 64 << 20 };

struct transfer {
    struct session *session;
    struct context_file_of file;
    const struct context_segment *segment;
    bool write;
    int64_t page_bytes;
    struct position_run *runs; // room, owned
    char *rows;                // this rank's of one part in a slab, owned
    int64_t *digest;           // [pages of a slab], owned
    int64_t first_page;        // of the slab, among all of the context
    // The part that is moved.
    struct kv_part part;
    int64_t offset; // in a page
    uint64_t seed;
};

int64_t context_page_bytes(const struct kv_store *store) {
    struct kv_part parts[KV_MAX_PARTS];
    int64_t bytes = 0;
    for (int i = 0; i < store->n_layer; i++) {
        int n = kv_store_parts(store, i, parts);
        for (int k = 0; k < n; k++) bytes += CONTEXT_PAGE * parts[k].bytes;
    }
    return ceil_div(bytes, PAGE_ALIGNMENT) * PAGE_ALIGNMENT;
}

static int64_t widest_row(const struct kv_store *store) {
    struct kv_part parts[KV_MAX_PARTS];
    int64_t widest = 1;
    for (int i = 0; i < store->n_layer; i++) {
        int n = kv_store_parts(store, i, parts);
        for (int k = 0; k < n; k++)
            if (parts[k].bytes > widest) widest = parts[k].bytes;
    }
    return widest;
}

// Rows of n consecutive positions in one page. 40 bits of each hash: sums stay below 2^63.
static enum status move_rows(struct transfer *t, int64_t position, int64_t n, char *rows) {
    int64_t page = position / CONTEXT_PAGE, bytes = t->part.bytes;
    int64_t in_file = page - t->segment->from / CONTEXT_PAGE;
    int64_t at = in_file * t->page_bytes + t->offset + position % CONTEXT_PAGE * bytes;
    if (t->write)
        TRY(durable_write_at(t->file.file, t->file.path, rows, n * bytes, at));
    else
        TRY(context_read_at(t->file.file, t->file.path, rows, n * bytes, at));
    for (int64_t i = 0; i < n; i++) {
        uint64_t seed = t->seed | (uint64_t)(position + i);
        uint64_t hash = XXH3_64bits_withSeed(rows + i * bytes, (size_t)bytes, seed);
        t->digest[page - t->first_page] += (int64_t)(hash >> 24);
    }
    return OK;
}

static enum status move_span(struct transfer *t, int64_t begin, int64_t end, char *rows) {
    const struct sequence *sequence = &t->session->sequence;
    int rank = t->session->forward.comm->rank;
    int n_run = sequence_runs(sequence, rank, begin, end, t->runs);
    for (int r = 0; r < n_run; r++) {
        struct position_run run = t->runs[r];
        for (int64_t i = 0, n = 1; i < run.count; i += n) {
            int64_t position = run.start + i * run.stride, left = run.count - i;
            if (run.stride == 1) n = CONTEXT_PAGE - position % CONTEXT_PAGE;
            if (n > left) n = left;
            TRY(move_rows(t, position, n, rows + (run.first_row + i) * t->part.bytes));
        }
    }
    return OK;
}

// Where in t->rows those of a span begin.
static char *rows_of(const struct transfer *t, const struct kv_chunk *slab,
                     const struct kv_rows *span) {
    int64_t row = sequence_count(slab->sequence, slab->rank, slab->begin, span->begin);
    return t->rows + row * t->part.bytes;
}

static enum status move_part(struct transfer *t, int layer, const struct kv_chunk *slab) {
    struct backend *backend = BACKEND(t->session);
    const struct kv_store *kv = &t->session->forward.kv;
    int64_t bytes = t->part.bytes;
    struct kv_rows spans[2];
    int n = kv_store_rows(kv, layer, slab, t->segment->begin[layer], spans);
    for (int i = 0; t->write && i < n; i++)
        TRY(backend->ops->download(backend, rows_of(t, slab, &spans[i]),
                                   t->part.rows + spans[i].row * bytes, spans[i].n * bytes));
    if (t->write && n > 0) TRY(backend->ops->sync(backend));
    if (!t->write) { // what is not in the file may yet have room in the layer
        int64_t n_row = sequence_count(slab->sequence, slab->rank, slab->begin, slab->end);
        memset(t->rows, 0, (size_t)(n_row * bytes));
    }
    for (int i = 0; i < n; i++)
        TRY(move_span(t, spans[i].begin, spans[i].end, rows_of(t, slab, &spans[i])));
    if (t->write) return OK;
    n = kv_store_rows(kv, layer, slab, kv->layers[layer].begin, spans);
    for (int i = 0; i < n; i++)
        TRY(backend->ops->upload(backend, t->part.rows + spans[i].row * bytes,
                                 rows_of(t, slab, &spans[i]), spans[i].n * bytes));
    return OK;
}

// The digest of a page is of all its rows. Those behind the session's no rank takes; the first
// rank reads them, of a part, after its own.
static enum status read_behind(struct transfer *t, int64_t length) {
    int64_t end = ceil_div(length, CONTEXT_PAGE) * CONTEXT_PAGE;
    if (end > t->segment->done) end = t->segment->done;
    if (length >= end || t->session->forward.comm->rank != 0) return OK;
    return move_rows(t, length, end - length, t->rows);
}

// This rank's part.
static enum status move_own(struct transfer *t, int64_t n_page, int64_t length) {
    struct session *s = t->session;
    int64_t begin = t->first_page * CONTEXT_PAGE, end = begin + n_page * CONTEXT_PAGE;
    if (begin < t->segment->from) begin = t->segment->from;
    struct kv_chunk slab = {&s->sequence, s->forward.comm->rank, begin, end < length ? end : length,
                            false};
    t->offset = 0;
    memset(t->digest, 0, (size_t)n_page * sizeof *t->digest);
    for (int i = 0; i < s->forward.kv.n_layer; i++) {
        struct kv_part parts[KV_MAX_PARTS];
        int n_part = kv_store_parts(&s->forward.kv, i, parts);
        for (int k = 0; k < n_part; k++) {
            t->part = parts[k];
            t->seed = (uint64_t)(i * KV_MAX_PARTS + k) << 44; // above every position
            TRY(move_part(t, i, &slab));
            if (!t->write && slab.end == length) TRY(read_behind(t, length));
            t->offset += CONTEXT_PAGE * t->part.bytes;
        }
    }
    return OK;
}

// A full disk or a lost server meets several ranks at once: one of them tells of it.
static enum status move_slab(struct transfer *t, int64_t n_page, int64_t length) {
    struct comm *comm = comm_host(t->session->forward.comm);
    TRY(comm_agree(comm, move_own(t, n_page, length)));
    return comm->ops->all_reduce(comm, t->digest, n_page, REDUCE_SUM_I64);
}

static void transfer_close(struct transfer *t) {
    free(t->digest);
    free(t->rows);
    free(t->runs);
}

// Pages of a slab.
static enum status transfer_open(struct transfer *t, int64_t n_page, int64_t *slab) {
    const struct session *s = t->session;
    int64_t n = t->page_bytes > 0 ? SLAB_BYTES / t->page_bytes : n_page;
    if (n > n_page) n = n_page;
    if (n < 1) n = 1;
    t->runs = malloc((size_t)sequence_max_runs(&s->sequence) * sizeof *t->runs);
    t->rows = malloc((size_t)(n * CONTEXT_PAGE * widest_row(&s->forward.kv)));
    t->digest = malloc((size_t)n * sizeof *t->digest);
    *slab = n;
    if (t->runs && t->rows && t->digest) return OK;
    FAIL(ERR_MEMORY, "no memory for %lld pages of a saved context", (long long)n);
}

static enum status check_slab(const struct transfer *t, int64_t n_page) {
    const struct context_segment *segment = t->segment;
    for (int64_t i = 0; i < n_page; i++) {
        int64_t page = t->first_page + i, first = page * CONTEXT_PAGE, last = first + CONTEXT_PAGE;
        if (first < segment->from) first = segment->from;
        if (last > segment->done) last = segment->done;
        if (t->digest[i] != segment->digest[page - segment->from / CONTEXT_PAGE])
            FAIL(ERR_INPUT, "page %lld (tokens %lld to %lld) of %s is damaged", (long long)page,
                 (long long)first, (long long)last - 1, t->file.path);
    }
    return OK;
}

// written NULL: reads, and compares with the segment's digests what else would go there.
static enum status move_pages(struct transfer *t, int64_t *written) {
    enum status status = OK;
    struct backend *backend = BACKEND(t->session);
    const struct context_segment *segment = t->segment;
    int64_t length = t->session->sequence.length, slab = 0;
    if (length > segment->done) length = segment->done;
    int64_t first = segment->from / CONTEXT_PAGE, end = ceil_div(length, CONTEXT_PAGE);
    t->write = written != NULL;
    t->page_bytes = context_page_bytes(&t->session->forward.kv);
    TRY_OR(done, transfer_open(t, end - first, &slab));
    for (t->first_page = first; t->first_page < end; t->first_page += slab) {
        int64_t left = end - t->first_page, n = left < slab ? left : slab;
        TRY_OR(done, move_slab(t, n, length));
        if (written)
            memcpy(written + (t->first_page - first), t->digest, (size_t)n * sizeof *t->digest);
        else
            TRY_OR(done, check_slab(t, n));
    }
    TRY_OR(done, backend->ops->sync(backend));
done:
    transfer_close(t);
    return status;
}

enum status context_pages_write(struct session *session, struct context_file_of file,
                                struct context_segment *segment) {
    struct transfer t = {.session = session, .file = file, .segment = segment};
    return move_pages(&t, segment->digest);
}

enum status context_pages_read(struct session *session, struct context_file_of file,
                               const struct context_segment *segment) {
    struct transfer t = {.session = session, .file = file, .segment = segment};
    return move_pages(&t, NULL);
}
