// `halka plan`: bytes and seconds per rank before any weight is read. Seconds come from the
// arithmetic of the longest document and from rates measured here on products of the model's own
// shapes.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/estimate.h"
#include "launcher/job.h"

enum { RATE_TOKENS = 512, RATE_REPEATS = 3 };

struct rates {
    double product, attention; // FLOP/s of this rank
};

static double best_seconds(struct backend *backend, enum status (*call)(struct backend *, void *),
                           void *args) {
    double best = 1e30;
    for (int i = 0; i < RATE_REPEATS; i++) {
        double begun = cluster_seconds();
        if (call(backend, args) != OK || backend->ops->sync(backend) != OK) return 1e30;
        double seconds = cluster_seconds() - begun;
        if (seconds < best) best = seconds;
    }
    return best;
}

static enum status call_matmul(struct backend *backend, void *args) {
    return backend->ops->matmul(backend, args);
}

static enum status call_attention(struct backend *backend, void *args) {
    return backend->ops->attention(backend, args);
}

// Room for a product and an attention of the model's shapes, in the backend's memory. Zeros take as
// long as any other numbers, and need no room beyond the largest operand.
struct rate_room {
    void *zeros, *result, *lse;
};

static void rate_room_close(struct backend *b, struct rate_room *room) {
    if (room->lse) b->ops->free(b, room->lse);
    if (room->result) b->ops->free(b, room->result);
    if (room->zeros) b->ops->free(b, room->zeros);
}

static enum status rate_room_open(struct backend *b, const struct model_spec *spec,
                                  struct rate_room *out) {
    const struct layer_spec *l = &spec->layers[0];
    int64_t n_row = l->n_feed_forward, n_col = spec->n_hidden, n = RATE_TOKENS;
    int64_t head_width = (int64_t)l->n_head * l->head_dim;
    int64_t widest = n_row > head_width ? n_row : head_width;
    if (n_col > widest) widest = n_col;
    int64_t f32 = sizeof(float), n_zero = n_row * n_col + n * widest;
    float *zeros = calloc((size_t)n_zero, sizeof *zeros);
    if (!zeros) FAIL(ERR_MEMORY, "no memory to measure rates");
    enum status status = b->ops->alloc(b, n_zero * f32, &out->zeros);
    if (status == OK) status = b->ops->alloc(b, n * widest * f32, &out->result);
    if (status == OK) status = b->ops->alloc(b, n * l->n_head * f32, &out->lse);
    if (status == OK) status = b->ops->upload(b, out->zeros, zeros, n_zero * f32);
    free(zeros);
    return status;
}

static enum status measure_rates(const struct job *job, struct rates *out) {
    struct backend *b = (struct backend *)&job->backend;
    const struct model_spec *spec = &job->checkpoint.spec;
    const struct layer_spec *l = &spec->layers[0];
    enum precision wanted = job->session_options.precision;
    bool bf16 = wanted == PRECISION_BF16 || (wanted == PRECISION_AUTO && b->bf16_products);
    enum dtype dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
    int64_t n_row = l->n_feed_forward, n_col = spec->n_hidden, n = RATE_TOKENS;
    int64_t head_width = (int64_t)l->n_head * l->head_dim;
    int64_t kv_width = (int64_t)l->n_kv_head * l->head_dim;
    struct rate_room room = {0};
    enum status status = OK;
    TRY_OR(done, rate_room_open(b, spec, &room));
    struct matmul_args product = {.x = room.zeros,
                                  .x_dtype = dtype,
                                  .x_stride = n_col,
                                  .n_token = n,
                                  .weight = {.data = room.zeros,
                                             .dtype = dtype,
                                             .n_row = n_row,
                                             .n_col = n_col,
                                             .row_bytes = dtype_bytes(dtype, n_col)},
                                  .out = room.result,
                                  .out_dtype = DTYPE_F32,
                                  .out_stride = n_row};
    struct attention_args attention = {.n_query = n,
                                       .n_key = n,
                                       .n_head = l->n_head,
                                       .n_kv_head = l->n_kv_head,
                                       .head_dim = l->head_dim,
                                       .value_dim = l->head_dim,
                                       .scale = 1,
                                       .query = room.zeros,
                                       .query_dtype = dtype,
                                       .query_stride = head_width,
                                       .key = room.zeros,
                                       .value = room.zeros,
                                       .kv_dtype = dtype,
                                       .key_stride = kv_width,
                                       .value_stride = kv_width,
                                       .out = room.result,
                                       .lse = room.lse};
    out->product =
        2.0 * (double)n * (double)n_row * (double)n_col / best_seconds(b, call_matmul, &product);
    out->attention = 4.0 * (double)n * (double)n * (double)head_width /
                     best_seconds(b, call_attention, &attention);
done:
    rate_room_close(b, &room);
    return status;
}

