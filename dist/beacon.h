// What a rank says of itself while it works, in a file that is there after kill -9
// (launcher/beacon_files.h, whose thread copies it). Updates are plain stores. What changes by
// itself is one word; what belongs together (struct beacon_work) is written beside what holds, and
// `current` turns to it: no copy has half of it. All functions accept NULL: nobody listens.
#ifndef HALKA_DIST_BEACON_H
#define HALKA_DIST_BEACON_H

#include <stdbool.h>
#include <stdint.h>

enum activity {
    ACTIVITY_LOADING,
    ACTIVITY_READING,
    ACTIVITY_ANSWERING,
    ACTIVITY_REPORTING,
    ACTIVITY_WAITING, // for requests
    N_ACTIVITY
};
extern const char *const activity_name[N_ACTIVITY]; // "loading", ...

enum beacon_end { BEACON_RUNNING, BEACON_ENDED, BEACON_STOPPED, BEACON_FAILED, N_BEACON_END };

struct beacon_work {
    int32_t activity;             // enum activity
    int32_t question, n_question; // from 1; 0: none
    int32_t unused;               // no bytes between the fields
    int64_t n_token;              // of the document, or the most that an answer takes; 0: not told
    volatile int64_t done;
    char document[256]; // name, cut to fit, on rank 0; "": none
};

#define BEACON_MAGIC "HALKARNK"
// Besides those of enum phase: between two, and while the host waits for its device.
enum { BEACON_VERSION = 1, NO_PHASE = -1, DEVICE_PHASE = -2 };

// The file's contents, in the byte order and layout of the machine that wrote it.
struct beacon {
    char magic[8]; // without terminator
    int32_t version, bytes;
    int32_t rank, ranks;
    int64_t pid;
    int64_t job;  // the same on all ranks of one job; larger of a later job
    double wall;  // seconds since 1970 when cluster_seconds was `begun`
    double begun; // of this beacon
    char host[256];
    // From here on what changes.
    volatile double updated; // cluster_seconds
    volatile int32_t phase;  // enum phase, or as above
    volatile int32_t layer;  // from 1; 0: outside the layers
    volatile int32_t n_layer;
    volatile int32_t step, n_step; // of the ring, from 1; 0: in none
    volatile int32_t saving;       // whether a context is being saved
    volatile int32_t end, code;    // enum beacon_end; exit code
    volatile uint32_t current;     // work[current % 2] holds; counts the turns
    struct beacon_work work[2];
};

struct beacon_task {
    enum activity activity;
    const char *document; // NULL: none
    int64_t n_token;      // as in struct beacon_work
    int question, n_question;
};
// What the rank does from here on; nothing of it is done yet. All ranks turn to the same tasks in
// the same order.
void beacon_begin(struct beacon *beacon, const struct beacon_task *task);
void beacon_end(struct beacon *beacon, enum beacon_end end, int code);

static inline void beacon_phase(struct beacon *beacon, int phase, double now) {
    if (!beacon) return;
    beacon->phase = phase;
    if (now > 0) beacon->updated = now;
}

static inline void beacon_layer(struct beacon *beacon, int layer, int n_layer) {
    if (!beacon) return;
    beacon->n_layer = n_layer; // first: no copy has a layer of fewer
    beacon->layer = layer;
    beacon->step = 0;
}

static inline void beacon_step(struct beacon *beacon, int step, int n_step) {
    if (!beacon) return;
    beacon->n_step = n_step;
    beacon->step = step;
}

static inline void beacon_saving(struct beacon *beacon, bool saving) {
    if (beacon) beacon->saving = saving;
}

// Tokens of the work that are done.
void beacon_done(struct beacon *beacon, int64_t n_token);

#endif
