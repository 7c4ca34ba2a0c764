// Saving a context. Its rows go to the kernel at once, page by page on all ranks in step; that they
// are on the disk a thread of each rank waits for, while the session reads on. The state takes its
// place when every rank's thread is done. Only the main thread calls MPI.
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "model/context_internal.h"
#include "model/durable.h"

struct context_saving {
    struct context_access access;
    struct context context;
    const float *logprob; // NULL or, as far as the manifest says, not to be changed
    pthread_t thread;
    bool running;       // it is to be joined
    enum status status; // of the thread, when joined, with its message
    char message[1024];
};

static enum status begin_generation(struct context_access *a) {
    struct context_manifest *m = &a->manifest;
    TRY(context_folder_open(a->context->dir, a->folder, true, &a->lock));
    return context_generation_make(a->folder, m->n_page * m->page_bytes, &m->generation);
}

static enum status save_last_state(struct context_access *a) {
    struct session *s = a->session;
    const struct forward *f = &s->forward;
    int64_t n = f->spec->n_hidden, bytes = dtype_bytes(f->activation, n);
    enum status status = OK;
    if (s->last_position != s->sequence.length - 1) return OK;
    a->manifest.last_state = malloc((size_t)context_last_bytes(s));
    void *state = malloc((size_t)bytes);
    if (!a->manifest.last_state || !state) FAIL_OR(done, ERR_MEMORY, "no memory for a state");
    TRY_OR(done, f->backend->ops->download(f->backend, state, f->buffers.last_hidden, bytes));
    TRY_OR(done, f->backend->ops->sync(f->backend));
    dtype_to_float(f->activation, state, n, a->manifest.last_state);
done:
    free(state);
    return status;
}

// Another job may have saved the same context since.
static bool manifest_is(const char *path, const char *text) {
    void *found = NULL;
    int64_t bytes = (int64_t)strlen(text), n;
    bool same = context_file_read(path, bytes, &found, &n) == OK && found && n == bytes &&
                memcmp(found, text, (size_t)n) == 0;
    free(found);
    return same;
}

// Whole, or not at all.
static enum status put_file(const char *part, const char *path, const void *data, size_t bytes) {
    TRY(context_file_write(part, data, bytes));
    if (rename(part, path) != 0) FAIL(ERR_IO, "cannot write %s: %s", path, strerror(errno));
    return OK;
}

// Those of a folder never differ, so that this may be at any time.
static enum status write_tokens(const struct context_access *a) {
    const struct context *c = a->context;
    char *path = context_path(c->dir, a->source.key, CONTEXT_TOKENS);
    if (!path) FAIL(ERR_MEMORY, "no memory for a path");
    enum status status =
        put_file(a->path[CONTEXT_IDS], path, c->token, (size_t)c->n * sizeof *c->token);
    free(path);
    return status;
}

// All that the manifest names is on the disk then.
static enum status write_through(const struct context_saving *s) {
    const struct context_access *a = &s->access;
    TRY(durable_sync(a->file, a->path[CONTEXT_PAGES]));
    if (!context_access_root(a)) return OK;
    TRY(write_tokens(a));
    if (!s->logprob) return OK;
    return context_file_write(a->path[CONTEXT_LOGPROBS], s->logprob,
                              (size_t)a->manifest.done * sizeof *s->logprob);
}

static void *run_thread(void *user) {
    struct context_saving *s = user;
    s->status = write_through(s);
    if (s->status != OK) snprintf(s->message, sizeof s->message, "%s", status_message());
    return NULL;
}

// All files are on the disk: the new state takes the old one's place.
static enum status commit(struct context_access *a) {
    struct context_manifest *m = &a->manifest;
    enum status status = OK;
    char *text = context_manifest_print(m, a->session, &a->source);
    if (!text) FAIL(ERR_MEMORY, "no memory for %s", a->manifest_path);
    TRY_OR(done, put_file(a->path[CONTEXT_PART], a->manifest_path, text, strlen(text)));
    a->committed = true;
    TRY_OR(done, durable_sync(a->lock, a->folder));
    if (context_folder_alone(a->lock) && manifest_is(a->manifest_path, text))
        context_generation_keep(a->folder, m->generation);
done:
    free(text);
    return status;
}