static void print_bytes(const char *name, int64_t bytes) {
    printf("  %-16s %14lld  %9.1f MiB\n", name, (long long)bytes, (double)bytes / (1 << 20));
}

// Keys that a query of a sequence of n attends in a layer, in the mean.
static double mean_keys(const struct job *job, const struct layer_spec *l, int64_t n) {
    double all = ((double)n + 1) / 2, most = all;
    bool selects = !job->session_options.dense && l->index.layout != INDEX_NONE;
    int64_t limit = selects ? l->index.k : l->window > 0 ? l->window + l->sinks : n;
    if (limit < n) most = (double)limit - (double)limit * (double)(limit - 1) / 2 / (double)n;
    return most;
}

// What softmax over whole rows would store, and what it is over.
static void print_scores(const struct job *job) {
    const struct model_spec *spec = &job->checkpoint.spec;
    int64_t n = job->session_options.max_tokens;
    double keys = 0, bytes = 0;
    for (int i = 0; i < spec->n_layer; i++) {
        const struct layer_spec *l = &spec->layers[i];
        keys += spec->causal ? mean_keys(job, l, n) / spec->n_layer : (double)n / spec->n_layer;
        bytes = fmax(bytes, 4.0 * l->n_head * (double)n * (double)n);
    }
    printf("  a query attends %.0f keys of a layer in the mean; the scores of one layer, which are "
           "never stored, would take %.0f bytes (%.3f GiB)\n",
           keys, bytes, bytes / (1 << 30));
}

static void print_memory(const struct job *job, int n_rank) {
    const struct memory_plan *p = &job->plan;
    bool device = job->backend.memory == MEMORY_DEVICE;
    const struct {
        const char *name;
        int64_t bytes;
    } rows[] = {{p->gathered || device ? "weights (own)" : "weights (share)", p->weights},
                {"experts (own)", p->experts},
                {"weights gathered", p->gathered},
                {"keys and values", p->kv},
                {"activations", p->activations},
                {"ring buffers", p->ring},
                {"backend scratch", p->scratch}};
    printf("Bytes of each of %d ranks%s%s%s, sequences of up to %lld tokens\n", n_rank,
           device ? " on its device (" : "", device ? job->backend.device_name : "",
           device ? ")" : "", (long long)job->session_options.max_tokens);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        print_bytes(rows[i].name, rows[i].bytes);
    if (device) print_bytes("total", p->total);
    print_bytes(device ? "host: tables" : "tables of tokens", p->tables);
    print_bytes(device ? "host: process" : "process", p->base);
    if (!device) print_bytes("total", p->total);
    print_scores(job);
    if (job_chose_chunk(job))
        printf(
            "  tokens are read in chunks of %lld (prefill.chunk), so that a stop or a save comes "
            "within about %d s\n",
            (long long)job->session_options.chunk, STOP_SECONDS);
    if (p->gathered)
        printf("  weights are sharded: each chunk of prefill brings %.2f GB to each rank\n",
               (double)p->gather_traffic * 1e-9);
    if (p->layout.zigzag_s > 0)
        printf("  layout %s: attention and its exchanges take about %.3g s by zigzag, %.3g s by "
               "contiguous shards\n",
               p->layout.layout == LAYOUT_ZIGZAG ? "zigzag" : "contiguous", p->layout.zigzag_s,
               p->layout.contiguous_s);
}

static void print_node(const struct job *job) {
    struct device_memory memory = {0};
    struct backend *b = (struct backend *)&job->backend;
    if (b->ops->device_memory && b->ops->device_memory(b, &memory) == OK)
        printf("  this device has %.1f of %.1f MiB available\n",
               (double)memory.available / (1 << 20), (double)memory.total / (1 << 20));
    printf("  this node has %d ranks and %.1f MiB available\n", job->cluster->local_size,
           (double)cluster_available_bytes() / (1 << 20));
}

