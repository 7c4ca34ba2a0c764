// What a device promises beside the values of its operations: transfers of any size whose host
// memory may change at once, weights loaded as they are, and copies beside the work. On a cuda
// device; on a fake one where there is none.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/common/backends.h"
#include "tests/common/cases.h"

static struct backend device;
#define OPS device.ops

static int open_it(void **state) {
    (void)state;
    if (open_device(0, &device) == OK) return 0;
    fprintf(stderr, "%s\n", status_message());
    return -1;
}

static int close_it(void **state) {
    (void)state;
    backend_close(&device);
    return 0;
}

static void succeed(enum status status) {
    if (status != OK) fail_msg("status %d: %s", (int)status, status_message());
}

static void *on_device(int64_t bytes) {
    void *p = NULL;
    succeed(OPS->alloc(&device, bytes, &p));
    assert_int_equal((uintptr_t)p % 64, 0);
    return p;
}

static uint8_t *random_bytes(int64_t n, uint64_t seed) {
    uint8_t *out = test_alloc(n);
    for (int64_t i = 0; i < n; i++) out[i] = (uint8_t)random_bits(seed, (uint64_t)i);
    return out;
}

// Sizes around those of staging buffers; the host's memory is spoiled before the sync.
static void transfers_of_any_size(void **state) {
    (void)state;
    const int64_t sizes[] = {0, 1, 3, 255, 4096, (4 << 20) - 1, (4 << 20) + 1, (21 << 20) + 7};
    for (int s = 0; s < 8; s++) {
        int64_t n = sizes[s];
        uint8_t *host = random_bytes(n, 1), *expected = random_bytes(n, 1), *back = test_alloc(n);
        uint8_t *first = on_device(n), *second = on_device(n);
        succeed(OPS->upload(&device, first, host, n));
        poison(host, n);
        succeed(OPS->copy(&device, second, first, n));
        succeed(OPS->copy(&device, second, second, n));
        succeed(OPS->download(&device, back, second, n));
        succeed(OPS->sync(&device));
        assert_memory_equal(back, expected, n);
        OPS->free(&device, first), OPS->free(&device, second);
        free(host), free(expected), free(back);
    }
}

// More transfers before a sync than any list of pending ones holds, in order with the work.
static void many_transfers_in_order(void **state) {
    (void)state;
    enum { N = 3000 };
    float *x = on_device(N * 4), *back = test_alloc(N * 4), value;
    for (int i = 0; i < N; i++) {
        value = (float)i;
        succeed(OPS->upload(&device, x + i, &value, 4));
        succeed(OPS->multiply(
            &device, &(struct multiply_args){.x = x + i, .n = 1, .by = NULL, .factor = 2}));
        succeed(OPS->download(&device, back + i, x + i, 4));
        value = -7;
        succeed(OPS->upload(&device, x + i, &value, 4));
    }
    succeed(OPS->sync(&device));
    for (int i = 0; i < N; i++) assert_true(back[i] == 2 * (float)i);
    OPS->free(&device, x);
    free(back);
}

// Every row, expanded on the device by embed with its scales, is weight_row_to_float's bit for bit.
static void check_rows(const struct weight *loaded, const struct weight *host) {
    int64_t n = host->n_row * host->n_col;
    float *expected = test_alloc(n * 4), *got = test_alloc(n * 4);
    int32_t *row = test_alloc(host->n_row * 4);
    for (int64_t r = 0; r < host->n_row; r++) {
        weight_row_to_float(host, r, expected + r * host->n_col);
        row[r] = (int32_t)r;
    }
    int32_t *token = on_device(host->n_row * 4);
    float *out = on_device(n * 4);
    succeed(OPS->upload(&device, token, row, host->n_row * 4));
    succeed(OPS->embed(&device, &(struct embed_args){*loaded, token, host->n_row, 1, out}));
    succeed(OPS->download(&device, got, out, n * 4));
    succeed(OPS->sync(&device));
    for (int64_t i = 0; i < n; i++)
        if (got[i] != expected[i] && (got[i] == got[i] || expected[i] == expected[i]))
            fail_msg("%s: element %lld is %.9g, not %.9g", dtype_info[host->dtype].name,
                     (long long)i, (double)got[i], (double)expected[i]);
    OPS->free(&device, token), OPS->free(&device, out);
    free(expected), free(got), free(row);
}

// Rows of odd sizes, rows that are further apart than they are long, and views of what was loaded.
static void loads_weights_of_every_format(void **state) {
    (void)state;
    for (int d = 0; d < N_DTYPE; d++)
        for (int wide = 0; wide < 3; wide++) {
            int block = dtype_info[d].block_elements;
            int64_t n_col = block == 1 ? 77 : 2 * block, n_row = wide == 2 ? 40001 : 37;
            if (wide == 2 && d != DTYPE_Q8_0) continue; // longer than one staging buffer
            struct weight host = random_weight(d, n_row, n_col, wide == 1 ? 10 : 0, 3), loaded;
            succeed(OPS->load_weight(&device, &host, &loaded));
            check_rows(&loaded, &host);
            int64_t begin = block == 1 ? 5 : block;
            struct weight host_view =
                weight_columns(weight_rows(host, 3, 20), begin, n_col - begin);
            struct weight view = weight_columns(weight_rows(loaded, 3, 20), begin, n_col - begin);
            check_rows(&view, &host_view);
            OPS->unload_weight(&device, &loaded);
            assert_null(loaded.data);
            free((void *)host.data);
        }
}

