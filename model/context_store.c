#include "dist/cluster.h"
#include "model/context_internal.h"
#include "model/durable.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum status context_access_open(struct session *s, const struct context *context,
                                struct context_access *out) {
    *out = (struct context_access){.session = s,
                                   .context = context,
                                   .comm = comm_host(s->forward.comm),
                                   .lock = -1,
                                   .file = -1};
    if (s->sizes.encode_only) FAIL(ERR_INTERNAL, "a session that encodes keeps nothing to save");
    return OK;
}

void context_stored_set(struct session *s, const char *manifest, int64_t n) {
    digest_bytes(manifest, strlen(manifest), s->stored.manifest);
    s->stored.n = n;
}

enum status context_access_name(struct context_access *a, const struct context_source *source) {
    a->source = *source;
    a->folder = context_path(a->context->dir, source->key, NULL);
    a->manifest_path = context_path(a->context->dir, source->key, CONTEXT_MANIFEST);
    if (!a->folder || !a->manifest_path) FAIL(ERR_MEMORY, "no memory for a path");
    return OK;
}

enum status context_access_files(struct context_access *a, int64_t generation) {
    for (int kind = 0; kind < N_CONTEXT_FILE; kind++) {
        char name[CONTEXT_NAME_BYTES];
        context_name(kind, generation, name);
        free(a->path[kind]);
        a->path[kind] = context_path(a->context->dir, a->source.key, name);
        if (!a->path[kind]) FAIL(ERR_MEMORY, "no memory for a path");
    }
    return OK;
}

static void close_pages(struct context_access *a) {
    if (a->file >= 0) close(a->file);
    a->file = -1;
}

void context_access_close(struct context_access *a) {
    close_pages(a);
    if (a->lock >= 0) close(a->lock);
    context_manifest_close(&a->manifest);
    free(a->logprob);
    for (int kind = 0; kind < N_CONTEXT_FILE; kind++) free(a->path[kind]);
    free(a->manifest_path);
    free(a->folder);
}

// Every rank may be the first to see the file, where folders are cached.
enum status context_access_pages(struct context_access *a, const struct context_segment *segment,
                                 bool write) {
    int flags = write ? O_WRONLY | O_CREAT : O_RDONLY | O_NONBLOCK;
    struct stat info;
    int64_t bytes = segment->n_page * a->manifest.page_bytes;
    close_pages(a);
    a->file = open(a->path[CONTEXT_PAGES], flags | O_CLOEXEC, 0666);
    if (a->file < 0 && !write && errno == ENOENT)
        FAIL(ERR_INPUT, "%s is missing", a->path[CONTEXT_PAGES]);
    if (a->file < 0 || fstat(a->file, &info) != 0)
        FAIL(ERR_IO, "cannot open %s: %s", a->path[CONTEXT_PAGES], strerror(errno));
    if (!write && (!S_ISREG(info.st_mode) || info.st_size != bytes))
        FAIL(ERR_INPUT, "%s is of %lld bytes, not %lld", a->path[CONTEXT_PAGES],
             (long long)info.st_size, (long long)bytes);
    return OK;
}

// Another job may have saved the same context since.
static bool manifest_is(const char *path, const char *text) {
    void *found = NULL;
    int64_t bytes = text ? (int64_t)strlen(text) : 0, n;
    bool read = context_file_read(path, bytes, &found, &n) == OK;
    bool same =
        text ? read && found && n == bytes && memcmp(found, text, (size_t)n) == 0 : read && !found;
    free(found);
    return same;
}

void context_access_clean(struct context_access *a, const char *text, bool certain) {
    const struct context_manifest *m = &a->manifest;
    bool alone = flock(a->lock, LOCK_EX | LOCK_NB) == 0 || (!certain && errno != EWOULDBLOCK);
    int64_t *named = malloc((size_t)(m->n_segment + 1) * sizeof *named);
    for (int i = 0; named && i < m->n_segment; i++) named[i] = m->segment[i].generation;
    if (alone && named && manifest_is(a->manifest_path, text))
        context_generations_keep(a->folder, named, m->n_segment);
    free(named);
}

