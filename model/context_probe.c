// Whether a saved context is what this job would compute: its first tokens are read again, and
// their keys and values compared with the file's. A file of another network, or of other rotations,
// differs in most numbers; one of another precision, device or number of ranks by rounding alone.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/context_internal.h"

// Of a part of a layer, over all its tokens: sums of squares.
struct disparity {
    double difference, size;
};

struct probe {
    struct session *session;
    struct context_file_of file;
    struct position_run *runs; // room, owned, as what follows
    char *rows, *row;          // this rank's of a part, and one of the file
    float *number[2];          // of either row
    struct disparity *parts;   // [n_layer * KV_MAX_PARTS]
};

static void probe_close(struct probe *p) {
    free(p->runs);
    free(p->rows);
    free(p->row);
    free(p->number[0]);
    free(p->number[1]);
    free(p->parts);
}

static enum status probe_open(struct probe *p, int64_t n) {
    const struct kv_store *kv = &p->session->forward.kv;
    struct kv_part part[KV_MAX_PARTS];
    size_t widest = 1;
    for (int i = 0; i < kv->n_layer; i++)
        for (int k = kv_store_parts(kv, i, part); k-- > 0;)
            if ((size_t)part[k].bytes > widest) widest = (size_t)part[k].bytes;
    p->runs = malloc((size_t)sequence_max_runs(&p->session->sequence) * sizeof *p->runs);
    p->rows = malloc((size_t)n * widest);
    p->row = malloc(widest);
    for (int i = 0; i < 2; i++) p->number[i] = malloc(widest * sizeof(float));
    p->parts = calloc((size_t)kv->n_layer * KV_MAX_PARTS, sizeof *p->parts);
    if (p->runs && p->rows && p->row && p->number[0] && p->number[1] && p->parts) return OK;
    FAIL(ERR_MEMORY, "no memory to compare %lld tokens", (long long)n);
}

static enum status add_row(struct probe *p, const char *row, int64_t bytes, int64_t offset,
                           struct disparity *out) {
    enum dtype dtype = p->session->forward.kv.shape.dtype;
    int64_t n = bytes / dtype_bytes(dtype, 1);
    TRY(context_read_at(p->file.file, p->file.path, p->row, bytes, offset));
    dtype_to_float(dtype, row, n, p->number[0]);
    dtype_to_float(dtype, p->row, n, p->number[1]);
    for (int64_t i = 0; i < n; i++) {
        double own = p->number[0][i], other = p->number[1][i];
        out->difference += (own - other) * (own - other);
        out->size += own * own;
    }
    return OK;
}

// This rank's rows of the first n tokens; offset: of the part in the first page.
static enum status add_part(struct probe *p, int layer, const struct kv_part *part, int64_t offset,
                            struct disparity *out) {
    struct backend *backend = BACKEND(p->session);
    const struct kv_store *kv = &p->session->forward.kv;
    const struct sequence *sequence = &p->session->sequence;
    struct kv_chunk slab = {sequence, p->session->forward.comm->rank, 0, sequence->length, false};
    struct kv_rows spans[2];
    int n = kv_store_rows(kv, layer, &slab, kv_store_held_from(kv, layer), spans);
    for (int i = 0; i < n; i++) {
        int64_t bytes = part->bytes, row = 0;
        TRY(backend->ops->download(backend, p->rows, part->rows + spans[i].row * bytes,
                                   spans[i].n * bytes));
        TRY(backend->ops->sync(backend));
        int n_run = sequence_runs(sequence, slab.rank, spans[i].begin, spans[i].end, p->runs);
        for (int r = 0; r < n_run; r++)
            for (int64_t k = 0; k < p->runs[r].count; k++, row++) {
                int64_t position = p->runs[r].start + k * p->runs[r].stride;
                TRY(add_row(p, p->rows + row * bytes, bytes, offset + position * bytes, out));
            }
    }
    return OK;
}

static enum status add_layers(struct probe *p, const struct context_segment *first) {
    const struct kv_store *kv = &p->session->forward.kv;
    int64_t offset = 0;
    for (int i = 0; i < kv->n_layer; i++) {
        struct kv_part part[KV_MAX_PARTS];
        int n = kv_store_parts(kv, i, part);
        for (int k = 0; k < n; k++) {
            bool of_index = strncmp(part[k].name, "index", 5) == 0; // of another precision
            if (!of_index && first->begin[i] == 0)
                TRY(add_part(p, i, &part[k], offset, &p->parts[i * KV_MAX_PARTS + k]));
            offset += CONTEXT_PAGE * part[k].bytes;
        }
    }
    return OK;
}

static enum status compare(struct probe *p, const struct context_segment *first, double *out) {
    struct comm *comm = comm_host(p->session->forward.comm);
    int n = p->session->forward.kv.n_layer * KV_MAX_PARTS;
    TRY(comm_agree(comm, add_layers(p, first)));
    TRY(comm->ops->all_reduce(comm, p->parts, 2 * (int64_t)n, REDUCE_SUM_F64));
    *out = 0;
    for (int i = 0; i < n; i++) {
        double size = p->parts[i].size, ratio = sqrt(p->parts[i].difference / size);
        if (size > 0 && !(ratio <= *out)) *out = ratio; // also what is no number
    }
    return OK;
}

int64_t context_probe_length(const struct context_access *a, int64_t n) {
    const struct context_segment *first = a->manifest.segment;
    bool held = false;
    for (int i = 0; i < a->session->forward.kv.n_layer; i++) held = held || first->begin[i] == 0;
    if (!held) return 0;
    if (n > first->done) n = first->done;
    return n < CONTEXT_PROBE ? n : CONTEXT_PROBE;
}

enum status context_probe(struct context_access *a, int64_t n, double *out) {
    const struct context_segment *first = a->manifest.segment;
    struct probe probe = {.session = a->session};
    TRY(context_access_files(a, first->generation));
    TRY(comm_agree(a->comm, context_access_pages(a, first, false)));
    probe.file = (struct context_file_of){a->file, a->path[CONTEXT_PAGES]};
    TRY(session_append(a->session, &(struct append_args){.token = a->context->token, .n = n}));
    enum status status = comm_agree(a->comm, probe_open(&probe, n));
    if (status == OK) status = compare(&probe, first, out);
    probe_close(&probe);
    TRY(status);
    return session_truncate(a->session, 0);
}
