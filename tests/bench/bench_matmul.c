// Rates of matrix products: long inputs (GFLOP/s), one token (GB/s of weights read) and the
// expansion of panels (GB/s written). `bench_matmul [plain|avx2|avx512|avx512bf16 [threads]]`.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "kernels/cpu/product.h"
#include "tests/common/cases.h"

#define N_RUN 5
#define SMOLLM2_LAYERS 30

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void must(enum status status) {
    if (status == OK) return;
    fprintf(stderr, "bench_matmul: %s\n", status_message());
    exit((int)status);
}

// Seconds of the fastest of N_RUN products.
static double time_matmul(struct backend *b, int64_t n_token, struct weight w, enum dtype x_dtype) {
    void *x = random_vector(x_dtype, n_token * w.n_col, 1, 1);
    float *out = test_alloc(n_token * w.n_row * 4);
    const struct matmul_args args = {
        .x = x,
        .x_dtype = x_dtype,
        .x_stride = w.n_col,
        .n_token = n_token,
        .weight = w,
        .out = out,
        .out_dtype = DTYPE_F32,
        .out_stride = w.n_row,
    };
    double best = 1e9;
    for (int i = 0; i < N_RUN; i++) {
        double start = now();
        must(b->ops->matmul(b, &args));
        double seconds = now() - start;
        if (seconds < best) best = seconds;
    }
    free(x), free(out);
    return best;
}

static void bench_long(struct backend *b) {
    const int64_t shapes[][3] = {{2048, 576, 1536}, {2048, 4096, 4096}, {64, 576, 1536},
                                 {16, 576, 1536},   {9, 576, 1536},     {8, 576, 1536}};
    const enum dtype formats[] = {DTYPE_F32, DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_1, DTYPE_Q4_K};
    printf("tokens x inputs x outputs   weights   GFLOP/s with fp32 and bf16 inputs\n");
    for (int s = 0; s < 6; s++)
        for (int d = 0; d < 5; d++) {
            int64_t n_col = formats[d] == DTYPE_Q4_K ? shapes[s][1] / 256 * 256 : shapes[s][1];
            struct weight w = random_weight(formats[d], shapes[s][2], n_col, 0, 2);
            double flop = 2e-9 * (double)shapes[s][0] * (double)n_col * (double)w.n_row;
            printf("%6lld x %5lld x %5lld %10s %9.1f %9.1f\n", (long long)shapes[s][0],
                   (long long)n_col, (long long)w.n_row, dtype_info[formats[d]].name,
                   flop / time_matmul(b, shapes[s][0], w, DTYPE_F32),
                   flop / time_matmul(b, shapes[s][0], w, DTYPE_BF16));
            free((void *)w.data);
        }
}

// Large matrices, so that the weights come from memory.
static void bench_decode(struct backend *b) {
    printf("one token, 8192 x 8192     weights   GB/s read (plain formats: half as many rows)\n");
    for (int d = 0; d < N_DTYPE; d++) {
        struct weight w = random_weight(d, dtype_is_block(d) ? 8192 : 4096, 8192, 0, 2);
        double seconds = time_matmul(b, 1, w, DTYPE_F32);
        printf("%36s %9.1f\n", dtype_info[d].name,
               1e-9 * (double)(w.n_row * w.row_bytes) / seconds);
        free((void *)w.data);
    }
}

static void bench_expansion(struct backend *b) {
    printf("expansion, 2048 x 4096     weights   GB/s written as fp32 and bf16\n");
    void *room = test_alloc(2048 * 4096 * 4);
    for (int d = 0; d < N_DTYPE; d++) {
        struct weight w = random_weight(d, 2048, 4096, 0, 2);
        printf("%36s", dtype_info[d].name);
        for (int half = 0; half < 2; half++) {
            enum dtype to = half ? DTYPE_BF16 : DTYPE_F32;
            double best = 1e9;
            for (int i = 0; i < N_RUN; i++) {
                double start = now();
                product_expand(cpu_state(b), w, to, room);
                double seconds = now() - start;
                if (seconds < best) best = seconds;
            }
            if (d == (int)to)
                printf("    direct");
            else
                printf(" %9.1f", 1e-9 * 2048 * 4096 * dtype_info[to].block_bytes / best);
        }
        printf("\n");
        free((void *)w.data);
    }
    free(room);
}

// The matrices of SmolLM2-135M in order, one token: what a step of decoding spends in products.
static void bench_smollm2(struct backend *b) {
    const int64_t shapes[][2] = {{576, 576},  {192, 576},  {192, 576}, {576, 576},
                                 {1536, 576}, {1536, 576}, {576, 1536}};
    struct weight layers[SMOLLM2_LAYERS][7];
    struct weight head = random_weight(DTYPE_Q8_0, 49152, 576, 0, 3);
    float *x = random_vector(DTYPE_F32, 1536, 1, 1), *out = test_alloc(49152 * 4);
    for (int l = 0; l < SMOLLM2_LAYERS; l++)
        for (int m = 0; m < 7; m++)
            layers[l][m] = random_weight(DTYPE_Q4_1, shapes[m][0], shapes[m][1], 0, 4);
    struct matmul_args args = {.x = x, .n_token = 1, .out = out, .x_stride = 1536, .out_stride = 1};
    double best = 1e9;
    for (int i = 0; i < 4 * N_RUN; i++) {
        double start = now();
        for (int m = 0; m < SMOLLM2_LAYERS * 7; m++) {
            args.weight = layers[m / 7][m % 7];
            must(b->ops->matmul(b, &args));
        }
        args.weight = head;
        must(b->ops->matmul(b, &args));
        double seconds = now() - start;
        if (seconds < best) best = seconds;
    }
    printf("products of one SmolLM2-135M token, Q4_1 with a Q8_0 head: %.2f ms\n", 1e3 * best);
    for (int m = 0; m < SMOLLM2_LAYERS * 7; m++) free((void *)layers[m / 7][m % 7].data);
    free((void *)head.data), free(x), free(out);
}

int main(int argc, char **argv) {
    const char *const names[] = {"auto", "plain", "avx2", "avx512", "avx512bf16"};
    struct backend_options options = {.kind = BACKEND_CPU, .isa = ISA_AUTO, .n_thread = 2};
    for (int i = 0; i < 5; i++)
        if (argc > 1 && !strcmp(argv[1], names[i])) options.isa = (enum isa)i;
    if (argc > 2) options.n_thread = atoi(argv[2]);
    struct backend backend;
    must(backend_open(&options, &backend));
    printf("cpu backend, %s, %d threads%s\n", names[cpu_state(&backend)->isa], options.n_thread,
           backend.bf16_products ? ", bf16 products" : "");
    bench_smollm2(&backend);
    bench_decode(&backend);
    bench_expansion(&backend);
    bench_long(&backend);
    backend_close(&backend);
    return 0;
}
