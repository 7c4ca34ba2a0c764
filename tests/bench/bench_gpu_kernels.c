// Rates of single operations on a GPU, beside the two ceilings measured in the same run: a product
// of 8192^3 in bf16 and a device copy. Random inputs, poisoned outputs, median times. Operations
// counted: 2 (head_dim + value_dim) a visible pair and head in attention, 2 head_dim a pair and
// head in the indexer. `bench_gpu_kernels [DIVISOR [PART...]]`: a divisor above 1 rehearses on any
// machine; parts are prefill, decode, index, sparse, products and experts.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/candidate.h"
#include "kernels/experts.h"
#include "kernels/sparse.h"
#include "tests/common/cases.h"
#include "tests/common/measure.h"

enum {
    MOST_KEYS = 131072,
    N_HELD = 16,
    N_INDEX_HEAD = 64,
    INDEX_DIM = 128,
    TOP_K = 2048,
    LATENT_HEADS = 128,
    LATENT = 512,
    LATENT_ROW = LATENT + 64, // latent and rotated part
    PRODUCT_TOKENS = 4096,
    PRODUCT_ROWS = 14336,
    PRODUCT_COLUMNS = 4096,
    N_PRODUCT = 4, // matrices in turn, so that no cache holds what a call reads
    EXPERT_ROWS = 2048,
    EXPERT_COLUMNS = 7168,
    N_CHOICE = 8,
    CHOICES_FROM = 32
};

struct bench {
    struct backend backend;
    int64_t divisor;
    double flops, bytes; // the ceilings, per second
    int64_t *position;   // host, [-MOST_KEYS, 2 * MOST_KEYS) each its own index
    void *held[N_HELD];  // backend memory of the current case
    int n_held;
};

static void *hold(struct bench *b, void *p) {
    if (b->n_held == N_HELD) abort();
    return b->held[b->n_held++] = p;
}

static void *random_held(struct bench *b, enum dtype dtype, int64_t n) {
    return hold(b, measure_random(&b->backend, dtype, n));
}

static void *poisoned_held(struct bench *b, int64_t bytes) {
    return hold(b, measure_poisoned(&b->backend, bytes));
}

static void release(struct bench *b) {
    while (b->n_held > 0) b->backend.ops->free(&b->backend, b->held[--b->n_held]);
}

// A size that a rehearsal divides; 1 stays 1.
static int64_t scaled(const struct bench *b, int64_t n) {
    return n / b->divisor > 0 ? n / b->divisor : 1;
}

static void report_flops(const struct bench *b, const char *name, double seconds, double flop) {
    printf("%-64s %10.3f ms %8.1f TFLOP/s %5.1f %%\n", name, seconds * 1e3, flop / seconds * 1e-12,
           100 * flop / seconds / b->flops);
    fflush(stdout);
}

static void report_bytes(const struct bench *b, const char *name, double seconds, double bytes) {
    printf("%-64s %10.3f ms %8.1f GB/s    %5.1f %%\n", name, seconds * 1e3, bytes / seconds * 1e-9,
           100 * bytes / seconds / b->bytes);
    fflush(stdout);
}

// Products with N_PRODUCT matrices in turn.
struct product {
    struct matmul_args args;
    struct weight weight[N_PRODUCT];
    int next;
};

static enum status call_product(struct backend *backend, void *user) {
    struct product *p = user;
    p->args.weight = p->weight[p->next];
    p->next = (p->next + 1) % N_PRODUCT;
    return backend->ops->matmul(backend, &p->args);
}

static double product_seconds(struct bench *b, enum dtype dtype, int64_t n_token, int64_t n_row,
                              int64_t n_col) {
    struct product p = {.args = {.x = random_held(b, DTYPE_BF16, n_token * n_col),
                                 .x_dtype = DTYPE_BF16,
                                 .x_stride = n_col,
                                 .n_token = n_token,
                                 .out = poisoned_held(b, n_token * n_row * 4),
                                 .out_dtype = DTYPE_F32,
                                 .out_stride = n_row}};
    for (int i = 0; i < N_PRODUCT; i++)
        p.weight[i] = measure_weight(&b->backend, dtype, n_row, n_col);
    double seconds = measure_seconds(&b->backend, call_product, &p);
    measure_check(&b->backend, DTYPE_F32, p.args.out, n_token * n_row);
    for (int i = 0; i < N_PRODUCT; i++) b->backend.ops->unload_weight(&b->backend, &p.weight[i]);
    release(b);
    return seconds;
}