// fp8 with scales, and what a rank would load: rows of the whole matrix that begin inside a block.
static void loads_scaled_rows(void **state) {
    (void)state;
    enum { N_ROW = 400, N_COL = 300, STRIDE = 3 };
    float scale[4 * STRIDE];
    for (int i = 0; i < 4 * STRIDE; i++) scale[i] = 0.3f + (float)i;
    struct weight whole = random_weight(DTYPE_F8_E4M3, N_ROW, N_COL, 3, 11);
    whole.scale = scale;
    whole.scale_stride = STRIDE;
    const struct weight hosts[] = {whole, weight_rows(whole, 200, 150),
                                   weight_columns(weight_rows(whole, 130, 7), 65, 200)};
    for (int i = 0; i < 3; i++) {
        struct weight loaded;
        succeed(OPS->load_weight(&device, &hosts[i], &loaded));
        struct weight host_view = weight_columns(weight_rows(hosts[i], 5, 2), 64, 100);
        struct weight view = weight_columns(weight_rows(loaded, 5, 2), 64, 100);
        struct weight all = loaded;
        float *x = random_vector(DTYPE_F32, 2 * N_COL, 1, 2), *got = test_alloc(2 * N_ROW * 4);
        float *x_device = on_device(2 * N_COL * 4), *out = on_device(2 * N_ROW * 4);
        succeed(OPS->upload(&device, x_device, x, 2 * N_COL * 4));
        for (int v = 0; v < 2; v++) {
            const struct weight *h = v ? &host_view : &hosts[i];
            succeed(OPS->matmul(&device, &(struct matmul_args){.x = x_device,
                                                               .x_stride = N_COL,
                                                               .n_token = 2,
                                                               .weight = v ? view : all,
                                                               .out = out,
                                                               .out_stride = h->n_row}));
            succeed(OPS->download(&device, got, out, 2 * h->n_row * 4));
            succeed(OPS->sync(&device));
            float *row = test_alloc(N_COL * 4);
            for (int64_t r = 0; r < h->n_row; r++) {
                weight_row_to_float(h, r, row);
                for (int t = 0; t < 2; t++) {
                    double sum = 0, size = 0;
                    for (int64_t c = 0; c < h->n_col; c++) {
                        sum += (double)row[c] * x[t * N_COL + c];
                        size += fabs((double)row[c] * x[t * N_COL + c]);
                    }
                    assert_true(fabs(got[t * h->n_row + r] - sum) <= 1e-6 * size);
                }
            }
            free(row);
        }
        OPS->free(&device, x_device), OPS->free(&device, out);
        OPS->unload_weight(&device, &loaded);
        free(x), free(got);
    }
    free((void *)whole.data);
}

static void await(int64_t ticket) {
    for (bool ended = false; !ended;) succeed(OPS->copies->ended(&device, ticket, &ended));
}

// Out of the device and in again, beside the work and ordered with it, over more tickets than are
// remembered.
static void copies_beside_the_work(void **state) {
    (void)state;
    enum { N = 1000, ROUNDS = 2 * COPY_TICKETS + 5 };
    const struct copy_ops *copies = OPS->copies;
    float *pinned = NULL, back[N], *x = on_device(N * 4), *y = on_device(N * 4);
    succeed(copies->pin(&device, N * 4, (void **)&pinned));
    for (int i = 0; i < N; i++) back[i] = 1;
    succeed(OPS->upload(&device, x, back, N * 4));
    int64_t ticket = -1, before = -1;
    for (int round = 0; round < ROUNDS; round++) {
        succeed(OPS->multiply(&device, &(struct multiply_args){x, N, NULL, -1}));
        succeed(copies->after_work(&device));
        succeed(copies->out(&device, pinned, x, N * 4, &ticket));
        assert_true(ticket > before);
        before = ticket;
        succeed(copies->in(&device, y, pinned, N * 4, &ticket));
        assert_true(ticket > before);
        before = ticket;
        succeed(copies->before_work(&device));
    }
    bool ended = false;
    succeed(copies->ended(&device, ticket - COPY_TICKETS, &ended));
    assert_true(ended);
    await(ticket);
    succeed(OPS->download(&device, back, y, N * 4));
    succeed(OPS->sync(&device));
    for (int i = 0; i < N; i++)
        assert_true(back[i] == (ROUNDS % 2 ? -1 : 1) && pinned[i] == back[i]);
    copies->unpin(&device, pinned);
    OPS->free(&device, x), OPS->free(&device, y);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(transfers_of_any_size),         cmocka_unit_test(many_transfers_in_order),
        cmocka_unit_test(loads_weights_of_every_format), cmocka_unit_test(loads_scaled_rows),
        cmocka_unit_test(copies_beside_the_work),
    };
    return cmocka_run_group_tests_name("device", tests, open_it, close_it);
}
