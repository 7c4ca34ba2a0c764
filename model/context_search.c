// Which saved context gives most of a document: its own, or another one that begins like it. Keys
// of documents whose first page is the same begin alike (context_key), so that of many contexts
// only these are looked into: first at their tokens, then, those with most in common first, at
// their manifests.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/context_internal.h"

enum { MOST_OPENED = 16 }; // manifests, where none is of use to the next

struct candidate {
    char key[DIGEST_BYTES];
    int64_t common; // tokens
};

struct search {
    const struct session *session;
    const struct context *context;
    bool scored;
    struct context_found *best;
};

void context_found_close(struct context_found *found) {
    if (found->lock >= 0) close(found->lock);
    free(found->text.text);
    found->text.text = NULL;
    found->lock = -1;
}

enum status context_refuse(const char *folder) {
    return status_context(ERR_INPUT,
                          "the saved context %s cannot be used; remove the folder to read the "
                          "document again",
                          folder);
}

// Tokens of the first `common` that can be restored. The next token is predicted from the state of
// the last, which the manifest has of the last one done: any other is to be computed again. Of a
// layer's window there may be no more rows than at the end of each save.
static int64_t restorable(const struct search *search, const struct context_manifest *m,
                          int64_t common) {
    int64_t n = common < m->done ? common : m->done;
    if (search->scored && !m->scored) return 0;
    if (n < m->done || !m->last_state) n--;
    for (int i = m->n_segment - 1; i >= 0; i--) {
        if (context_manifest_reaches(m, search->session, n)) return n;
        if (m->segment[i].from < n) n = m->segment[i].from;
    }
    return 0;
}

static enum status read_manifest(const struct search *search, const struct context_source *source,
                                 int64_t common, struct context_found *out) {
    struct context_manifest m = {0};
    enum status status = OK;
    void *text = NULL;
    char *path = context_path(search->context->dir, source->key, CONTEXT_MANIFEST);
    if (!path) FAIL(ERR_MEMORY, "no memory for a path");
    out->text.path = path;
    TRY_OR(done, context_file_read(path, context_manifest_most(search->session, source->n_token),
                                   &text, &out->text.bytes));
    out->text.text = text;
    if (!text) goto done;
    TRY_OR(done, context_manifest_parse(&out->text, search->session, source, &m));
    out->n = restorable(search, &m, common);
done:
    context_manifest_close(&m);
    out->text.path = NULL;
    free(path);
    return status;
}

static void take(struct context_found *from, struct context_found *to) {
    context_found_close(to);
    to->source = from->source;
    to->n = from->n;
    to->text.text = from->text.text;
    to->text.bytes = from->text.bytes;
    to->lock = from->lock;
    from->text.text = NULL;
    from->lock = -1;
}

// Takes the context where it gives more than the best so far.
static enum status consider(struct search *search, const struct context_source *source,
                            int64_t common) {
    struct context_found found = {.source = *source, .lock = -1};
    enum status status = OK;
    char *folder = context_path(search->context->dir, source->key, NULL);
    if (!folder) FAIL(ERR_MEMORY, "no memory for a path");
    TRY_OR(done, context_folder_open(search->context->dir, folder, false, &found.lock));
    if (found.lock >= 0) TRY_OR(done, read_manifest(search, source, common, &found));
    if (found.n > search->best->n) take(&found, search->best);
done:
    if (status == ERR_INPUT) (void)context_refuse(folder);
    context_found_close(&found);
    free(folder);
    return status;
}

// How many tokens at the beginning of the file are those of the document.
static int64_t count_common(const char *path, const struct context *context) {
    int32_t block[4096];
    int64_t n = 0;
    int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    for (bool alike = file >= 0; alike;) {
        ssize_t bytes = pread(file, block, sizeof block, n * (int64_t)sizeof *block);
        int64_t most = bytes / (int64_t)sizeof *block, i = 0;
        if (most > context->n - n) most = context->n - n;
        while (i < most && block[i] == context->token[n + i]) i++;
        n += i;
        alike = i > 0 && i == most;
    }
    if (file >= 0) close(file);
    return n;
}

static int is_key(const struct dirent *entry) {
    return strlen(entry->d_name) == DIGEST_BYTES - 1;
}

static int compare_candidates(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->common != y->common) return x->common < y->common ? 1 : -1;
    return strcmp(x->key, y->key);
}

// Most tokens first. What cannot be read, another job's or user's, is passed over.
static enum status list_candidates(const struct search *search, const char *own_key,
                                   struct candidate **out, int64_t *n) {
    const struct context *context = search->context;
    struct dirent **entries = NULL;
    enum status status = OK;
    int n_entry = scandir(context->dir, &entries, is_key, alphasort);
    *n = 0;
    *out = calloc((size_t)(n_entry > 0 ? n_entry : 1), sizeof **out);
    if (!*out) FAIL_OR(done, ERR_MEMORY, "no memory for %d saved contexts", n_entry);
    for (int i = 0; i < n_entry; i++) {
        const char *key = entries[i]->d_name;
        if (!context_keys_begin_alike(own_key, key) || strcmp(own_key, key) == 0) continue;
        char *path = context_path(context->dir, key, CONTEXT_TOKENS);
        if (!path) FAIL_OR(done, ERR_MEMORY, "no memory for a path");
        struct candidate *next = &(*out)[*n];
        memcpy(next->key, key, DIGEST_BYTES);
        next->common = count_common(path, context);
        if (next->common >= CONTEXT_PAGE) ++*n;
        free(path);
    }
    qsort(*out, (size_t)*n, sizeof **out, compare_candidates);
done:
    for (int i = 0; i < n_entry; i++) free(entries[i]);
    free(entries);
    return status;
}

// Unless its tokens are not those that the folder is named by.
static enum status consider_candidate(struct search *search, const struct candidate *candidate) {
    struct context_source source;
    struct context whole = {.dir = search->context->dir, .identity = search->context->identity};
    void *token = NULL;
    int64_t bytes = 0;
    char *path = context_path(whole.dir, candidate->key, CONTEXT_TOKENS);
    if (!path) FAIL(ERR_MEMORY, "no memory for a path");
    enum status status = context_file_read(path, INT64_MAX - 1, &token, &bytes);
    free(path);
    if (status == OK && token) {
        whole.token = token;
        whole.n = bytes / (int64_t)sizeof *whole.token;
        context_source_of(&whole, &source);
        if (strcmp(source.key, candidate->key) == 0)
            status = consider(search, &source, candidate->common);
    }
    free(token);
    return status;
}

enum status context_search(const struct session *session, const struct context *context,
                           bool scored, struct context_found *out) {
    struct search search = {session, context, scored, out};
    struct context_source own;
    struct candidate *candidates = NULL;
    int64_t n = 0;
    enum status status = OK;
    context_source_of(context, &own);
    TRY(consider(&search, &own, context->n));
    if (out->n == context->n || context->n < CONTEXT_PAGE) return OK;
    TRY_OR(done, list_candidates(&search, own.key, &candidates, &n));
    for (int64_t i = 0; i < n && i < MOST_OPENED && candidates[i].common > out->n + 1; i++)
        TRY_OR(done, consider_candidate(&search, &candidates[i]));
done:
    free(candidates);
    return status;
}
