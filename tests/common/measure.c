#include "tests/common/measure.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tests/common/cases.h"

enum {
    BLOCK_ELEMENTS = 1 << 21, // of the distinct values
    WEIGHT_ROWS = 128,        // distinct ones: a whole block of scales
    N_BATCH = 5,
    MOST_CALLS = 512, // in a batch
    CHECKED = 1 << 16,
    CEILING_SIZE = 8192,
};
static const double kBatchSeconds = 0.03, kLongSeconds = 1;

double measure_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void measure_require(enum status status) {
    if (status == OK) return;
    fprintf(stderr, "%s\n", status_message());
    exit((int)status);
}

bool measure_open(int argc, char **argv, const char *program, struct backend *out,
                  int64_t *divisor) {
    *divisor = argc > 1 ? atoll(argv[1]) : 1;
    if (*divisor < 1) *divisor = 1;
    struct backend_options options = {.kind = argc > 1 ? BACKEND_AUTO : BACKEND_CUDA,
                                      .n_thread = 1};
    if (backend_open(&options, out) == OK) return true;
    printf("%s: no device (%s); `%s DIVISOR` rehearses with smaller sizes\n", program,
           status_message(), program);
    return false;
}

void *measure_upload(struct backend *backend, const void *host, int64_t bytes) {
    void *out;
    measure_require(backend->ops->alloc(backend, bytes, &out));
    measure_require(backend->ops->upload(backend, out, host, bytes));
    measure_require(backend->ops->sync(backend));
    return out;
}

// `bytes` of backend memory, filled with the host's `block` over and over.
static void *repeated(struct backend *backend, const void *block, int64_t block_bytes,
                      int64_t bytes) {
    void *out;
    measure_require(backend->ops->alloc(backend, bytes, &out));
    int64_t filled = bytes < block_bytes ? bytes : block_bytes;
    measure_require(backend->ops->upload(backend, out, block, filled));
    while (filled < bytes) {
        int64_t n = bytes - filled < filled ? bytes - filled : filled;
        measure_require(backend->ops->copy(backend, (char *)out + filled, out, n));
        filled += n;
    }
    measure_require(backend->ops->sync(backend));
    return out;
}

bool measure_multiplies_bf16(void) {
    struct backend_options options = {.kind = BACKEND_CPU, .isa = ISA_AUTO, .n_thread = 1};
    struct backend backend;
    measure_require(backend_open(&options, &backend));
    bool multiplies = backend.bf16_products;
    backend_close(&backend);
    return multiplies;
}

void *measure_random(struct backend *backend, enum dtype dtype, int64_t n) {
    // An odd number of values, so that rows of a power of two differ.
    int64_t n_block = n < BLOCK_ELEMENTS ? n : BLOCK_ELEMENTS - 64 * 17;
    float *x = random_vector(DTYPE_F32, n_block, 1, (uint64_t)n);
    void *block = test_alloc(dtype_bytes(dtype, n_block));
    dtype_from_float(dtype, x, n_block, block);
    void *out = repeated(backend, block, dtype_bytes(dtype, n_block), dtype_bytes(dtype, n));
    free(block);
    free(x);
    return out;
}

void *measure_poisoned(struct backend *backend, int64_t bytes) {
    int64_t n = bytes < BLOCK_ELEMENTS ? bytes : BLOCK_ELEMENTS;
    void *block = test_alloc(n);
    poison(block, n);
    void *out = repeated(backend, block, n, bytes);
    free(block);
    return out;
}

struct weight measure_weight(struct backend *backend, enum dtype dtype, int64_t n_row,
                             int64_t n_col) {
    int64_t distinct = n_row < WEIGHT_ROWS ? n_row : WEIGHT_ROWS;
    struct weight few = random_weight(dtype, distinct, n_col, 0, 1), host = few, out;
    char *data = test_alloc(n_row * few.row_bytes);
    for (int64_t row = 0; row < n_row; row += distinct) {
        int64_t n = n_row - row < distinct ? n_row - row : distinct;
        memcpy(data + row * few.row_bytes, few.data, (size_t)(n * few.row_bytes));
    }
    int64_t block = WEIGHT_SCALE_BLOCK,
            n_scale = (n_row + block - 1) / block * ((n_col + block - 1) / block);
    host.n_row = n_row;
    host.data = data;
    float *scale = NULL;
    if (dtype == DTYPE_F8_E4M3) {
        scale = random_vector(DTYPE_F32, n_scale, 1, 3);
        host.scale = scale;
        host.scale_stride = (n_col + block - 1) / block;
    }
    measure_require(backend->ops->load_weight(backend, &host, &out));
    measure_require(backend->ops->sync(backend));
    // A host backend goes on reading what was loaded.
    if (backend->memory == MEMORY_DEVICE) {
        free(scale);
        free(data);
    }
    free((void *)few.data);
    return out;
}

