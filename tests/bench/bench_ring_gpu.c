// Ring attention over ranks of a device each (mpirun -np N): GB/s of a shift; rate of a GPU, its
// share of what the same tiles reach without a ring, exposed wait, zigzag against contiguous
// shards; a short end of a long document by keys and by queries that travel; windows by ring and by
// halo; decoding. Device work, random data, the slowest rank, medians.
// `bench_ring_gpu [LONGEST [DIVISOR]]`: tokens of the longest case (1M); a divisor of all sizes
// rehearses on any machine.
#include <stdio.h>
#include <stdlib.h>

#include "dist/ring_attention.h"
#include "tests/common/cases.h"
#include "tests/common/measure.h"
#include "tests/common/measure_ranks.h"

enum { TOKENS_OF_A_RANK = 8192, MIDDLE = 131072, WINDOW = 4096, HEAD_DIM = 128, DECODE_CALLS = 50 };
enum { MOST_SENT = 4096 }; // queries of all ranks that travel

static enum status call_shift(struct ranks *b, void *user) {
    TRY(b->comm->ops->shift_start(b->comm, user));
    return b->comm->ops->shift_wait(b->comm);
}

static void print_shift(struct ranks *b, int64_t bytes) {
    int size = b->comm->size, rank = b->comm->rank;
    struct shift_args args = {.destination = (rank + 1) % size,
                              .source = (rank + size - 1) % size,
                              .n_buffer = 1,
                              .send = {{ranks_random(b, DTYPE_BF16, bytes / 2), bytes}},
                              .receive = {{ranks_poisoned(b, bytes), bytes}}};
    double seconds = ranks_measure(b, call_shift, &args, 10).seconds;
    if (rank == 0)
        printf("shift of %4lld MiB %42.3f ms %8.1f GB/s received by each rank\n",
               (long long)(bytes >> 20), seconds * 1e3, (double)bytes / seconds * 1e-9);
    ranks_release(b);
}

struct shape {
    const char *name;
    int n_head, n_kv_head;
};
static const struct shape shapes[] = {{"32:8", 32, 8}, {"64:8", 64, 8}};
enum { N_SHAPE = sizeof shapes / sizeof *shapes };

struct ring_run {
    struct sequence sequence;
    struct ring_attention ring;
    struct ring_attention_args args;
    int64_t n_query, n_key; // of this rank
};

// The last n_query tokens of n attend to all n; n_query 1 decodes.
static void open_ring(struct ranks *b, const struct shape *shape, enum layout layout, int64_t n,
                      int64_t n_query, struct ring_run *r) {
    const int rank = b->comm->rank;
    bool decode = n_query == 1;
    sequence_open(&r->sequence, b->comm->size);
    if (n > n_query) ranks_append(b, &r->sequence, layout, n - n_query);
    ranks_append(b, &r->sequence, layout, n_query);
    r->n_query = decode ? 1 : sequence_count(&r->sequence, rank, n - n_query, n);
    r->n_key = sequence_count(&r->sequence, rank, 0, n);
    const struct attention_shape widths = {
        shape->n_head, shape->n_kv_head, HEAD_DIM, HEAD_DIM, 2, 2, false};
    const struct ring_extent extent = {.memory = b->backend.memory,
                                       .size = b->comm->size,
                                       .shard = n / b->comm->size + 4,
                                       .query = decode ? 0 : n_query / b->comm->size + 4,
                                       .all_query = n_query <= MOST_SENT ? n_query : 0,
                                       .decode_query = decode,
                                       .halo = decode ? 0 : n / b->comm->size + 4};
    ranks_require(b, ring_attention_open(&r->ring, &b->backend, b->comm, &b->profile,
                                         ring_attention_workspace_bytes(&widths, &extent)));
    int64_t query_width = (int64_t)shape->n_head * HEAD_DIM;
    int64_t key_width = (int64_t)shape->n_kv_head * HEAD_DIM;
    r->args =
        (struct ring_attention_args){.sequence = &r->sequence,
                                     .query_begin = n - n_query,
                                     .query_end = n,
                                     .n_head = shape->n_head,
                                     .n_kv_head = shape->n_kv_head,
                                     .head_dim = HEAD_DIM,
                                     .value_dim = HEAD_DIM,
                                     .scale = 0.088f,
                                     .visibility = VISIBILITY_CAUSAL,
                                     .pass = PASS_KV,
                                     .query = ranks_random(b, DTYPE_BF16, r->n_query * query_width),
                                     .query_dtype = DTYPE_BF16,
                                     .key = ranks_random(b, DTYPE_BF16, r->n_key * key_width),
                                     .value = ranks_random(b, DTYPE_BF16, r->n_key * key_width),
                                     .kv_dtype = DTYPE_BF16,
                                     .out = ranks_poisoned(b, r->n_query * query_width * 4),
                                     .lse = ranks_poisoned(b, r->n_query * shape->n_head * 4)};
}

