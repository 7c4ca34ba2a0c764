// `halka verify`: a numerical self-test of the backend, the transport and ring attention on the
// ranks of this job.
#include "launcher/verify.h"

#include <float.h>
#include <math.h>

float verify_number(uint64_t stream, uint64_t index) {
    uint64_t x = (stream << 40) + index + 1; // splitmix64's finaliser
    x *= 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return (float)((double)(x >> 40) * 0x1p-23 - 1.0);
}

void verify_fill(float *out, int64_t n, uint64_t stream) {
    for (int64_t i = 0; i < n; i++) out[i] = verify_number(stream, (uint64_t)i);
}

static enum status finish_row(struct verify *v, const char *name, const char *shape,
                              const char *figure, bool passed) {
    v->n_passed += passed;
    v->n_failed += !passed;
    if (v->job->comm.rank == 0) {
        printf("  %-24s %-26s %14s   %s\n", name, shape, figure, passed ? "PASSED" : "FAILED");
    }
    return OK;
}

enum status verify_row(struct verify *v, const char *name, const char *shape, double epsilon,
                       int64_t n_term, const float *got, const float *expected, int64_t n) {
    double difference = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = got[i] == expected[i] ? 0 : fabs((double)got[i] - expected[i]);
        if (!(d <= difference)) difference = isnan(d) ? INFINITY : d;
        if (fabs((double)expected[i]) > largest) largest = fabs((double)expected[i]);
    }
    double residual = difference == 0 ? 0 : difference / (epsilon * largest * sqrt((double)n_term));
    struct comm *host = comm_host(&v->job->comm);
    TRY(host->ops->all_reduce(host, &residual, 1, REDUCE_MAX_F64));
    char figure[32];
    snprintf(figure, sizeof figure, "%.4g", residual);
    return finish_row(v, name, shape, figure, residual < VERIFY_LIMIT);
}

enum status verify_exact(struct verify *v, const char *name, const char *shape, bool right) {
    int64_t all_right = right;
    struct comm *host = comm_host(&v->job->comm);
    TRY(host->ops->all_reduce(host, &all_right, 1, REDUCE_MIN_I64));
    return finish_row(v, name, shape, all_right ? "exact" : "differs", all_right);
}

enum status verb_verify(struct job *job) {
    struct verify verify = {.job = job};
    enum status status = OK;
    const struct backend_options options = {.kind = BACKEND_REFERENCE, .n_thread = 1};
    TRY(comm_agree(&job->comm, backend_open(&options, &verify.reference)));
    job->working = true;
    if (job->comm.rank == 0) {
        printf("Backend %s against the reference, transport %s, %d ranks of %d threads\n",
               job->backend.ops->name, job->comm.ops->name, job->comm.size, job->cluster->n_thread);
        printf("residual = max|x - r| / (eps * max|r| * sqrt(n)), eps = %.3g (fp32) or %.3g "
               "(bf16); PASSED below %.1f\n",
               (double)FLT_EPSILON / 2, 0x1p-9, VERIFY_LIMIT);
        printf("  %-24s %-26s %14s\n", "operation", "shape", "residual");
    }
    TRY_OR(done, verify_kernels(&verify));
    TRY_OR(done, verify_transport(&verify));
    TRY_OR(done, verify_ring(&verify));
    TRY_OR(done, verify_sparse(&verify));
    if (job->comm.rank == 0) {
        printf("%d passed, %d failed: %s\n", verify.n_passed, verify.n_failed,
               verify.n_failed ? "FAILED" : "PASSED");
        fflush(stdout);
    }
    job->working = false; // every rank knows the same verdict
    if (verify.n_failed > 0) {
        FAIL_OR(done, ERR_INTERNAL,
                "%d of %d self-tests FAILED: do not trust results of this build "
                "on these machines",
                verify.n_failed, verify.n_failed + verify.n_passed);
    }
done:
    backend_close(&verify.reference);
    return status;
}
