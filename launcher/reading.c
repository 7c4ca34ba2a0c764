#include "launcher/reading.h"

#include "launcher/results.h"
#include "launcher/stop.h"
#include "model/context_store.h"
#include "model/durable.h"

enum status reading_open(struct job *job) {
    struct comm *host = comm_host(&job->comm);
    if (!job->options->store) return OK;
    enum status status = OK; // files among the options are read once
    if (host->rank == 0)
        status = options_digest(job->options, CHANGES_CONTEXT, job->context_options);
    if (status == OK && host->rank == 0) // rather than when the document has been read
        status = durable_folder(job->options->store, "store", "store.dir");
    TRY(comm_agree(host, status));
    return host->ops->broadcast(host, job->context_options, sizeof job->context_options, 0);
}

// Of the model, of the options by which the same tokens become other keys and values, and of the
// length where rotations depend on it.
static enum status identify(const struct job *job, int64_t length, char out[DIGEST_BYTES]) {
    XXH3_state_t *hash = XXH3_createState();
    if (!hash) FAIL(ERR_MEMORY, "no memory for a digest");
    XXH3_128bits_reset(hash);
    digest_add_text(hash, job->checkpoint.digest);
    digest_add_text(hash, job->context_options);
    if (model_spec_reads_length(&job->checkpoint.spec))
        XXH3_128bits_update(hash, &length, sizeof length);
    digest_print(XXH3_128bits_digest(hash), out);
    XXH3_freeState(hash);
    return OK;
}

// n_scored: entries of logprob that are known.
static enum status append(struct job *job, const struct reading *reading, int64_t n_scored,
                          struct span part) {
    float *logprob = reading->logprob ? reading->logprob + part.start : NULL;
    bool known = logprob && part.start < n_scored;
    float first = known ? *logprob : 0;
    reading->progress->base = reading->base + part.start;
    TRY(session_append(job->session,
                       &(struct append_args){
                           .token = reading->token + part.start,
                           .n = part.length,
                           .logprob = logprob,
                           .logits = reading->logits && part.start + part.length == reading->n,
                           .progress = progress_update,
                           .user = reading->progress,
                       }));
    if (known) *logprob = first;
    return OK;
}

// In these every rank finds the same fault, and one of them tells of it.
static enum status agreed(struct job *job, enum status status) {
    if (status == ERR_INPUT || status == ERR_CREATE) job->working = false;
    return status;
}

// What is kept of a document while it is read.
struct keeping {
    const struct context *context; // NULL: nothing
    struct context_saving *saving; // one at a time; NULL: none
    double last;                   // when one was begun
};

static enum status save_begin(struct job *job, const struct reading *reading,
                              struct keeping *keeping) {
    double begun = profile_begin(&job->profile, PHASE_IO);
    beacon_saving(job->profile.beacon, true);
    TRY(agreed(job, context_save_begin(job->session, keeping->context, reading->logprob,
                                       &keeping->saving)));
    beacon_saving(job->profile.beacon, false);
    profile_end(&job->profile, PHASE_IO, begun);
    return OK;
}

static enum status save_end(struct job *job, struct keeping *keeping, bool wait) {
    if (!keeping->saving) return OK;
    double begun = profile_begin(&job->profile, PHASE_IO);
    beacon_saving(job->profile.beacon, true);
    TRY(agreed(job, context_save_end(&keeping->saving, wait)));
    beacon_saving(job->profile.beacon, false);
    profile_end(&job->profile, PHASE_IO, begun);
    return OK;
}

// Rank 0 says whether store.every seconds have passed since *last.
static enum status is_due(struct job *job, double *last, bool *due) {
    struct comm *host = comm_host(&job->comm);
    double every = job->options->store_every;
    *due = every > 0 && cluster_seconds() - *last > every;
    TRY(host->ops->broadcast(host, due, sizeof *due, 0));
    if (*due) *last = cluster_seconds();
    return OK;
}

// Behind a chunk. now: the session's state is to be on the disk, otherwise it goes there beside the
// chunks that follow, every store.every seconds unless the one before is still on its way.
static enum status keep(struct job *job, const struct reading *reading, struct keeping *keeping,
                        bool now) {
    bool due = now;
    if (!keeping->context) return OK;
    TRY(save_end(job, keeping, now));
    if (!now && !keeping->saving) TRY(is_due(job, &keeping->last, &due));
    if (!due) return OK;
    TRY(save_begin(job, reading, keeping));
    return now ? save_end(job, keeping, true) : OK;
}

// What is behind the restored tokens, chunk by chunk, so that a job that ends early has not read in
// vain. context NULL: nothing is kept.
static enum status read_rest(struct job *job, const struct reading *reading,
                             const struct context_restored *restored,
                             const struct context *context) {
    int64_t begin = restored->n;
    int64_t chunk = reading->chunk > 0 ? reading->chunk : reading->n;
    struct keeping keeping = {.context = context, .last = cluster_seconds()};
    enum status status = OK;
    for (int64_t end; begin < reading->n; begin = end) {
        bool stops = false;
        end = begin + chunk < reading->n ? begin + chunk : reading->n;
        TRY_OR(done, append(job, reading, restored->n_scored, (struct span){begin, end - begin}));
        if (end < reading->n) TRY_OR(done, stop_wanted(job, &stops));
        TRY_OR(done, keep(job, reading, &keeping, stops || end == reading->n));
        if (stops) TRY_OR(done, stop_here(job));
    }
done:
    context_save_drop(&keeping.saving);
    return status;
}

static void tell(const struct job *job, const struct reading *reading,
                 const struct context_restored *restored) {
    const char *like = restored->like;
    if (restored->n == 0 || job->comm.rank != 0) return;
    fprintf(stderr, "%lld of %lld tokens restored from %s%s%s%s\n", (long long)restored->n,
            (long long)reading->n, job->options->store, like[0] ? " (they begin like " : "", like,
            like[0] ? ")" : "");
}

enum status reading_run(struct job *job, const struct reading *reading, int64_t *n_restored) {
    struct context_restored restored = {0};
    *n_restored = 0;
    TRY(session_truncate(job->session, reading->held));
    TRY(session_set_length(job->session, reading->length));
    restored.n = reading->held;
    if (!job->options->store || !reading->kept) return read_rest(job, reading, &restored, NULL);
    char identity[DIGEST_BYTES];
    TRY(identify(job, reading->length, identity));
    const struct context context = {.dir = job->options->store,
                                    .identity = identity,
                                    .token = reading->token,
                                    .n = reading->n,
                                    .name = reading->name};
    double begun = profile_begin(&job->profile, PHASE_IO);
    if (reading->held == 0)
        TRY(agreed(job, context_restore(job->session, &context, reading->logprob, &restored)));
    profile_end(&job->profile, PHASE_IO, begun + restored.probe_s);
    *n_restored = restored.n - reading->held;
    job->tokens_restored += *n_restored;
    job->tokens_probed += restored.n_probed;
    if (reading->held == 0) tell(job, reading, &restored);
    if (restored.n == reading->n) return reading->logits ? session_recall_logits(job->session) : OK;
    struct comm *host = comm_host(&job->comm);
    TRY(comm_agree(host, host->rank == 0 ? context_save_check(&context) : OK));
    return read_rest(job, reading, &restored, &context);
}
