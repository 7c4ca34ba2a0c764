// The backend's operations against the reference, on the same numbers.
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/verify.h"

static const double epsilon_f32 = FLT_EPSILON / 2, epsilon_bf16 = 0x1p-9;

enum { N_TOKEN = 67, N_HEAD = 6, N_KV_HEAD = 2, HEAD_DIM = 64, N_COL = 576, N_ROW = 320 };

// Inputs, and what each backend makes of them.
struct buffers {
    float *x, *w, *cosine, *sine;
    float *got, *expected, *got_lse, *expected_lse;
    void *rounded_x, *rounded_w; // the same numbers in bf16
    int64_t position[N_TOKEN];
};
enum { N_X = N_TOKEN * N_COL, N_W = N_ROW * N_COL, N_LSE = N_TOKEN * N_HEAD };

static enum status buffers_open(struct buffers *b) {
    *b = (struct buffers){
        .x = malloc(N_X * sizeof(float)),
        .w = malloc(N_W * sizeof(float)),
        .cosine = malloc(N_TOKEN * HEAD_DIM / 2 * sizeof(float)),
        .sine = malloc(N_TOKEN * HEAD_DIM / 2 * sizeof(float)),
        .got = malloc(N_X * sizeof(float)),
        .expected = malloc(N_X * sizeof(float)),
        .got_lse = malloc(N_LSE * sizeof(float)),
        .expected_lse = malloc(N_LSE * sizeof(float)),
        .rounded_x = malloc(N_X * sizeof(bf16)),
        .rounded_w = malloc(N_W * sizeof(bf16)),
    };
    if (!b->x || !b->w || !b->cosine || !b->sine || !b->got || !b->expected || !b->got_lse ||
        !b->expected_lse || !b->rounded_x || !b->rounded_w) {
        FAIL(ERR_MEMORY, "no memory for the kernels' self-test");
    }
    verify_fill(b->x, N_X, 1);
    verify_fill(b->w, N_W, 2);
    for (int i = 0; i < N_TOKEN * HEAD_DIM / 2; i++) {
        b->cosine[i] = cosf((float)i);
        b->sine[i] = sinf((float)i);
    }
    dtype_from_float(DTYPE_BF16, b->x, N_X, b->rounded_x);
    dtype_from_float(DTYPE_BF16, b->w, N_W, b->rounded_w);
    for (int i = 0; i < N_TOKEN; i++) b->position[i] = i;
    return OK;
}

static void buffers_close(struct buffers *b) {
    free(b->rounded_w);
    free(b->rounded_x);
    free(b->expected_lse);
    free(b->got_lse);
    free(b->expected);
    free(b->got);
    free(b->sine);
    free(b->cosine);
    free(b->w);
    free(b->x);
}

// Unwritten elements show as NaN.
static void poison(struct buffers *b) {
    for (int i = 0; i < N_X; i++) b->got[i] = b->expected[i] = NAN;
    for (int i = 0; i < N_LSE; i++) b->got_lse[i] = b->expected_lse[i] = NAN;
}

#define BOTH(operation, args_got, args_expected)                                                   \
    do {                                                                                           \
        struct backend *own_ = &v->job->backend;                                                   \
        TRY(own_->ops->operation(own_, args_got));                                                 \
        TRY(own_->ops->sync(own_));                                                                \
        TRY(v->reference.ops->operation(&v->reference, args_expected));                            \
    } while (0)

static enum status verify_matmul(struct verify *v, struct buffers *b, bool rounded) {
    struct matmul_args args = {
        .x = rounded ? b->rounded_x : b->x,
        .x_dtype = rounded ? DTYPE_BF16 : DTYPE_F32,
        .x_stride = N_COL,
        .n_token = N_TOKEN,
        .weight = {.data = rounded ? b->rounded_w : (void *)b->w,
                   .dtype = rounded ? DTYPE_BF16 : DTYPE_F32,
                   .n_row = N_ROW,
                   .n_col = N_COL,
                   .row_bytes = dtype_bytes(rounded ? DTYPE_BF16 : DTYPE_F32, N_COL)},
        .out = b->got,
        .out_dtype = DTYPE_F32,
        .out_stride = N_ROW};
    struct matmul_args expected = args;
    expected.out = b->expected;
    poison(b);
    BOTH(matmul, &args, &expected);
    return verify_row(v, rounded ? "product bf16" : "product fp32", "67 x 576 x 320", epsilon_f32,
                      N_COL, b->got, b->expected, N_TOKEN * N_ROW);
}

static enum status verify_elementwise(struct verify *v, struct buffers *b) {
    struct norm_args norm = {.kind = NORM_RMS,
                             .x = b->x,
                             .n_row = N_TOKEN,
                             .n_col = N_COL,
                             .weight = b->w,
                             .eps = 1e-5f,
                             .out = b->got,
                             .out_dtype = DTYPE_F32};
    struct norm_args norm_expected = norm;
    norm_expected.out = b->expected;
    poison(b);
    BOTH(norm, &norm, &norm_expected);
    TRY(verify_row(v, "RMS norm", "67 x 576", epsilon_f32, N_COL, b->got, b->expected, N_X));