static enum status print_seconds(const struct job *job, const struct rates *rates) {
    const struct options *o = job->options;
    const struct estimate_case reading = {&job->checkpoint.spec, job->comm.size,
                                          job->session_options.dense, o->task == TASK_SCORE};
    struct cost sum = {0};
    int64_t n_token = 0;
    for (int i = 0; i < job->documents.n; i++) {
        int64_t n = job->documents.items[i].n_token, longest = job->session_options.max_tokens;
        int64_t stride = o->stride > 0 ? o->stride : (o->window + 1) / 2;
        int64_t n_window = n > longest ? 1 + (n - longest + stride - 1) / stride : 1;
        struct cost cost = estimate_cost(&reading, n < longest ? n : longest);
        sum.product_flop += (double)n_window * cost.product_flop;
        sum.attention_flop += (double)n_window * cost.attention_flop;
        n_token += n;
    }
    double product = sum.product_flop / rates->product;
    double attention = sum.attention_flop / rates->attention;
    printf("Reading %lld tokens of %d documents, for each rank\n", (long long)n_token,
           job->documents.n);
    printf("  products  %10.3f GFLOP at %8.1f GFLOP/s: %9.2f s\n", sum.product_flop * 1e-9,
           rates->product * 1e-9, product);
    printf("  attention %10.3f GFLOP at %8.1f GFLOP/s: %9.2f s\n", sum.attention_flop * 1e-9,
           rates->attention * 1e-9, attention);
    printf("  about %.2f s, without loading, exchange and answers\n", product + attention);
    return OK;
}

static enum status measure_elsewhere(struct job *job, int n_rank) {
    return session_plan(&job->checkpoint, &job->backend, n_rank, 1, &job->session_options,
                        &job->plan);
}

// A run that is imagined: plan.tokens on plan.ranks devices of plan.memory each, none of which need
// be here. Weights are not shared between devices; `auto` shards them where all do not fit.
static enum status plan_elsewhere(struct job *job) {
    const struct options *o = job->options;
    int n_rank = o->plan_ranks > 0 ? (int)o->plan_ranks : job->comm.size;
    job_set_session_options(job, o->plan_tokens, n_rank);
    TRY(comm_agree(&job->comm, measure_elsewhere(job, n_rank)));
    if (o->weights == WEIGHTS_AUTO && o->plan_memory > 0 &&
        (double)job->plan.total > o->plan_memory * 1e9) {
        job->session_options.sharded = true;
        TRY(comm_agree(&job->comm, measure_elsewhere(job, n_rank)));
    }
    if (job->comm.rank != 0) return OK;
    print_memory(job, n_rank);
    if (o->plan_memory <= 0) return OK;
    double free_bytes = o->plan_memory * 1e9 - (double)job->plan.total;
    printf("  %s %.0f GB a rank: %.2f GB %s\n", free_bytes >= 0 ? "fits" : "does NOT fit",
           o->plan_memory, (free_bytes < 0 ? -free_bytes : free_bytes) * 1e-9,
           free_bytes >= 0 ? "to spare" : "too much");
    if (free_bytes < 0)
        FAIL(ERR_MEMORY,
             "a rank of %d needs %.2f GB for %lld tokens: take more ranks, %sor a smaller "
             "prefill.chunk",
             n_rank, (double)job->plan.total * 1e-9, (long long)o->plan_tokens,
             job->session_options.sharded ? "" : "partition.weights = sharded, ");
    return OK;
}

enum status verb_plan(struct job *job) {
    struct rates rates = {0};
    if (job->options->plan_tokens > 0) {
        TRY(job_open_shapes(job));
        return plan_elsewhere(job);
    }
    TRY(job_open_model(job));
    TRY(job_plan(job));
    TRY(comm_agree(&job->comm, measure_rates(job, &rates))); // together, as the run will be
    if (job->comm.rank != 0) return OK;
    print_memory(job, job->comm.size);
    print_node(job);
    return print_seconds(job, &rates);
}
