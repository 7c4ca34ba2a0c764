#include "launcher/reading.h"

#include "launcher/results.h"
#include "launcher/stop.h"
#include "model/context_store.h"

enum status reading_open(struct job *job) {
    struct comm *host = comm_host(&job->comm);
    if (!job->options->store) return OK;
    enum status status = OK; // files among the options are read once
    if (host->rank == 0)
        status = options_digest(job->options, CHANGES_CONTEXT, job->context_options);
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

static enum status save(struct job *job, const struct reading *reading,
                        const struct context *context) {
    double begun = profile_begin(&job->profile, PHASE_IO);
    beacon_saving(job->profile.beacon, true);
    TRY(agreed(job, context_save(job->session, context, reading->logprob)));
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

// What is behind the restored tokens, chunk by chunk, so that a job that ends early has not read in
// vain. context NULL: nothing is kept.
static enum status read_rest(struct job *job, const struct reading *reading,
                             const struct context_restored *restored,
                             const struct context *context) {
    int64_t begin = restored->n;
    int64_t chunk = job->options->chunk > 0 ? job->options->chunk : reading->n;
    double last = cluster_seconds();
    for (int64_t end; begin < reading->n; begin = end) {
        bool due = true, stops = false; // at the end
        end = begin + chunk < reading->n ? begin + chunk : reading->n;
        TRY(append(job, reading, restored->n_scored, (struct span){begin, end - begin}));
        if (end < reading->n) {
            TRY(stop_wanted(job, &stops));
            if (context) TRY(is_due(job, &last, &due));
        }
        if (context && (due || stops)) TRY(save(job, reading, context));
        if (stops) return stop_here(job);
    }
    return OK;
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
    TRY(session_truncate(job->session, 0));
    TRY(session_set_length(job->session, reading->length));
    if (!job->options->store || !reading->kept) return read_rest(job, reading, &restored, NULL);
    char identity[DIGEST_BYTES];
    TRY(identify(job, reading->length, identity));
    const struct context context = {.dir = job->options->store,
                                    .identity = identity,
                                    .token = reading->token,
                                    .n = reading->n,
                                    .name = reading->name};
    double begun = profile_begin(&job->profile, PHASE_IO);
    TRY(agreed(job, context_restore(job->session, &context, reading->logprob, &restored)));
    profile_end(&job->profile, PHASE_IO, begun);
    *n_restored = restored.n;
    job->tokens_restored += restored.n;
    tell(job, reading, &restored);
    if (restored.n == reading->n) return reading->logits ? session_recall_logits(job->session) : OK;
    return read_rest(job, reading, &restored, &context);
}