static void close_ring(struct ranks *b, struct ring_run *r) {
    ring_attention_close(&r->ring);
    sequence_close(&r->sequence);
    ranks_release(b);
}

static enum status call_ring(struct ranks *b, void *user) {
    struct ring_run *r = user;
    (void)b;
    return ring_attention_run(&r->ring, &r->args);
}

// The attention of every step of a ring on the own keys, with the positions of that step: what the
// kernel reaches on these tiles without transfers and merging.
struct local_run {
    const struct ring_run *ring;
    int64_t *end_visible, *key_position;
};

static enum status call_local(struct ranks *b, void *user) {
    struct local_run *l = user;
    const struct ring_attention_args *a = &l->ring->args;
    for (int holder = 0; holder < b->comm->size; holder++) {
        int64_t n_key = sequence_count(a->sequence, holder, 0, a->query_end), blind = 0;
        if (n_key > l->ring->n_key) n_key = l->ring->n_key;
        sequence_positions(a->sequence, holder, 0, a->query_end, l->key_position);
        while (blind < l->ring->n_query && l->end_visible[blind] <= l->key_position[0]) blind++;
        const struct attention_args attention = {.n_query = l->ring->n_query - blind,
                                                 .n_key = n_key,
                                                 .n_head = a->n_head,
                                                 .n_kv_head = a->n_kv_head,
                                                 .head_dim = HEAD_DIM,
                                                 .value_dim = HEAD_DIM,
                                                 .scale = a->scale,
                                                 .query = (const uint16_t *)a->query +
                                                          blind * a->n_head * HEAD_DIM,
                                                 .query_dtype = DTYPE_BF16,
                                                 .query_stride = (int64_t)a->n_head * HEAD_DIM,
                                                 .key = a->key,
                                                 .value = a->value,
                                                 .kv_dtype = DTYPE_BF16,
                                                 .key_stride = (int64_t)a->n_kv_head * HEAD_DIM,
                                                 .value_stride = (int64_t)a->n_kv_head * HEAD_DIM,
                                                 .end_visible = l->end_visible + blind,
                                                 .key_position = l->key_position,
                                                 .out = a->out,
                                                 .lse = a->lse};
        TRY(b->backend.ops->attention(&b->backend, &attention));
    }
    return OK;
}

static double local_seconds(struct ranks *b, const struct ring_run *r, int n_call) {
    const struct ring_attention_args *a = &r->args;
    struct local_run local = {r, test_alloc((r->n_query + 1) * 8), test_alloc((r->n_key + 8) * 8)};
    sequence_positions(a->sequence, b->comm->rank, a->query_begin, a->query_end, local.end_visible);
    for (int64_t i = 0; i < r->n_query; i++) local.end_visible[i]++;
    double seconds = ranks_measure(b, call_local, &local, n_call).seconds;
    free(local.end_visible);
    free(local.key_position);
    return seconds;
}