static void measure_ceilings(struct bench *b) {
    double seconds;
    b->flops = measure_product_ceiling(&b->backend, b->divisor, &seconds);
    report_flops(b, "ceiling: product of 8192^3, bf16", seconds, b->flops * seconds);
    b->bytes = measure_copy_ceiling(&b->backend, b->divisor, &seconds);
    report_bytes(b, "ceiling: device copy of 4 GiB, read and written", seconds, b->bytes * seconds);
}

enum { EVERY = 1 << 30 };
struct attention_case {
    const char *name;
    int64_t n_query, n_key;
    int n_head, n_kv_head, head_dim, value_dim;
    int64_t back, ahead; // how far a query sees
    bool value_in_key;
};
static const struct attention_case prefill_cases[] = {
    {"attention causal 4K d128 32:32", 4096, 4096, 32, 32, 128, 128, EVERY, 0, false},
    {"attention causal 16K d128 32:32", 16384, 16384, 32, 32, 128, 128, EVERY, 0, false},
    {"attention causal 16K d128 32:8", 16384, 16384, 32, 8, 128, 128, EVERY, 0, false},
    {"attention causal 128K d128 32:8", 131072, 131072, 32, 8, 128, 128, EVERY, 0, false},
    {"attention full 16K x 16K d128 32:32", 16384, 16384, 32, 32, 128, 128, EVERY, EVERY, false},
    {"attention full 16K x 16K d128 32:8", 16384, 16384, 32, 8, 128, 128, EVERY, EVERY, false},
    {"attention causal 16K d64 32:32", 16384, 16384, 32, 32, 64, 64, EVERY, 0, false},
    {"attention causal 16K d64 32:8", 16384, 16384, 32, 8, 64, 64, EVERY, 0, false},
    {"attention full 16K x 16K d64 32:32", 16384, 16384, 32, 32, 64, 64, EVERY, EVERY, false},
    {"attention causal 16K d256 16:8", 16384, 16384, 16, 8, 256, 256, EVERY, 0, false},
    {"attention causal 16K MLA 192/128 128:128", 16384, 16384, 128, 128, 192, 128, EVERY, 0, false},
    {"attention window 4096 16K d128 32:8", 16384, 16384, 32, 8, 128, 128, 4095, 0, false},
    {"attention window 4096 128K d128 32:8", 131072, 131072, 32, 8, 128, 128, 4095, 0, false},
    {"attention symmetric 64 8K d64 12:12", 8192, 8192, 12, 12, 64, 64, 64, 64, false},
    {"attention symmetric 64 64K d64 12:12", 65536, 65536, 12, 12, 64, 64, 64, 64, false},
    {"attention symmetric 128 8K d64 12:12", 8192, 8192, 12, 12, 64, 64, 128, 128, false},
    {"attention full 8K x 8K d64 12:12", 8192, 8192, 12, 12, 64, 64, EVERY, EVERY, false},
    {"attention causal 4K x 16K MLA 576/512 128:1", 4096, 16384, 128, 1, 576, 512, EVERY, 0, true},
};
static const struct attention_case decode_cases[] = {
    {"decode 128K keys d128 32:8", 1, 131072, 32, 8, 128, 128, EVERY, 0, false},
    {"decode 128K keys d128 32:32", 1, 131072, 32, 32, 128, 128, EVERY, 0, false},
    {"decode 128K keys window 4096 d128 32:8", 1, 131072, 32, 8, 128, 128, 4095, 0, false},
    {"decode 128K keys MLA 576/512 128:1", 1, 131072, 128, 1, 576, 512, EVERY, 0, true},
};

static enum status call_attention(struct backend *backend, void *user) {
    return backend->ops->attention(backend, user);
}