void measure_check(struct backend *backend, enum dtype dtype, const void *out, int64_t n) {
    int64_t count = n < CHECKED ? n : CHECKED, bytes = dtype_bytes(dtype, count);
    char *host = test_alloc(2 * bytes);
    const char *last = (const char *)out + dtype_bytes(dtype, n) - bytes;
    measure_require(backend->ops->download(backend, host, out, bytes));
    measure_require(backend->ops->download(backend, host + bytes, last, bytes));
    measure_require(backend->ops->sync(backend));
    for (int64_t i = 0; i < 2 * count; i++) {
        float x;
        dtype_to_float(dtype, host + dtype_bytes(dtype, i), 1, &x);
        if (!isnan(x)) continue;
        fprintf(stderr, "an output was not written, or is NaN\n");
        exit(1);
    }
    free(host);
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double batch(struct backend *backend, enum status (*call)(struct backend *, void *),
                    void *user, int n) {
    double begun = measure_now();
    for (int i = 0; i < n; i++) measure_require(call(backend, user));
    measure_require(backend->ops->sync(backend));
    return (measure_now() - begun) / n;
}

double measure_seconds(struct backend *backend, enum status (*call)(struct backend *, void *),
                       void *user) {
    batch(backend, call, user, 1);
    double seconds[N_BATCH] = {batch(backend, call, user, 1)};
    if (seconds[0] > kLongSeconds) return seconds[0];
    double calls = kBatchSeconds / seconds[0];
    int n = calls < 1 ? 1 : calls > MOST_CALLS ? MOST_CALLS : (int)calls;
    for (int i = 0; i < N_BATCH; i++) seconds[i] = batch(backend, call, user, n);
    qsort(seconds, N_BATCH, sizeof *seconds, compare);
    return seconds[N_BATCH / 2];
}

static enum status call_product(struct backend *backend, void *user) {
    return backend->ops->matmul(backend, user);
}

double measure_product_ceiling(struct backend *backend, int64_t divisor, double *seconds) {
    int64_t n = CEILING_SIZE / divisor > 0 ? CEILING_SIZE / divisor : 1;
    void *x = measure_random(backend, DTYPE_BF16, n * n);
    void *out = measure_poisoned(backend, dtype_bytes(DTYPE_BF16, n * n));
    struct matmul_args args = {.x = x,
                               .x_dtype = DTYPE_BF16,
                               .x_stride = n,
                               .n_token = n,
                               .weight = measure_weight(backend, DTYPE_BF16, n, n),
                               .out = out,
                               .out_dtype = DTYPE_BF16,
                               .out_stride = n};
    *seconds = measure_seconds(backend, call_product, &args);
    measure_check(backend, DTYPE_BF16, out, n * n);
    backend->ops->unload_weight(backend, &args.weight);
    backend->ops->free(backend, out);
    backend->ops->free(backend, x);
    return 2.0 * (double)(n * n * n) / *seconds;
}

struct copy {
    void *to;
    const void *from;
    int64_t bytes;
};

static enum status call_copy(struct backend *backend, void *user) {
    const struct copy *c = user;
    return backend->ops->copy(backend, c->to, c->from, c->bytes);
}

double measure_copy_ceiling(struct backend *backend, int64_t divisor, double *seconds) {
    int64_t bytes = ((int64_t)1 << 32) / divisor;
    void *from = measure_random(backend, DTYPE_BF16, bytes / 2);
    void *to = measure_poisoned(backend, bytes);
    *seconds = measure_seconds(backend, call_copy, &(struct copy){to, from, bytes});
    backend->ops->free(backend, to);
    backend->ops->free(backend, from);
    return 2 * (double)bytes / *seconds;
}