// n_call: runs queued together, so that the host is ahead where they are short. A GPU's clock
// drifts while it works for seconds: there ring and kernel take turns.
static void print_prefill(struct ranks *b, const struct shape *shape, enum layout layout, int64_t n,
                          int n_call) {
    struct ring_run r;
    open_ring(b, shape, layout, n, n, &r);
    bool zigzag = layout == LAYOUT_ZIGZAG;
    int n_turn = n > MIDDLE ? 2 : 1;
    struct ranks_timing t = {0};
    double local = 0;
    for (int i = 0; i < n_turn; i++) {
        struct ranks_timing turn = ranks_measure(b, call_ring, &r, n_call);
        measure_check(&b->backend, DTYPE_F32, r.args.out, r.n_query * shape->n_head * HEAD_DIM);
        t.seconds += turn.seconds / n_turn;
        t.wait += turn.wait / n_turn;
        t.merge += turn.merge / n_turn;
        bool compares = zigzag && b->comm->size > 1;
        local += (compares ? local_seconds(b, &r, n_call) : turn.seconds) / n_turn;
    }
    double flop = (double)n * (double)(n + 1) / 2 * 4 * HEAD_DIM * shape->n_head / b->comm->size;
    if (b->comm->rank == 0) {
        printf("prefill %s, %7lld tokens, %-10s %23.3f ms %8.1f TFLOP/s a GPU", shape->name,
               (long long)n, zigzag ? "zigzag" : "contiguous", t.seconds * 1e3,
               flop / t.seconds * 1e-12);
        if (zigzag) printf(", %5.1f %% of the kernel's", 100 * local / t.seconds);
        printf(", wait %4.1f %%, merge %4.1f %%\n", 100 * t.wait, 100 * t.merge);
        fflush(stdout);
    }
    close_ring(b, &r);
}

// The last n_query of n tokens: where the pass-KV / pass-Q threshold lies.
static void print_end(struct ranks *b, int64_t n, int64_t n_query) {
    const struct shape *shape = &shapes[0];
    const enum pass passes[] = {PASS_KV, PASS_Q};
    double seconds[2];
    struct ring_run r;
    open_ring(b, shape, LAYOUT_ZIGZAG, n, n_query, &r);
    for (int i = 0; i < 2; i++) {
        r.args.pass = passes[i];
        seconds[i] = ranks_measure(b, call_ring, &r, 8).seconds;
        measure_check(&b->backend, DTYPE_F32, r.args.out, r.n_query * shape->n_head * HEAD_DIM);
    }
    if (b->comm->rank == 0)
        printf("last %4lld of %7lld tokens, %s %22.3f ms by pass-KV %8.3f ms by pass-Q\n",
               (long long)n_query, (long long)n, shape->name, seconds[0] * 1e3, seconds[1] * 1e3);
    close_ring(b, &r);
}

// A layer of a window, or of an encoder: the bytes that the slowest rank receives, and its time.
static void print_window(struct ranks *b, enum pass pass, enum layout layout, int64_t n,
                         struct visibility visibility) {
    static const char *const pass_names[] = {
        [PASS_KV] = "ring", [PASS_Q] = "queries", [PASS_HALO] = "halo"};
    const struct shape *shape = &shapes[0];
    struct ring_run r;
    open_ring(b, shape, layout, n, n, &r);
    r.args.pass = pass;
    r.args.visibility = visibility;
    struct ranks_timing t = ranks_measure(b, call_ring, &r, 8);
    measure_check(&b->backend, DTYPE_F32, r.args.out, r.n_query * shape->n_head * HEAD_DIM);
    int64_t received = b->comm->bytes_received, most;
    ranks_require(b, call_ring(b, &r));
    ranks_require(b, b->backend.ops->sync(&b->backend));
    most = b->comm->bytes_received - received;
    struct comm *host = comm_host(b->comm);
    ranks_require(b, host->ops->all_reduce(host, &most, 1, REDUCE_MAX_I64));
    const struct visible_range range = {
        .sequence = &r.sequence, .visibility = visibility, .query_end = n};
    int64_t pairs = 0;
    for (int i = 0; i < b->comm->size * b->comm->size; i++)
        pairs += visible_pairs(&range, i % b->comm->size, i / b->comm->size);
    double flop = (double)pairs * 4 * HEAD_DIM * shape->n_head / b->comm->size;
    if (b->comm->rank == 0) {
        printf("window of %lld %s, %7lld tokens, %-10s by %-4s %10.3f ms %8.1f TFLOP/s a GPU, "
               "%8.2f MiB received, wait %4.1f %%, merge %4.1f %%\n",
               (long long)visibility.back + 1, visibility.ahead ? "both ways" : "behind",
               (long long)n, layout == LAYOUT_ZIGZAG ? "zigzag" : "contiguous", pass_names[pass],
               t.seconds * 1e3, flop / t.seconds * 1e-12, (double)most / (1 << 20), 100 * t.wait,
               100 * t.merge);
        fflush(stdout);
    }
    close_ring(b, &r);
}