// On every rank, as rank 0 found it.
static enum status share_found(struct context_access *a, bool scored, struct context_found *found) {
    struct comm *comm = a->comm;
    TRY(comm_agree(
        comm, context_access_root(a) ? context_search(a->session, a->context, scored, found) : OK));
    TRY(comm->ops->broadcast(comm, &found->n, sizeof found->n, 0));
    if (found->n == 0) return OK;
    TRY(comm->ops->broadcast(comm, &found->text.bytes, sizeof found->text.bytes, 0));
    TRY(comm->ops->broadcast(comm, &found->source, sizeof found->source, 0));
    found->source.identity = a->context->identity; // an address of this rank
    TRY(context_access_name(a, &found->source));
    if (!context_access_root(a)) found->text.text = malloc((size_t)found->text.bytes + 1);
    if (!found->text.text) FAIL(ERR_MEMORY, "no memory for %s", a->manifest_path);
    TRY(comm->ops->broadcast(comm, found->text.text, found->text.bytes + 1, 0));
    const struct context_text text = {found->text.text, found->text.bytes, a->manifest_path};
    return context_manifest_parse(&text, a->session, &a->source, &a->manifest);
}

// Those of a segment.
static enum status read_logprobs(struct context_access *a, const struct context_segment *segment) {
    const char *path = a->path[CONTEXT_LOGPROBS];
    int64_t expected = (segment->done - segment->from) * (int64_t)sizeof *a->logprob, bytes;
    char digest[DIGEST_BYTES] = "";
    void *data;
    TRY(context_file_read(path, expected, &data, &bytes));
    bool whole = data && bytes == expected;
    if (whole) {
        digest_bytes(data, (size_t)bytes, digest);
        memcpy(a->logprob + segment->from, data, (size_t)bytes);
    }
    free(data);
    if (!whole) FAIL(ERR_INPUT, "%s is missing or cut off", path);
    if (strcmp(digest, segment->logprobs_digest) != 0) FAIL(ERR_INPUT, "%s is damaged", path);
    return OK;
}

static enum status read_all_logprobs(struct context_access *a, int64_t n) {
    for (int i = 0; i < a->manifest.n_segment && a->manifest.segment[i].from < n; i++) {
        TRY(context_access_files(a, a->manifest.segment[i].generation));
        TRY(read_logprobs(a, &a->manifest.segment[i]));
    }
    return OK;
}

static enum status share_logprobs(struct context_access *a, int64_t n) {
    a->logprob = malloc((size_t)(a->manifest.done + 1) * sizeof *a->logprob);
    if (!a->logprob) FAIL(ERR_MEMORY, "no memory for log-probabilities");
    TRY(comm_agree(a->comm, context_access_root(a) ? read_all_logprobs(a, n) : OK));
    return a->comm->ops->broadcast(a->comm, a->logprob, n * (int64_t)sizeof *a->logprob, 0);
}

// Segment by segment, the first `n` tokens.
static enum status read_pages(struct context_access *a, int64_t n) {
    for (int i = 0; i < a->manifest.n_segment && a->manifest.segment[i].from < n; i++) {
        const struct context_segment *segment = &a->manifest.segment[i];
        TRY(context_access_files(a, segment->generation));
        TRY(comm_agree(a->comm, context_access_pages(a, segment, false)));
        TRY(context_pages_read(a->session,
                               (struct context_file_of){a->file, a->path[CONTEXT_PAGES]}, segment));
    }
    return OK;
}

// Each rank owns what it would if this job had read them: a job that goes on gives the same bits.
static enum status place_tokens(struct session *s, const struct context_manifest *m, int64_t n) {
    if (n > s->sizes.forward.n_all)
        FAIL(ERR_CONFIG, "%lld saved tokens do not fit the session, which has room for %lld",
             (long long)n, (long long)s->sizes.forward.n_all);
    TRY(session_place_chunks(s, n));
    int64_t n_row = sequence_count(&s->sequence, s->forward.comm->rank, 0, n);
    if (n_row > s->sizes.forward.n_row)
        FAIL(ERR_MEMORY, "the K/V shard has room for %lld tokens, not %lld",
             (long long)s->sizes.forward.n_row, (long long)n_row);
    for (int i = 0; i < s->forward.kv.n_layer; i++)
        kv_store_adopt(&s->forward.kv, i, context_manifest_held(m, i, n), n);
    return OK;
}

