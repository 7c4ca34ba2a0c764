// Ring attention and sparse attention over ranks of a device each (mpirun -np N): rate of a GPU,
// its share of what the same tiles reach without a ring, exposed wait, exchanges against each
// other, decoding; a hash of what was selected, equal for every N. Device work, random data, the
// slowest rank, medians. `bench_ring_gpu [LONGEST [DIVISOR]]`: tokens of the longest case (1M); a
// divisor of all sizes rehearses on any machine. Over NCCL where devices are distinct.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/cluster.h"
#include "dist/sparse_attention.h"
#include "tests/common/cases.h"
#include "tests/common/measure.h"

enum {
    N_REPEAT = 5,
    N_HELD = 16,
    TOKENS_OF_A_RANK = 8192,
    MIDDLE = 131072,
    LONGEST = 1 << 20,
    HEAD_DIM = 128,
    INDEX_HEADS = 64,
    INDEX_DIM = 128,
    LATENT_HEADS = 128,
    LATENT = 512,
    LATENT_ROW = LATENT + 64,
    TOP_K = 2048,
    SPARSE_QUERIES = 2048, // of all ranks, the last ones of the sequence
    DECODE_CALLS = 50,
};
static const double kLongSeconds = 1; // a call beyond that is measured once, without a warm-up

struct bench {
    struct cluster cluster;
    struct comm host, device, *comm; // comm: the one that reaches the backend's memory
    struct backend backend;
    struct profile profile;
    int64_t divisor, longest;
    void *held[N_HELD]; // backend memory of the current case
    int n_held;
};

static void require(struct bench *b, enum status status) {
    if (status == OK) return;
    fprintf(stderr, "%s\n", status_message());
    cluster_abort(&b->cluster, (int)status);
}

static void *hold(struct bench *b, void *p) {
    if (b->n_held == N_HELD) abort();
    return b->held[b->n_held++] = p;
}
static void *random_held(struct bench *b, enum dtype dtype, int64_t n) {
    return hold(b, measure_random(&b->backend, dtype, n > 0 ? n : 1));
}
static void *poisoned_held(struct bench *b, int64_t bytes) {
    return hold(b, measure_poisoned(&b->backend, bytes > 0 ? bytes : 1));
}
static void release(struct bench *b) {
    while (b->n_held > 0) b->backend.ops->free(&b->backend, b->held[--b->n_held]);
}
static int64_t scaled(const struct bench *b, int64_t n) {
    return n / b->divisor > 0 ? n / b->divisor : 1;
}