static enum status call_decode(struct ranks *b, void *user) {
    struct ring_run *r = user;
    (void)b;
    struct ring_attention_args args = r->args;
    args.lse = NULL;
    return decode_attention_run(&r->ring, &args, 1);
}

static void print_decode(struct ranks *b, const struct shape *shape, int64_t n) {
    struct ring_run r;
    open_ring(b, shape, LAYOUT_ZIGZAG, n, 1, &r);
    double seconds = ranks_measure(b, call_decode, &r, DECODE_CALLS).seconds;
    double bytes = (double)r.n_key * shape->n_kv_head * HEAD_DIM * 4;
    if (b->comm->rank == 0)
        printf("decode %s, %7lld tokens %36.1f us %8.1f GB/s a GPU\n", shape->name, (long long)n,
               seconds * 1e6, bytes / seconds * 1e-9);
    close_ring(b, &r);
}

static void run(struct ranks *b) {
    int64_t short_n = ranks_scaled(b, (int64_t)TOKENS_OF_A_RANK * b->comm->size);
    int64_t middle = ranks_scaled(b, MIDDLE), longest = ranks_scaled(b, b->longest);
    for (int64_t mib = 32; mib <= 512 && b->comm->size > 1; mib *= 4)
        print_shift(b, ranks_scaled(b, mib << 20));
    for (int i = 0; i < N_SHAPE; i++) {
        print_prefill(b, &shapes[i], LAYOUT_ZIGZAG, short_n, 8);
        print_prefill(b, &shapes[i], LAYOUT_ZIGZAG, middle, 1);
        if (b->comm->size > 1) print_prefill(b, &shapes[i], LAYOUT_CONTIGUOUS, middle, 1);
        print_decode(b, &shapes[i], middle);
    }
    for (int64_t n_query = 256; n_query <= MOST_SENT && b->comm->size > 1; n_query *= 2)
        print_end(b, middle, ranks_scaled(b, n_query));
    const struct visibility behind = {.back = ranks_scaled(b, WINDOW) - 1};
    const struct visibility around = {.back = behind.back, .ahead = behind.back};
    print_window(b, PASS_KV, LAYOUT_CONTIGUOUS, middle, behind);
    print_window(b, PASS_HALO, LAYOUT_CONTIGUOUS, middle, behind);
    print_window(b, PASS_HALO, LAYOUT_ZIGZAG, middle, behind);
    print_window(b, PASS_HALO, LAYOUT_CONTIGUOUS, middle, around);
    for (int i = 0; i < N_SHAPE && longest > middle; i++)
        print_prefill(b, &shapes[i], LAYOUT_ZIGZAG, longest, 1);
}

int main(int argc, char **argv) {
    struct ranks b;
    if (ranks_open(&argc, &argv, "bench_ring_gpu", &b)) run(&b);
    ranks_close(&b);
    return 0;
}
