// Saving a context: a segment of what has been read since the session's last save, or restore, if
// the manifest is still that one's; otherwise of all. Its rows go to the kernel at once, page by
// page on all ranks in step; that they are on the disk a thread of each rank waits for, while the
// session reads on. The state takes its place when every rank's thread is done. Only the main
// thread calls MPI.
#include <errno.h>
#include <fcntl.h>
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

static struct context_segment *last_segment(const struct context_access *a) {
    return &a->manifest.segment[a->manifest.n_segment - 1];
}

// What is there. *text, owned by the caller, NULL: nothing that can be gone on with.
static enum status read_manifest(struct context_access *a, void **text) {
    int64_t bytes;
    int64_t most = context_manifest_most(a->session, a->source.n_token);
    TRY(context_file_read(a->manifest_path, most, text, &bytes));
    if (!*text) return OK;
    return context_manifest_parse(&(struct context_text){*text, bytes, a->manifest_path},
                                  a->session, &a->source, &a->manifest);
}

// What killed jobs left goes before room is taken for more; the lock is shared again.
static void clear(struct context_access *a) {
    void *text = NULL;
    if (read_manifest(a, &text) == OK) context_access_clean(a, text, true);
    free(text);
    context_manifest_close(&a->manifest);
    context_folder_share(a->lock);
}

// The manifest of the segments that the new one goes behind, or of none.
static enum status take_base(struct context_access *a, bool scored) {
    const struct session *s = a->session;
    const struct context_manifest *m = &a->manifest;
    char digest[DIGEST_BYTES] = "";
    void *text = NULL;
    enum status status = read_manifest(a, &text);
    if (text) digest_bytes(text, strlen(text), digest);
    bool same = status == OK && text && s->stored.n == m->done &&
                strcmp(digest, s->stored.manifest) == 0 && m->done < s->sequence.length &&
                (m->scored || !scored) && m->n_segment < CONTEXT_MOST_SEGMENTS;
    free(text);
    free(a->manifest.last_state); // is another one now
    a->manifest.last_state = NULL;
    if (same) return OK;
    context_manifest_close(&a->manifest);
    context_manifest_open(s, a->source.n_token, &a->manifest);
    return OK;
}

static enum status begin_segment(struct context_access *a, bool scored) {
    TRY(context_folder_open(a->context->dir, a->folder, true, &a->lock));
    clear(a);
    TRY(take_base(a, scored));
    TRY(context_manifest_add(&a->manifest, a->session, a->session->sequence.length));
    struct context_segment *added = last_segment(a);
    return context_generation_make(a->folder, added->n_page * a->manifest.page_bytes,
                                   &added->generation);
}

// On every rank; those before it rank 0 alone knows.
static enum status share_segment(struct context_access *a, bool scored) {
    struct context_manifest *m = &a->manifest;
    bool root = context_access_root(a);
    TRY(comm_agree(a->comm, root ? begin_segment(a, scored) : OK));
    int64_t place[2] = {0};
    if (root) memcpy(place, (int64_t[]){last_segment(a)->generation, last_segment(a)->from}, 16);
    TRY(a->comm->ops->broadcast(a->comm, place, sizeof place, 0));
    if (!root) {
        context_manifest_open(a->session, a->source.n_token, m);
        m->done = place[1];
        TRY(context_manifest_add(m, a->session, a->session->sequence.length));
        last_segment(a)->generation = place[0];
    }
    for (int i = 0; i < a->session->forward.kv.n_layer; i++)
        last_segment(a)->begin[i] = kv_store_held_from(&a->session->forward.kv, i);
    return context_access_files(a, place[0]);
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

// Those of a folder never differ, so that this may be at any time.
static enum status write_tokens(const struct context_access *a) {
    const struct context *c = a->context;
    char *path = context_path(c->dir, a->source.key, CONTEXT_TOKENS);
    if (!path) FAIL(ERR_MEMORY, "no memory for a path");
    enum status status =
        durable_put(a->path[CONTEXT_IDS], path, c->token, (size_t)c->n * sizeof *c->token);
    free(path);
    return status;
}

// All that the manifest names is on the disk then.
static enum status write_through(const struct context_saving *s) {
    const struct context_access *a = &s->access;
    TRY(durable_sync(a->file, a->path[CONTEXT_PAGES]));
    if (!context_access_root(a)) return OK;
    const struct context_segment *added = last_segment(a);
    if (added->from == 0) TRY(write_tokens(a));
    if (!s->logprob) return OK;
    return durable_write(a->path[CONTEXT_LOGPROBS], s->logprob + added->from,
                         (size_t)(added->done - added->from) * sizeof *s->logprob);
}

static void *run_thread(void *user) {
    struct context_saving *s = user;
    s->status = write_through(s);
    if (s->status != OK) snprintf(s->message, sizeof s->message, "%s", status_message());
    return NULL;
}

// All files are on the disk: the new state takes the old one's place.
static enum status commit(struct context_access *a) {
    enum status status = OK;
    char *text = context_manifest_print(&a->manifest, a->session, &a->source);
    if (!text) FAIL(ERR_MEMORY, "no memory for %s", a->manifest_path);
    TRY_OR(done, context_folder_sync(a->folder)); // the files' names
    TRY_OR(done, durable_put(a->path[CONTEXT_PART], a->manifest_path, text, strlen(text)));
    a->committed = true;
    TRY_OR(done, context_folder_sync(a->folder));
    context_stored_set(a->session, text, a->manifest.done);
    context_access_clean(a, text, false);
done:
    free(text);
    return status;
}

static enum status begin(struct context_saving *saving) {
    struct context_access *a = &saving->access;
    struct session *s = a->session;
    if (s->sequence.length < 1 || s->sequence.length > a->context->n)
        FAIL(ERR_INTERNAL, "the session holds %lld tokens of a context of %lld",
             (long long)s->sequence.length, (long long)a->context->n);
    struct context_source source;
    context_source_of(a->context, &source);
    TRY(context_access_name(a, &source));
    TRY(share_segment(a, saving->logprob != NULL));
    struct context_segment *added = last_segment(a);
    TRY(comm_agree(a->comm, context_access_pages(a, added, true)));
    TRY(context_pages_write(s, (struct context_file_of){a->file, a->path[CONTEXT_PAGES]}, added));
    TRY(save_last_state(a));
    added->scored = saving->logprob != NULL;
    if (added->scored)
        digest_bytes(saving->logprob + added->from,
                     (size_t)(added->done - added->from) * sizeof(float), added->logprobs_digest);
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

static enum status check_folder(const char *path, bool there) {
    if (faccessat(AT_FDCWD, path, W_OK | X_OK, AT_EACCESS) == 0 || (errno == ENOENT && !there))
        return OK;
    FAIL(ERR_CREATE, "cannot keep contexts in %s: %s: choose another store.dir", path,
         strerror(errno));
}

enum status context_save_check(const struct context *context) {
    char key[DIGEST_BYTES];
    TRY(check_folder(context->dir, true));
    context_key(context, key);
    char *folder = context_path(context->dir, key, NULL);
    if (!folder) FAIL(ERR_MEMORY, "no memory for a path");
    enum status status = check_folder(folder, false);
    free(folder);
    return status;
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
