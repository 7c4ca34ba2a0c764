#include "tests/common/measure_session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/common/cases.h"
#include "tests/common/measure.h"

enum status measure_session_open(const struct network_shape *shape, int64_t divisor,
                                 int64_t capacity, struct measured_session *out) {
    *out = (struct measured_session){0};
    TRY(random_network_open(shape, divisor, &out->network));
    int64_t n_vocab = out->network.checkpoint.spec.n_vocab;
    out->logits = test_alloc(n_vocab * (int64_t)sizeof *out->logits);
    out->token = test_alloc(capacity * (int64_t)sizeof *out->token);
    for (int64_t i = 0; i < capacity; i++)
        out->token[i] = (int32_t)(random_bits(2, (uint64_t)i) % (uint64_t)n_vocab);
    return OK;
}

void measure_session_close(struct measured_session *m) {
    random_network_close(&m->network);
    free(m->token);
    free(m->logits);
    *m = (struct measured_session){0};
}

enum status measure_session_append(struct measured_session *m, int64_t first, int64_t n,
                                   double *seconds) {
    int64_t n_vocab = m->network.checkpoint.spec.n_vocab;
    struct append_args args = {.token = m->token + first, .n = n, .last_logits = m->logits};
    memset(m->logits, 0xff, (size_t)n_vocab * sizeof *m->logits);
    double begun = measure_now();
    TRY(session_append(m->session, &args));
    *seconds = measure_now() - begun;
    for (int64_t i = 0; i < n_vocab; i++)
        if (!isfinite(m->logits[i]))
            FAIL(ERR_INTERNAL, "logit %lld is %g", (long long)i, (double)m->logits[i]);
    return OK;
}

void measure_clear_profile(struct profile *profile) {
    *profile = (struct profile){.device = profile->device};
}

void measure_print_phases(const struct profile *profile, int n_call) {
    double sum = 0;
    for (int i = 0; i < N_PHASE; i++) sum += profile->seconds[i];
    for (int i = 0; i < N_PHASE; i++)
        if (profile->seconds[i] > 0.0005 * sum)
            printf("  %s %.3f ms (%.1f %%)", phase_name[i], profile->seconds[i] / n_call * 1e3,
                   100 * profile->seconds[i] / sum);
    printf("\n");
    fflush(stdout);
}

void measure_print_plan(const struct memory_plan *plan) {
    printf("plan: weights %.2f, K/V %.2f, activations %.2f, ring %.2f, scratch %.2f: %.2f GB",
           (double)plan->weights * 1e-9, (double)plan->kv * 1e-9, (double)plan->activations * 1e-9,
           (double)plan->ring * 1e-9, (double)plan->scratch * 1e-9, (double)plan->total * 1e-9);
}