static int64_t ahead(const struct bench *b, const struct attention_case *c) {
    return c->ahead > 0 ? scaled(b, c->ahead) : 0;
}

static struct attention_args attention_open(struct bench *b, const struct attention_case *c) {
    int64_t n_query = c->n_query == 1 ? 1 : scaled(b, c->n_query), n_key = scaled(b, c->n_key);
    int64_t key_col = (int64_t)c->n_kv_head * c->head_dim;
    int64_t value_col = c->value_in_key ? key_col : (int64_t)c->n_kv_head * c->value_dim;
    struct attention_args a = {.n_query = n_query,
                               .n_key = n_key,
                               .n_head = c->n_head,
                               .n_kv_head = c->n_kv_head,
                               .head_dim = c->head_dim,
                               .value_dim = c->value_dim,
                               .scale = 1 / sqrtf((float)c->head_dim),
                               .query_dtype = DTYPE_BF16,
                               .kv_dtype = DTYPE_BF16,
                               .query_stride = (int64_t)c->n_head * c->head_dim,
                               .key_stride = key_col,
                               .value_stride = value_col,
                               .key_position = b->position};
    if (c->back < EVERY) a.first_visible = b->position + n_key - n_query - scaled(b, c->back);
    if (c->ahead < EVERY) a.end_visible = b->position + n_key - n_query + ahead(b, c) + 1;
    a.query = random_held(b, DTYPE_BF16, n_query * a.query_stride);
    a.key = random_held(b, DTYPE_BF16, n_key * key_col);
    a.value = c->value_in_key ? a.key : random_held(b, DTYPE_BF16, n_key * value_col);
    a.out = poisoned_held(b, n_query * c->n_head * c->value_dim * 4);
    a.lse = poisoned_held(b, n_query * c->n_head * 4);
    return a;
}

static double attention_seconds(struct bench *b, struct attention_args *a) {
    double seconds = measure_seconds(&b->backend, call_attention, a);
    measure_check(&b->backend, DTYPE_F32, a->out, a->n_query * a->n_head * a->value_dim);
    measure_check(&b->backend, DTYPE_F32, a->lse, a->n_query * a->n_head);
    release(b);
    return seconds;
}

// Of the queries of one head; positions are indices.
static double visible_pairs(const struct attention_args *a) {
    double pairs = 0;
    for (int64_t i = 0; i < a->n_query; i++) {
        int64_t begin = a->first_visible ? a->first_visible[i] : 0;
        int64_t end = a->end_visible ? a->end_visible[i] : a->n_key;
        if (begin < 0) begin = 0;
        if (end > a->n_key) end = a->n_key;
        pairs += (double)(end - begin);
    }
    return pairs;
}

static void measure_prefill(struct bench *b) {
    for (size_t i = 0; i < sizeof prefill_cases / sizeof *prefill_cases; i++) {
        struct attention_args a = attention_open(b, &prefill_cases[i]);
        double flop = visible_pairs(&a) * a.n_head * 2 * (a.head_dim + a.value_dim);
        report_flops(b, prefill_cases[i].name, attention_seconds(b, &a), flop);
    }
}

static void measure_decode(struct bench *b) {
    for (size_t i = 0; i < sizeof decode_cases / sizeof *decode_cases; i++) {
        struct attention_args a = attention_open(b, &decode_cases[i]);
        int64_t row = a.key == a.value ? a.key_stride : a.key_stride + a.value_stride;
        report_bytes(b, decode_cases[i].name, attention_seconds(b, &a),
                     2.0 * visible_pairs(&a) * (double)row);
    }
}

// The indexer adds to lists; each call begins with empty ones.
struct index_call {
    struct index_args args;
    void *zeros;
};

static enum status call_index(struct backend *backend, void *user) {
    const struct index_call *c = user;
    TRY(backend->ops->copy(backend, c->args.n_candidate, c->zeros, c->args.n_query * 4));
    return backend->ops->index_top_k(backend, &c->args);
}