    struct gate_args gate = {.activation = ACTIVATION_SILU,
                             .gate = b->x,
                             .up = b->w,
                             .gate_stride = N_COL,
                             .up_stride = N_COL,
                             .n_token = N_TOKEN,
                             .n_col = N_COL,
                             .out = b->got,
                             .out_dtype = DTYPE_F32};
    struct gate_args gate_expected = gate;
    gate_expected.out = b->expected;
    poison(b);
    BOTH(gate, &gate, &gate_expected);
    TRY(verify_row(v, "gate", "67 x 576", epsilon_f32, 1, b->got, b->expected, N_X));

    const int64_t width = N_HEAD * HEAD_DIM;
    struct rope_args rope = {.x = b->x,
                             .x_stride = N_COL,
                             .n_token = N_TOKEN,
                             .n_head = N_HEAD,
                             .head_dim = HEAD_DIM,
                             .rope_dim = HEAD_DIM,
                             .cos = b->cosine,
                             .sin = b->sine,
                             .out = b->got,
                             .out_dtype = DTYPE_F32,
                             .out_stride = width};
    struct rope_args rope_expected = rope;
    rope_expected.out = b->expected;
    poison(b);
    BOTH(rope, &rope, &rope_expected);
    return verify_row(v, "rope", "67 x 6 x 64", epsilon_f32, 1, b->got, b->expected,
                      N_TOKEN * width);
}

static enum status verify_attention(struct verify *v, struct buffers *b, bool rounded) {
    enum dtype dtype = rounded ? DTYPE_BF16 : DTYPE_F32;
    struct attention_args args = {.n_query = N_TOKEN,
                                  .n_key = N_TOKEN,
                                  .n_head = N_HEAD,
                                  .n_kv_head = N_KV_HEAD,
                                  .head_dim = HEAD_DIM,
                                  .value_dim = HEAD_DIM,
                                  .scale = 0.5f,
                                  .causal = true,
                                  .query = rounded ? b->rounded_x : b->x,
                                  .query_dtype = dtype,
                                  .query_stride = N_COL,
                                  .key = rounded ? b->rounded_w : (void *)b->w,
                                  .value = rounded ? b->rounded_x : b->x,
                                  .kv_dtype = dtype,
                                  .key_stride = N_COL,
                                  .value_stride = N_COL,
                                  .query_position = b->position,
                                  .key_position = b->position,
                                  .out = b->got,
                                  .lse = b->got_lse};
    struct attention_args expected = args;
    expected.out = b->expected;
    expected.lse = b->expected_lse;
    poison(b);
    BOTH(attention, &args, &expected);
    const char *name = rounded ? "attention bf16" : "attention fp32";
    double epsilon = rounded ? epsilon_bf16 : epsilon_f32;
    TRY(verify_row(v, name, "67 x 6:2 x 64, causal", epsilon, HEAD_DIM, b->got, b->expected,
                   N_TOKEN * N_HEAD * HEAD_DIM));
    return verify_row(v, name, "its log-sum-exp", epsilon, HEAD_DIM, b->got_lse, b->expected_lse,
                      N_LSE);
}

static enum status verify_logprob(struct verify *v, struct buffers *b) {
    int32_t target[N_TOKEN];
    for (int i = 0; i < N_TOKEN; i++) target[i] = i * 7 % N_ROW;
    struct logprob_args args = {.x = b->x,
                                .x_dtype = DTYPE_F32,
                                .n_token = N_TOKEN,
                                .head = {.data = b->w,
                                         .dtype = DTYPE_F32,
                                         .n_row = N_ROW,
                                         .n_col = N_COL,
                                         .row_bytes = dtype_bytes(DTYPE_F32, N_COL)},
                                .target = target,
                                .logprob = b->got};
    struct logprob_args expected = args;
    expected.logprob = b->expected;
    poison(b);
    BOTH(logprob, &args, &expected);
    return verify_row(v, "log-probability", "67 x 576 x 320", epsilon_f32, N_COL, b->got,
                      b->expected, N_TOKEN);
}

enum status verify_kernels(struct verify *v) {
    struct buffers buffers;
    enum status status = OK;
    TRY_OR(done, buffers_open(&buffers));
    TRY_OR(done, verify_matmul(v, &buffers, false));
    TRY_OR(done, verify_matmul(v, &buffers, true));
    TRY_OR(done, verify_elementwise(v, &buffers));
    TRY_OR(done, verify_attention(v, &buffers, false));
    TRY_OR(done, verify_attention(v, &buffers, true));
    TRY_OR(done, verify_logprob(v, &buffers));
done:
    buffers_close(&buffers);
    return status;
}