static enum status take_state(struct session *s, const struct context_manifest *m) {
    struct forward *f = &s->forward;
    int64_t n = f->spec->n_hidden, bytes = dtype_bytes(f->activation, n);
    bool known = m->last_state && s->sequence.length == m->done;
    f->step.kept = false;
    s->last_position = known ? m->done - 1 : -1;
    if (!known) return OK;
    void *state = malloc((size_t)bytes);
    if (!state) FAIL(ERR_MEMORY, "no memory for a state");
    dtype_from_float(f->activation, m->last_state, n, state);
    enum status status = f->backend->ops->upload(f->backend, f->buffers.last_hidden, state, bytes);
    free(state);
    return status == OK ? f->backend->ops->sync(f->backend) : status;
}

// Once the pages are known to be whole.
static enum status check_probe(double disparity) {
    if (disparity <= CONTEXT_PROBE_MOST) return OK;
    FAIL(ERR_INPUT,
         "its keys and values are not those of this model: of the first tokens they differ by "
         "%.0f%%, "
         "more than rounding does",
         100 * disparity);
}

static enum status restore(struct context_access *a, const struct context_found *found,
                           float *logprob, struct context_restored *out) {
    struct session *s = a->session;
    const struct context_manifest *m = &a->manifest;
    struct context_source own;
    int64_t n = found->n, n_scored = n < m->done ? n + 1 : n;
    int64_t n_probed = context_probe_length(a, n);
    double disparity = 0, begun, probe_s;
    if (logprob) TRY(share_logprobs(a, n_scored));
    begun = cluster_seconds();
    if (n_probed) TRY(context_probe(a, n_probed, &disparity));
    probe_s = cluster_seconds() - begun;
    TRY(place_tokens(s, m, n));
    TRY(read_pages(a, n));
    TRY(check_probe(disparity));
    TRY(take_state(s, m));
    if (logprob) memcpy(logprob, a->logprob, (size_t)n_scored * sizeof *logprob);
    *out = (struct context_restored){.n = n,
                                     .n_probed = n_probed,
                                     .disparity = disparity,
                                     .probe_s = probe_s,
                                     .n_scored = n_scored};
    context_source_of(a->context, &own);
    if (strcmp(own.key, a->source.key) != 0)
        snprintf(out->like, sizeof out->like, "%s", m->name[0] ? m->name : a->source.key);
    else if (n == m->done)
        context_stored_set(s, found->text.text, n);
    if (!context_access_root(a)) return OK;
    (void)utimensat(AT_FDCWD, a->folder, NULL, 0); // when it was last of use
    a->lock = found->lock;
    context_access_clean(a, found->text.text, true);
    a->lock = -1;
    return OK;
}

enum status context_restore(struct session *session, const struct context *context, float *logprob,
                            struct context_restored *out) {
    struct context_access a;
    struct context_found found = {.lock = -1};
    enum status status = context_access_open(session, context, &a);
    bool empty = session->sequence.length == 0;
    *out = (struct context_restored){0};
    if (status == OK && !empty)
        FAIL_OR(done, ERR_INTERNAL,
                "a context is restored into an empty session, not behind %lld tokens",
                (long long)session->sequence.length);
    if (status == OK) TRY_OR(done, share_found(&a, logprob != NULL, &found));
    if (found.n > 0) status = restore(&a, &found, logprob, out);
    if (status == ERR_INPUT) (void)context_refuse(a.folder);
done:
    if (status != OK && empty) {
        kv_store_truncate(&session->forward.kv, 0);
        sequence_truncate(&session->sequence, 0);
        session->last_position = -1;
        session->stored.n = 0;
    }
    context_found_close(&found);
    context_access_close(&a);
    return status;
}