static double index_seconds(struct bench *b, int64_t n_query, int64_t n_key, int n_head,
                            int head_dim) {
    int64_t k = scaled(b, TOP_K);
    int32_t *zeros = calloc((size_t)n_query, sizeof *zeros);
    const struct key_run run = {0, 1, n_key, 0};
    struct index_call c = {
        .args = {.n_query = n_query,
                 .n_key = n_key,
                 .n_head = n_head,
                 .head_dim = head_dim,
                 .dtype = DTYPE_F8_E4M3,
                 .query = random_held(b, DTYPE_F8_E4M3, n_query * n_head * head_dim),
                 .weight = random_held(b, DTYPE_F32, n_query * n_head),
                 .key = random_held(b, DTYPE_F8_E4M3, n_key * head_dim),
                 .key_scale = random_held(b, DTYPE_F32, n_key),
                 // every key is visible
                 .query_position = b->position + n_key,
                 .run = &run,
                 .n_run = 1,
                 .k = (int)k,
                 .candidate = poisoned_held(b, n_query * k * 8),
                 .n_candidate = poisoned_held(b, n_query * 4)},
        .zeros = hold(b, measure_upload(&b->backend, zeros, n_query * 4)),
    };
    double seconds = measure_seconds(&b->backend, call_index, &c);
    int32_t *count = zeros;
    measure_require(b->backend.ops->download(&b->backend, count, c.args.n_candidate, n_query * 4));
    measure_require(b->backend.ops->sync(&b->backend));
    for (int64_t i = 0; i < n_query; i++) {
        if (count[i] == (k < n_key ? k : n_key)) continue;
        fprintf(stderr, "query %lld has %d candidates\n", (long long)i, count[i]);
        exit(1);
    }
    free(zeros);
    release(b);
    return seconds;
}

static void measure_index(struct bench *b) {
    static const int64_t shapes[][2] = {{4096, 32768}, {4096, 131072}, {1024, 131072}, {1, 131072}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        char name[96];
        int64_t n_query = scaled(b, shapes[i][0]), n_key = scaled(b, shapes[i][1]);
        snprintf(name, sizeof name, "indexer and top-%d, 64 x 128 fp8, %lld x %lldK", TOP_K,
                 (long long)shapes[i][0], (long long)shapes[i][1] / 1024);
        double flop = 2.0 * N_INDEX_HEAD * INDEX_DIM * (double)(n_query * n_key);
        report_flops(b, name, index_seconds(b, n_query, n_key, N_INDEX_HEAD, INDEX_DIM), flop);
    }
    // Few heads: mostly the selection. Its floor: each score written and read once.
    static const int few[][3] = {{4096, 1, 128}, {1024, 1, 128}, {64, 1, 128},
                                 {8, 1, 128},    {1, 1, 128},    {4096, 4, 64},
                                 {1, 4, 64},     {4096, 8, 64},  {1, 8, 64}};
    for (size_t i = 0; i < sizeof few / sizeof *few; i++) {
        char name[96];
        int64_t n_query = scaled(b, few[i][0]), n_key = scaled(b, MOST_KEYS);
        snprintf(name, sizeof name, "top-%d of %d rows of 128K, %d x %d fp8", TOP_K, few[i][0],
                 few[i][1], few[i][2]);
        report_bytes(b, name, index_seconds(b, n_query, n_key, few[i][1], few[i][2]),
                     8.0 * (double)(n_query * n_key));
    }
}

static enum status call_sparse(struct backend *backend, void *user) {
    return backend->ops->sparse_attention(backend, user);
}

// k ascending rows of n_key for each query: one from each of k equal pieces.
static int32_t *random_rows(int64_t n_query, int64_t n_key, int64_t k) {
    int32_t *row = test_alloc(n_query * k * 4);
    for (int64_t q = 0; q < n_query; q++)
        for (int64_t j = 0; j < k; j++) {
            int64_t begin = j * n_key / k, n = (j + 1) * n_key / k - begin;
            uint64_t bits = random_bits(7, (uint64_t)(q * k + j));
            row[q * k + j] = (int32_t)(begin + (int64_t)(bits % (uint64_t)n));
        }
    return row;
}

