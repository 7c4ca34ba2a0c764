// Seconds of queued work by phase: an event where the phase changes; sync() reads the times between
// them. Work of one phase that follows work of the same needs none.
#include <stdlib.h>

#include "kernels/cuda/memory.cuh"

enum { MAX_MARKS = 4096, NO_PHASE = -1 };

struct cuda_phases {
    cudaEvent_t event[MAX_MARKS]; // made when first needed
    int phase[MAX_MARKS];         // of the work after the event
    int n_event, n, current;
};

enum status cuda_phases_open(struct cuda_state *state) {
    state->phases = (struct cuda_phases *)calloc(1, sizeof *state->phases);
    if (!state->phases) FAIL(ERR_MEMORY, "cannot allocate %zu bytes", sizeof *state->phases);
    state->phases->current = NO_PHASE;
    return OK;
}

void cuda_phases_close(struct cuda_state *state) {
    for (int i = 0; state->phases && i < state->phases->n_event; i++)
        (void)cudaEventDestroy(state->phases->event[i]);
    free(state->phases);
    state->phases = NULL;
}

void cuda_phases_add(struct backend *backend) {
    struct cuda_phases *p = cuda_state(backend)->phases;
    for (int i = 0; i + 1 < p->n; i++) {
        float milliseconds = 0;
        if (p->phase[i] == NO_PHASE) continue;
        if (cudaEventElapsedTime(&milliseconds, p->event[i], p->event[i + 1]) != cudaSuccess)
            (void)cudaGetLastError();
        else if (backend->phase_seconds)
            backend->phase_seconds[p->phase[i]] += 1e-3 * (double)milliseconds;
    }
    p->n = 0;
}

void cuda_phase(struct backend *backend, int phase) {
    struct cuda_state *state = cuda_state(backend);
    struct cuda_phases *p = state->phases;
    if (!backend->phase_seconds) {
        p->n = 0;
        p->current = NO_PHASE;
    }
    if (phase == p->current || !backend->phase_seconds) return;
    if (cuda_steps_keeping(state)) return; // its launch counts as one phase
    if (p->n == MAX_MARKS) {               // the last mark begins the next row of them
        int last = p->phase[MAX_MARKS - 1];
        if (cuda_wait_event(backend, p->event[MAX_MARKS - 1]) == OK) cuda_phases_add(backend);
        p->n = 0;
        p->current = NO_PHASE;
        cuda_phase(backend, last);
    }
    if (p->n == p->n_event) {
        if (cudaEventCreate(&p->event[p->n]) != cudaSuccess) return;
        p->n_event++;
    }
    if (cudaEventRecord(p->event[p->n], state->compute) != cudaSuccess) return;
    p->phase[p->n++] = phase;
    p->current = phase;
}