static enum status begin(struct context_saving *saving) {
    struct context_access *a = &saving->access;
    struct session *s = a->session;
    struct context_manifest *m = &a->manifest;
    if (s->sequence.length < 1 || s->sequence.length > a->context->n)
        FAIL(ERR_INTERNAL, "the session holds %lld tokens of a context of %lld",
             (long long)s->sequence.length, (long long)a->context->n);
    struct context_source source;
    context_source_of(a->context, &source);
    TRY(context_access_name(a, &source));
    TRY(context_manifest_open(s, source.n_token, s->sequence.length, m));
    for (int i = 0; i < s->forward.kv.n_layer; i++)
        m->begin[i] = kv_store_held_from(&s->forward.kv, i);
    TRY(comm_agree(a->comm, context_access_root(a) ? begin_generation(a) : OK));
    TRY(a->comm->ops->broadcast(a->comm, &m->generation, sizeof m->generation, 0));
    TRY(context_access_files(a));
    TRY(comm_agree(a->comm, context_access_pages(a, true)));
    TRY(context_pages_write(s, a->file, a->path[CONTEXT_PAGES], m));
    TRY(save_last_state(a));
    m->scored = saving->logprob != NULL;
    if (m->scored)
        digest_bytes(saving->logprob, (size_t)m->done * sizeof(float), m->logprobs_digest);
    saving->running = pthread_create(&saving->thread, NULL, run_thread, saving) == 0;
    if (!saving->running) run_thread(saving);
    return OK;
}

void context_save_drop(struct context_saving **saving) {
    struct context_saving *s = *saving;
    if (!s) return;
    struct context_access *a = &s->access;
    if (s->running) pthread_join(s->thread, NULL);
    for (int kind = 0; kind < N_CONTEXT_FILE; kind++)
        if (context_access_root(a) && !a->committed && a->path[kind]) unlink(a->path[kind]);
    context_access_close(a);
    free(s);
    *saving = NULL;
}

enum status context_save_begin(struct session *session, const struct context *context,
                               const float *logprob, struct context_saving **out) {
    struct context_saving *s = malloc(sizeof *s);
    *out = s;
    if (!s) FAIL(ERR_MEMORY, "no memory to save a context");
    *s = (struct context_saving){.context = *context, .logprob = logprob};
    struct context_access access;
    enum status status = context_access_open(session, &s->context, &access);
    s->access = access;
    if (status == OK) status = begin(s);
    if (status != OK) context_save_drop(out);
    return status;
}

// Whether all ranks' threads are. By asking again and again: a rank that waited for another's disk
// in one exchange might take that for a lost rank.
static enum status find_finished(struct context_saving *s, bool wait, int64_t *finished) {
    const struct timespec nap = {.tv_nsec = 5000000};
    struct comm *comm = s->access.comm;
    for (;;) {
        if (s->running) s->running = pthread_tryjoin_np(s->thread, NULL) != 0;
        *finished = !s->running;
        TRY(comm->ops->all_reduce(comm, finished, 1, REDUCE_MIN_I64));
        if (*finished || !wait) return OK;
        nanosleep(&nap, NULL);
    }
}

static enum status tell(const struct context_saving *s) {
    if (s->status != OK) FAIL(s->status, "%s", s->message);
    return OK;
}

enum status context_save_end(struct context_saving **saving, bool wait) {
    struct context_saving *s = *saving;
    struct context_access *a = &s->access;
    int64_t finished = 0;
    enum status status = find_finished(s, wait, &finished);
    if (status == OK && !finished) return OK;
    if (status == OK) status = comm_agree(a->comm, tell(s));
    if (status == OK) status = comm_agree(a->comm, context_access_root(a) ? commit(a) : OK);
    context_save_drop(saving);
    return status;
}

enum status context_save(struct session *session, const struct context *context,
                         const float *logprob) {
    struct context_saving *saving;
    TRY(context_save_begin(session, context, logprob, &saving));
    return context_save_end(&saving, true);
}