static void measure_sparse_case(struct bench *b, int64_t n_query, int64_t n_key) {
    struct attention_case c = {.n_query = n_query,
                               .n_key = n_key,
                               .n_head = LATENT_HEADS,
                               .n_kv_head = 1,
                               .head_dim = LATENT_ROW,
                               .value_dim = LATENT,
                               .value_in_key = true};
    struct sparse_attention_args a = {.attention = attention_open(b, &c)};
    int64_t k = scaled(b, TOP_K), n = a.attention.n_query;
    int32_t *row = random_rows(n, a.attention.n_key, k), *count = test_alloc(n * 4);
    for (int64_t i = 0; i < n; i++) count[i] = (int32_t)k;
    a.k = (int)k;
    a.row = hold(b, measure_upload(&b->backend, row, n * k * 4));
    a.n_selected = hold(b, measure_upload(&b->backend, count, n * 4));
    double seconds = measure_seconds(&b->backend, call_sparse, &a);
    measure_check(&b->backend, DTYPE_F32, a.attention.out, n * LATENT_HEADS * LATENT);
    char name[96];
    snprintf(name, sizeof name, "sparse attention h128 k2048 576/512, %lld queries of %lldK keys",
             (long long)n_query, (long long)n_key / 1024);
    report_flops(b, name, seconds, 2.0 * LATENT_HEADS * (LATENT_ROW + LATENT) * (double)(n * k));
    release(b);
    free(row);
    free(count);
}

static void measure_sparse(struct bench *b) {
    measure_sparse_case(b, 4096, 32768);
    measure_sparse_case(b, 4096, 131072);
    measure_sparse_case(b, 1, 131072);
}

static void measure_products(struct bench *b) {
    int64_t n_token = scaled(b, PRODUCT_TOKENS), n_row = PRODUCT_ROWS / b->divisor,
            n_col = PRODUCT_COLUMNS;
    for (int dtype = 0; dtype < N_DTYPE; dtype++) {
        char name[96];
        double elements = (double)(n_row * n_col);
        snprintf(name, sizeof name, "product, %s weights, %d tokens", dtype_info[dtype].name,
                 PRODUCT_TOKENS);
        double seconds = product_seconds(b, (enum dtype)dtype, n_token, n_row, n_col);
        report_flops(b, name, seconds, 2 * elements * (double)n_token);
        snprintf(name, sizeof name, "product, %s weights, 1 token", dtype_info[dtype].name);
        seconds = product_seconds(b, (enum dtype)dtype, 1, n_row, n_col);
        report_bytes(b, name, seconds, (double)dtype_bytes((enum dtype)dtype, n_row * n_col));
    }
}

// One token's products with 8 of 32 experts of DeepSeek V3's, other ones at each call.
struct chosen_call {
    struct chosen_matmul_args args;
    struct weight weight[CHOICES_FROM];
    const int32_t *choices; // [N_PRODUCT, N_CHOICE]
    int next;
};

static enum status call_chosen(struct backend *backend, void *user) {
    struct chosen_call *c = user;
    c->args.expert = c->choices + c->next * N_CHOICE;
    c->next = (c->next + 1) % N_PRODUCT;
    return backend->ops->chosen_matmul(backend, &c->args);
}

static void measure_chosen(struct bench *b) {
    static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F8_E4M3, DTYPE_Q4_K};
    int64_t n_row = EXPERT_ROWS, n_col = scaled(b, EXPERT_COLUMNS / 256) * 256;
    int32_t choices[N_PRODUCT * N_CHOICE];
    for (int i = 0; i < N_PRODUCT * N_CHOICE; i++) choices[i] = i * 5 % CHOICES_FROM;
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) {
        struct chosen_call c = {.args = {.n_row = N_CHOICE,
                                         .n_expert = CHOICES_FROM,
                                         .weight = c.weight,
                                         .x = random_held(b, DTYPE_BF16, n_col),
                                         .x_dtype = DTYPE_BF16,
                                         .out = poisoned_held(b, N_CHOICE * n_row * 4)},
                                .choices =
                                    hold(b, measure_upload(&b->backend, choices, sizeof choices))};
        for (int i = 0; i < CHOICES_FROM; i++)
            c.weight[i] = measure_weight(&b->backend, dtypes[d], n_row, n_col);
        double seconds = measure_seconds(&b->backend, call_chosen, &c);
        measure_check(&b->backend, DTYPE_F32, c.args.out, N_CHOICE * n_row);
        for (int i = 0; i < CHOICES_FROM; i++)
            b->backend.ops->unload_weight(&b->backend, &c.weight[i]);
        release(b);
        char name[96];
        snprintf(name, sizeof name, "1 token, %d of %d experts, %s weights", N_CHOICE, CHOICES_FROM,
                 dtype_info[dtypes[d]].name);
        report_bytes(b, name, seconds, (double)(N_CHOICE * dtype_bytes(dtypes[d], n_row * n_col)));
    }
}