static double slowest(struct bench *b, double x) {
    require(b, b->host.ops->all_reduce(&b->host, &x, 1, REDUCE_MAX_F64));
    return x;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct timing {
    double seconds;     // of a call on the slowest rank, median
    double wait, merge; // shares of all calls' time: exposed transfers, merging
};

typedef enum status (*call)(struct bench *, void *);

static double batch(struct bench *b, call function, void *user, int n_call) {
    require(b, b->host.ops->barrier(&b->host));
    double begun = measure_now();
    for (int i = 0; i < n_call; i++) require(b, function(b, user));
    require(b, b->backend.ops->sync(&b->backend));
    return slowest(b, measure_now() - begun);
}

static struct timing measure(struct bench *b, call function, void *user, int n_call) {
    double seconds[N_REPEAT], all = 0;
    int n = 1;
    b->profile = (struct profile){.device = b->profile.device};
    seconds[0] = batch(b, function, user, n_call);
    if (seconds[0] < kLongSeconds) {
        b->profile = (struct profile){.device = b->profile.device};
        for (n = 0; n < N_REPEAT; n++) seconds[n] = batch(b, function, user, n_call);
    }
    for (int i = 0; i < n; i++) all += seconds[i];
    qsort(seconds, (size_t)n, sizeof *seconds, ascending);
    return (struct timing){seconds[n / 2] / n_call,
                           slowest(b, b->profile.seconds[PHASE_RING_WAIT]) / all,
                           slowest(b, b->profile.seconds[PHASE_MERGE]) / all};
}

static enum status call_shift(struct bench *b, void *user) {
    TRY(b->comm->ops->shift_start(b->comm, user));
    return b->comm->ops->shift_wait(b->comm);
}

static void print_shift(struct bench *b, int64_t bytes) {
    int size = b->comm->size, rank = b->comm->rank;
    struct shift_args args = {.destination = (rank + 1) % size,
                              .source = (rank + size - 1) % size,
                              .n_buffer = 1,
                              .send = {{random_held(b, DTYPE_BF16, bytes / 2), bytes}},
                              .receive = {{poisoned_held(b, bytes), bytes}}};
    double seconds = measure(b, call_shift, &args, 10).seconds;
    if (rank == 0)
        printf("shift of %4lld MiB %42.3f ms %8.1f GB/s received by each rank\n",
               (long long)(bytes >> 20), seconds * 1e3, (double)bytes / seconds * 1e-9);
    release(b);
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

static void add_tokens(struct bench *b, struct sequence *sequence, enum layout layout,
                       int64_t length) {
    if (!sequence_append(sequence, layout, length))
        require(b, status_fail(ERR_MEMORY, "", "no memory for a sequence"));
}

// The last n_query tokens of n attend to all n; n_query 1 decodes.
static void open_ring(struct bench *b, const struct shape *shape, enum layout layout, int64_t n,
                      int64_t n_query, struct ring_run *r) {
    const int rank = b->comm->rank;
    bool decode = n_query == 1;
    sequence_open(&r->sequence, b->comm->size);
    if (n > n_query) add_tokens(b, &r->sequence, layout, n - n_query);
    add_tokens(b, &r->sequence, layout, n_query);
    r->n_query = decode ? 1 : sequence_count(&r->sequence, rank, n - n_query, n);
    r->n_key = sequence_count(&r->sequence, rank, 0, n);
    const struct attention_shape widths = {
        shape->n_head, shape->n_kv_head, HEAD_DIM, HEAD_DIM, 2, 2, false};
    const struct ring_extent extent = {.memory = b->backend.memory,
                                       .size = b->comm->size,
                                       .shard = n / b->comm->size + 4,
                                       .query = decode ? 0 : n_query / b->comm->size + 4,
                                       .decode_query = decode};
    require(b, ring_attention_open(&r->ring, &b->backend, b->comm, &b->profile,
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
                                     .causal = true,
                                     .pass = PASS_KV,
                                     .query = random_held(b, DTYPE_BF16, r->n_query * query_width),
                                     .query_dtype = DTYPE_BF16,
                                     .key = random_held(b, DTYPE_BF16, r->n_key * key_width),
                                     .value = random_held(b, DTYPE_BF16, r->n_key * key_width),
                                     .kv_dtype = DTYPE_BF16,
                                     .out = poisoned_held(b, r->n_query * query_width * 4),
                                     .lse = poisoned_held(b, r->n_query * shape->n_head * 4)};
}

static void close_ring(struct bench *b, struct ring_run *r) {
    ring_attention_close(&r->ring);
    sequence_close(&r->sequence);
    release(b);
}

static enum status call_ring(struct bench *b, void *user) {
    struct ring_run *r = user;
    (void)b;
    return ring_attention_run(&r->ring, &r->args);
}

// The attention of every step of a ring on the own keys, with the positions of that step: what the
// kernel reaches on these tiles without transfers and merging.
struct local_run {
    const struct ring_run *ring;
    int64_t *query_position, *key_position;
};

static enum status call_local(struct bench *b, void *user) {
    struct local_run *l = user;
    const struct ring_attention_args *a = &l->ring->args;
    for (int holder = 0; holder < b->comm->size; holder++) {
        int64_t n_key = sequence_count(a->sequence, holder, 0, a->query_end), blind = 0;
        if (n_key > l->ring->n_key) n_key = l->ring->n_key;
        sequence_positions(a->sequence, holder, 0, a->query_end, l->key_position);
        while (blind < l->ring->n_query && l->query_position[blind] < l->key_position[0]) blind++;
        const struct attention_args attention = {.n_query = l->ring->n_query - blind,
                                                 .n_key = n_key,
                                                 .n_head = a->n_head,
                                                 .n_kv_head = a->n_kv_head,
                                                 .head_dim = HEAD_DIM,
                                                 .value_dim = HEAD_DIM,
                                                 .scale = a->scale,
                                                 .causal = true,
                                                 .query = (const uint16_t *)a->query +
                                                          blind * a->n_head * HEAD_DIM,
                                                 .query_dtype = DTYPE_BF16,
                                                 .query_stride = (int64_t)a->n_head * HEAD_DIM,
                                                 .key = a->key,
                                                 .value = a->value,
                                                 .kv_dtype = DTYPE_BF16,
                                                 .key_stride = (int64_t)a->n_kv_head * HEAD_DIM,
                                                 .value_stride = (int64_t)a->n_kv_head * HEAD_DIM,
                                                 .query_position = l->query_position + blind,
                                                 .key_position = l->key_position,
                                                 .out = a->out,
                                                 .lse = a->lse};
        TRY(b->backend.ops->attention(&b->backend, &attention));
    }
    return OK;
}

static double local_seconds(struct bench *b, const struct ring_run *r) {
    const struct ring_attention_args *a = &r->args;
    struct local_run local = {r, test_alloc((r->n_query + 1) * 8), test_alloc((r->n_key + 8) * 8)};
    sequence_positions(a->sequence, b->comm->rank, a->query_begin, a->query_end,
                       local.query_position);
    double seconds = measure(b, call_local, &local, 1).seconds;
    free(local.query_position);
    free(local.key_position);
    return seconds;
}

static void print_prefill(struct bench *b, const struct shape *shape, enum layout layout,
                          int64_t n) {
    struct ring_run r;
    open_ring(b, shape, layout, n, n, &r);
    struct timing t = measure(b, call_ring, &r, 1);
    measure_check(&b->backend, DTYPE_F32, r.args.out, r.n_query * shape->n_head * HEAD_DIM);
    bool zigzag = layout == LAYOUT_ZIGZAG;
    double local = zigzag && b->comm->size > 1 ? local_seconds(b, &r) : t.seconds;
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

static enum status call_decode(struct bench *b, void *user) {
    struct ring_run *r = user;
    (void)b;
    return decode_attention_run(&r->ring, &r->args, r->args.out, NULL);
}

static void print_decode(struct bench *b, const struct shape *shape, int64_t n) {
    struct ring_run r;
    open_ring(b, shape, LAYOUT_ZIGZAG, n, 1, &r);
    double seconds = measure(b, call_decode, &r, DECODE_CALLS).seconds;
    double bytes = (double)r.n_key * shape->n_kv_head * HEAD_DIM * 4;
    if (b->comm->rank == 0)
        printf("decode %s, %7lld tokens %36.1f us %8.1f GB/s a GPU\n", shape->name, (long long)n,
               seconds * 1e6, bytes / seconds * 1e-9);
    close_ring(b, &r);
}

static const char *const exchange_name[] = {[EXCHANGE_KEYS] = "keys", [EXCHANGE_SCORES] = "scores"};

// DeepSeek V3.2's layer: what this rank holds of n tokens, of which the last n_query ask.
struct sparse_run {
    struct sequence sequence;
    struct ring_attention ring;
    struct sparse_ring_args args;
    int64_t n, n_query, n_own, n_key; // tokens, queries of all, of this rank, keys of this rank
    // Everything gathered: the rank alone attends it.
    struct comm self;
    struct sequence whole;
    struct ring_attention alone;
    struct sparse_ring_args gathered;
};

// Small integers, so that every score is exact and the same tokens are selected everywhere: row i
// belongs to position[i] and follows from that alone.
static void *exact_rows(struct bench *b, const int64_t *position, int64_t n_row, int64_t n_col,
                        uint64_t seed) {
    static const uint8_t value[4] = {0x00, 0x38, 0xb8, 0x38}; // fp8: 0, 1, -1, 1
    uint8_t *rows = test_alloc(n_row * n_col + 1);
    for (int64_t i = 0; i < n_row; i++)
        for (int64_t c = 0; c < n_col; c += 32) {
            uint64_t bits = random_bits(seed, (uint64_t)(position[i] * n_col + c));
            for (int64_t k = 0; k < 32 && c + k < n_col; k++)
                rows[i * n_col + c + k] = value[bits >> 2 * k & 3];
        }
    void *out = hold(b, measure_upload(&b->backend, rows, n_row * n_col + 1));
    free(rows);
    return out;
}

static float *exact_floats(struct bench *b, const int64_t *position, int64_t n_row, int64_t n_col,
                           uint64_t seed) { // seed 0: ones
    float *x = test_alloc(n_row * n_col * 4 + 4);
    for (int64_t i = 0; i < n_row * n_col; i++)
        x[i] = seed ? 1 + (float)(random_bits(seed,
                                              (uint64_t)(position[i / n_col] * n_col + i % n_col)) %
                                  4)
                    : 1;
    float *out = hold(b, measure_upload(&b->backend, x, n_row * n_col * 4 + 4));
    free(x);
    return out;
}

static void fill_sparse(struct bench *b, struct sparse_run *s, int k) {
    int64_t n = s->n, *position = test_alloc((s->n_key + s->n_own + 1) * 8);
    bool decode = s->n_query == 1;
    s->args = (struct sparse_ring_args){
        .attention = {.sequence = &s->sequence,
                      .query_begin = n - s->n_query,
                      .query_end = n,
                      .n_head = LATENT_HEADS,
                      .n_kv_head = 1,
                      .head_dim = LATENT_ROW,
                      .value_dim = LATENT,
                      .scale = 0.05f,
                      .causal = true,
                      .query = random_held(b, DTYPE_BF16, s->n_own * LATENT_HEADS * LATENT_ROW),
                      .query_dtype = DTYPE_BF16,
                      .key = random_held(b, DTYPE_BF16, s->n_key * LATENT_ROW),
                      .kv_dtype = DTYPE_BF16,
                      .out = poisoned_held(b, s->n_own * LATENT_HEADS * LATENT * 4),
                      .lse = poisoned_held(b, s->n_own * LATENT_HEADS * 4)},
        .index = {INDEX_HEADS, INDEX_DIM, k, 1, 4},
        .index_dtype = DTYPE_F8_E4M3,
        .candidate = poisoned_held(b, s->n_own * k * 8),
        .n_candidate = poisoned_held(b, s->n_own * 4)};
    position[0] = n - 1;
    if (!decode) sequence_positions(&s->sequence, b->comm->rank, n - s->n_query, n, position);
    s->args.index_query = exact_rows(b, position, s->n_own, INDEX_HEADS * INDEX_DIM, 1);
    s->args.index_weight = exact_floats(b, position, s->n_own, INDEX_HEADS, 2);
    sequence_positions(&s->sequence, b->comm->rank, 0, n, position);
    s->args.index_key = exact_rows(b, position, s->n_key, INDEX_DIM, 3);
    s->args.index_key_scale = exact_floats(b, position, s->n_key, 1, 0);
    free(position);
}

static void open_sparse(struct bench *b, int64_t n, int64_t n_query, struct sparse_run *s) {
    const int size = b->comm->size, k = (int)scaled(b, TOP_K);
    bool decode = n_query == 1;
    *s = (struct sparse_run){.n = n, .n_query = n_query};
    sequence_open(&s->sequence, size);
    add_tokens(b, &s->sequence, LAYOUT_ZIGZAG, n - n_query);
    add_tokens(b, &s->sequence, LAYOUT_ZIGZAG, n_query);
    s->n_own = decode ? 1 : sequence_count(&s->sequence, b->comm->rank, n - n_query, n);
    s->n_key = sequence_count(&s->sequence, b->comm->rank, 0, n);
    fill_sparse(b, s, k);
    const struct attention_shape shape = {LATENT_HEADS, 1, LATENT_ROW, LATENT, 2, 2, true};
    const struct ring_extent extent = {.memory = b->backend.memory,
                                       .size = size,
                                       .shard = n / size + 4,
                                       .query = decode ? 0 : n_query / size + 4,
                                       .all_query = decode ? 0 : n_query,
                                       .decode_query = decode};
    require(b,
            ring_attention_open(&s->ring, &b->backend, b->comm, &b->profile,
                                sparse_attention_workspace_bytes(&shape, &s->args.index, &extent)));
}

static void close_sparse(struct bench *b, struct sparse_run *s) {
    ring_attention_close(&s->ring);
    sequence_close(&s->sequence);
    release(b);
}

static enum status call_sparse(struct bench *b, void *user) {
    struct sparse_run *s = user;
    (void)b;
    return sparse_attention_run(&s->ring, &s->args);
}
static enum status call_sparse_decode(struct bench *b, void *user) {
    struct sparse_run *s = user;
    (void)b;
    return sparse_decode_run(&s->ring, &s->args, s->args.attention.out, NULL);
}

// Of all ranks' selections: the same whatever the order, and whoever holds the query.
static uint64_t selection_hash(struct bench *b, const struct sparse_run *s) {
    struct backend *backend = &b->backend;
    const int k = s->args.index.k;
    int64_t sum = 0, n = s->n_query == 1 && b->comm->rank > 0 ? 0 : s->n_own;
    uint64_t *candidate = test_alloc(n * k * 8 + 8);
    int32_t *n_candidate = test_alloc(n * 4 + 4);
    require(b, backend->ops->download(backend, candidate, s->args.candidate, n * k * 8));
    require(b, backend->ops->download(backend, n_candidate, s->args.n_candidate, n * 4));
    require(b, backend->ops->sync(backend));
    int64_t *position = test_alloc(n * 8 + 8);
    position[0] = s->n - 1;
    if (s->n_query > 1)
        sequence_positions(&s->sequence, b->comm->rank, s->n - s->n_query, s->n, position);
    for (int64_t i = 0; i < n; i++)
        for (int32_t c = 0; c < n_candidate[i]; c++)
            sum += (int64_t)(random_bits((uint64_t)position[i], candidate[i * k + c]) >> 16);
    free(position);
    free(n_candidate);
    free(candidate);
    require(b, b->host.ops->all_reduce(&b->host, &sum, 1, REDUCE_SUM_I64));
    return (uint64_t)sum;
}

static void print_sparse_row(const struct bench *b, const struct sparse_run *s, const char *what,
                             struct timing t, const char *hash) {
    if (b->comm->rank == 0)
        printf("sparse, %4lld queries of %7lld tokens, %-10s %17.3f ms, wait %4.1f %%, merge "
               "%4.1f %% %s\n",
               (long long)s->n_query, (long long)s->n, what, t.seconds * 1e3, 100 * t.wait,
               100 * t.merge, hash);
    fflush(stdout);
}

// Everything to every rank, then each selects and attends for its own queries alone.
static enum status call_gathered(struct bench *b, void *user) {
    struct sparse_run *s = user;
    const struct comm_ops *ops = b->comm->ops;
    int64_t bytes[b->comm->size];
    const struct {
        const void *from, *to;
        int64_t width;
    } parts[] = {{s->args.index_key, s->gathered.index_key, INDEX_DIM},
                 {s->args.index_key_scale, s->gathered.index_key_scale, 4},
                 {s->args.attention.key, s->gathered.attention.key, LATENT_ROW * 2}};
    double begun = profile_begin(&b->profile, PHASE_RING_WAIT);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        for (int r = 0; r < b->comm->size; r++)
            bytes[r] = sequence_count(&s->sequence, r, 0, s->n) * parts[i].width;
        TRY(ops->all_gather(b->comm, parts[i].from, (void *)parts[i].to, bytes));
    }
    profile_end(&b->profile, PHASE_RING_WAIT, begun);
    return sparse_attention_run(&s->alone, &s->gathered);
}

static void print_gathered(struct bench *b, struct sparse_run *s) {
    const struct attention_shape shape = {LATENT_HEADS, 1, LATENT_ROW, LATENT, 2, 2, true};
    const struct ring_extent extent = {
        .memory = b->backend.memory, .size = 1, .shard = s->n, .query = s->n_own};
    bool device = b->backend.memory == MEMORY_DEVICE;
    require(b, comm_self_open(&s->self, device ? &b->backend : NULL));
    require(b,
            ring_attention_open(&s->alone, &b->backend, &s->self, &b->profile,
                                sparse_attention_workspace_bytes(&shape, &s->args.index, &extent)));
    sequence_open(&s->whole, 1);
    add_tokens(b, &s->whole, LAYOUT_CONTIGUOUS, s->n);
    s->gathered = s->args;
    s->gathered.attention.sequence = &s->whole;
    s->gathered.attention.query_begin = s->n - s->n_own;
    s->gathered.attention.key = poisoned_held(b, s->n * LATENT_ROW * 2);
    s->gathered.index_key = poisoned_held(b, s->n * INDEX_DIM);
    s->gathered.index_key_scale = poisoned_held(b, s->n * 4);
    print_sparse_row(b, s, "gathered", measure(b, call_gathered, s, 1), "");
    sequence_close(&s->whole);
    ring_attention_close(&s->alone);
    comm_close(&s->self);
}

static void print_sparse(struct bench *b, int64_t n, int64_t n_query) {
    struct sparse_run s;
    char hash[64];
    open_sparse(b, n, n_query, &s);
    for (enum exchange e = EXCHANGE_KEYS; e <= EXCHANGE_SCORES; e++) {
        s.args.exchange = e;
        struct timing t = measure(b, call_sparse, &s, 1);
        measure_check(&b->backend, DTYPE_F32, s.args.attention.out,
                      s.n_own * LATENT_HEADS * LATENT);
        snprintf(hash, sizeof hash, "selection %016llx", (unsigned long long)selection_hash(b, &s));
        print_sparse_row(b, &s, exchange_name[e], t, hash);
        if (b->comm->size == 1) break; // there is nothing to exchange
    }
    if (b->comm->size > 1) print_gathered(b, &s);
    close_sparse(b, &s);
    open_sparse(b, n, 1, &s);
    struct timing t = measure(b, call_sparse_decode, &s, DECODE_CALLS);
    snprintf(hash, sizeof hash, "selection %016llx", (unsigned long long)selection_hash(b, &s));
    print_sparse_row(b, &s, "decode", t, hash);
    close_sparse(b, &s);
}

static bool open_bench(struct bench *b, int argc, char **argv) {
    int n_device = backend_device_count(BACKEND_CUDA);
    struct backend_options options = {.kind = n_device ? BACKEND_CUDA : BACKEND_AUTO,
                                      .n_thread = 1};
    bool distinct = false;
    b->longest = argc > 1 ? atoll(argv[1]) : LONGEST;
    b->divisor = argc > 2 ? atoll(argv[2]) : 1;
    if (b->divisor < 1) b->divisor = 1;
    if (!n_device && argc < 3) {
        if (b->cluster.rank == 0)
            printf("bench_ring_gpu: no device; `bench_ring_gpu LONGEST DIVISOR` rehearses\n");
        return false;
    }
    if (n_device) options.device = b->cluster.local_rank % n_device;
    require(b, backend_open(&options, &b->backend));
    b->comm = b->backend.memory == MEMORY_DEVICE ? &b->device : &b->host;
    if (b->comm == &b->host) return true;
    require(b, comm_devices_distinct(&b->host, &b->backend, &distinct));
    if (b->host.size == 1)
        require(b, comm_self_open(&b->device, &b->backend));
    else if (distinct)
        require(b, comm_nccl_open(&b->device, &b->host, &b->backend, b->host.deadline_s));
    else
        require(b, comm_mpi_staged_open(&b->device, &b->host, &b->backend, b->host.deadline_s));
    profile_attach(&b->profile, &b->backend);
    return true;
}

static void run(struct bench *b) {
    int64_t short_n = scaled(b, (int64_t)TOKENS_OF_A_RANK * b->comm->size);
    int64_t middle = scaled(b, MIDDLE), longest = scaled(b, b->longest);
    if (b->comm->rank == 0)
        printf("# %d ranks, backend %s %s, transport %s\n", b->comm->size, b->backend.ops->name,
               b->backend.device_name, b->comm->ops->name);
    for (int64_t mib = 32; mib <= 512 && b->comm->size > 1; mib *= 4)
        print_shift(b, scaled(b, mib << 20));
    for (int i = 0; i < N_SHAPE; i++) {
        print_prefill(b, &shapes[i], LAYOUT_ZIGZAG, short_n);
        print_prefill(b, &shapes[i], LAYOUT_ZIGZAG, middle);
        if (b->comm->size > 1) print_prefill(b, &shapes[i], LAYOUT_CONTIGUOUS, middle);
        print_decode(b, &shapes[i], middle);
    }
    print_sparse(b, middle, scaled(b, SPARSE_QUERIES));
    if (longest <= middle) return;
    print_sparse(b, longest, scaled(b, SPARSE_QUERIES));
    for (int i = 0; i < N_SHAPE; i++) print_prefill(b, &shapes[i], LAYOUT_ZIGZAG, longest);
}

int main(int argc, char **argv) {
    struct bench b = {.n_held = 0};
    require(&b, cluster_start(&argc, &argv, 1, &b.cluster));
    require(&b, comm_mpi_open(&b.host, 60));
    if (open_bench(&b, argc, argv)) {
        run(&b);
        profile_detach(&b.profile);
        if (b.comm == &b.device) comm_close(&b.device);
        backend_close(&b.backend);
    }
    comm_close(&b.host);
    cluster_stop(&b.cluster);
    return 0;
}
