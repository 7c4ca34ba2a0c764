// What ran on a GPU and when: a library that CUDA loads into any program started with
// CUDA_INJECTION64_PATH=libtimeline.so and writes, at its end, a line for each kernel and copy into
// $TIMELINE.PID: stream, begin and end in nanoseconds, name. CUPTI records them.
// scripts/plot_timeline.sh draws the lines.
#include <cupti.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BUFFER_BYTES = 8 << 20, BUFFER_ALIGNMENT = 64 };

static FILE *out; // CUPTI's callbacks take no argument of ours

static void CUPTIAPI provide(uint8_t **buffer, size_t *bytes, size_t *max_records) {
    *buffer = aligned_alloc(BUFFER_ALIGNMENT, BUFFER_BYTES);
    *bytes = *buffer ? BUFFER_BYTES : 0;
    *max_records = 0; // as many as fit
}

static void write_record(const CUpti_Activity *record) {
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
        const CUpti_ActivityKernel10 *k = (const void *)record;
        fprintf(out, "%u %llu %llu %s\n", k->streamId, (unsigned long long)k->start,
                (unsigned long long)k->end, k->name);
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
        const CUpti_ActivityMemcpy6 *m = (const void *)record;
        fprintf(out, "%u %llu %llu copy\n", m->streamId, (unsigned long long)m->start,
                (unsigned long long)m->end);
    }
}

static void CUPTIAPI take(CUcontext context, uint32_t stream, uint8_t *buffer, size_t bytes,
                          size_t valid) {
    CUpti_Activity *record = NULL;
    (void)context, (void)stream, (void)bytes;
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS)
        write_record(record);
    free(buffer);
}

static void finish(void) {
    cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    fclose(out);
}

// CUDA calls this before the program's first use of the GPU.
int InitializeInjection(void);
int InitializeInjection(void) {
    const char *prefix = getenv("TIMELINE");
    char path[4096];
    snprintf(path, sizeof path, "%s.%d", prefix ? prefix : "timeline", (int)getpid());
    out = fopen(path, "w");
    if (!out) {
        fprintf(stderr, "timeline: cannot write %s\n", path);
        return 1; // the program runs on without
    }
    cuptiActivityRegisterCallbacks(provide, take);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY);
    atexit(finish);
    return 1;
}