static enum status call_grouped(struct backend *backend, void *user) {
    return backend->ops->grouped_matmul(backend, user);
}

// Prefill: as many rows for each of 32 experts.
static void measure_grouped(struct bench *b, enum dtype dtype, int64_t rows) {
    int64_t n_row = EXPERT_ROWS, n_col = scaled(b, EXPERT_COLUMNS / 256) * 256;
    int64_t n = rows * CHOICES_FROM, first_row[CHOICES_FROM + 1];
    struct weight weight[CHOICES_FROM];
    struct grouped_matmul_args args = {.n_group = CHOICES_FROM,
                                       .first_row = first_row,
                                       .weight = weight,
                                       .x = random_held(b, DTYPE_BF16, n * n_col),
                                       .x_dtype = DTYPE_BF16,
                                       .out = poisoned_held(b, n * n_row * 4)};
    for (int i = 0; i <= CHOICES_FROM; i++) first_row[i] = i * rows;
    for (int i = 0; i < CHOICES_FROM; i++)
        weight[i] = measure_weight(&b->backend, dtype, n_row, n_col);
    double seconds = measure_seconds(&b->backend, call_grouped, &args);
    measure_check(&b->backend, DTYPE_F32, args.out, n * n_row);
    for (int i = 0; i < CHOICES_FROM; i++) b->backend.ops->unload_weight(&b->backend, &weight[i]);
    release(b);
    char name[96];
    snprintf(name, sizeof name, "%d experts, %lld rows each, %s weights", CHOICES_FROM,
             (long long)rows, dtype_info[dtype].name);
    report_flops(b, name, seconds, 2.0 * (double)(n * n_row) * (double)n_col);
}

static void measure_experts(struct bench *b) {
    static const int64_t rows[] = {4, 32, 256};
    measure_chosen(b);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        measure_grouped(b, DTYPE_BF16, rows[i]);
        measure_grouped(b, DTYPE_F8_E4M3, rows[i]);
    }
}

static const struct part {
    const char *name;
    void (*measure)(struct bench *);
} parts[] = {{"prefill", measure_prefill},   {"decode", measure_decode},
             {"index", measure_index},       {"sparse", measure_sparse},
             {"products", measure_products}, {"experts", measure_experts}};

// Without a list, every part is.
static bool is_listed(const struct part *part, int argc, char **argv) {
    for (int i = 2; i < argc; i++)
        if (strcmp(argv[i], part->name) == 0) return true;
    return argc <= 2;
}

int main(int argc, char **argv) {
    struct bench b = {0};
    if (!measure_open(argc, argv, "bench_gpu_kernels", &b.backend, &b.divisor)) return 0;
    int64_t *positions = test_alloc(3 * (int64_t)MOST_KEYS * 8);
    for (int64_t i = 0; i < 3 * (int64_t)MOST_KEYS; i++) positions[i] = i - MOST_KEYS;
    b.position = positions + MOST_KEYS;
    printf("# backend %s %s; per cent of the ceiling in the same unit\n", b.backend.ops->name,
           b.backend.device_name);
    measure_ceilings(&b);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (is_listed(&parts[i], argc, argv)) parts[i].measure(&b);
    backend_close(&b.backend);
    free(positions);
    return 0;
}
