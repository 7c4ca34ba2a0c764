#include "launcher/service_documents.h"

#include <stdlib.h>
#include <string.h>

#include "launcher/results.h"

void served_documents_open(struct served_documents *documents) {
    *documents = (struct served_documents){.n = 0};
    pthread_mutex_init(&documents->lock, NULL);
}

static void free_document(struct served_document *document) {
    document_text_close(&document->text);
    free(document->name);
    free(document);
}

void served_documents_close(struct served_documents *documents) {
    for (int i = 0; i < documents->n; i++) served_document_release(documents->items[i]);
    documents->n = 0;
    pthread_mutex_destroy(&documents->lock);
}

// With the lock held; -1: none.
static int find(const struct served_documents *documents, const char *id) {
    for (int i = 0; i < documents->n; i++)
        if (strcmp(documents->items[i]->id, id) == 0) return i;
    return -1;
}

// With the lock held. Its users: the registry and the caller.
static enum status add(struct served_documents *documents, struct served_document *document,
                       struct served_document **out) {
    int there = find(documents, document->id);
    if (there >= 0) {
        *out = documents->items[there];
        (*out)->n_user++;
        return OK;
    }
    if (documents->n == MAX_SERVED_DOCUMENT)
        FAIL(ERR_CREATE, "there are %d documents already: remove some (DELETE /v1/documents/ID)",
             MAX_SERVED_DOCUMENT);
    document->serial = ++documents->n_added;
    document->n_user = 2;
    documents->items[documents->n++] = *out = document;
    return OK;
}

enum status served_documents_add(struct served_documents *documents, const char *name,
                                 struct document_text *text, struct served_document **out) {
    struct served_document *document = calloc(1, sizeof *document);
    char *copy = strdup(name);
    *out = NULL;
    if (!document || !copy) {
        free(document);
        free(copy);
        document_text_close(text);
        FAIL(ERR_MEMORY, "no memory for a document");
    }
    *document = (struct served_document){.name = copy, .text = *text, .registry = documents};
    *text = (struct document_text){0};
    const struct document_text *held = &document->text;
    if (held->text)
        digest_bytes(held->text, held->bytes, document->id);
    else
        digest_bytes(held->tokens.id, (size_t)held->tokens.n * sizeof *held->tokens.id,
                     document->id);
    pthread_mutex_lock(&documents->lock);
    enum status status = add(documents, document, out);
    pthread_mutex_unlock(&documents->lock);
    if (*out != document) free_document(document);
    return status;
}

struct served_document *served_documents_find(struct served_documents *documents, const char *id) {
    pthread_mutex_lock(&documents->lock);
    int at = find(documents, id);
    struct served_document *document = at < 0 ? NULL : documents->items[at];
    if (document) document->n_user++;
    pthread_mutex_unlock(&documents->lock);
    return document;
}

void served_document_release(struct served_document *document) {
    if (!document) return;
    pthread_mutex_lock(&document->registry->lock);
    bool last = --document->n_user == 0;
    pthread_mutex_unlock(&document->registry->lock);
    if (last) free_document(document);
}

bool served_documents_remove(struct served_documents *documents, const char *id) {
    struct served_document *document = NULL;
    pthread_mutex_lock(&documents->lock);
    int at = find(documents, id);
    if (at >= 0) {
        document = documents->items[at];
        documents->n--;
        memmove(&documents->items[at], &documents->items[at + 1],
                (size_t)(documents->n - at) * sizeof(struct served_document *));
    }
    pthread_mutex_unlock(&documents->lock);
    served_document_release(document);
    return document != NULL;
}

json_t *served_document_describe(const struct served_document *document) {
    return json_pack("{s:s, s:o, s:I, s:I}", "id", document->id, "name",
                     json_text(document->name, strlen(document->name)), "bytes",
                     (json_int_t)document->text.bytes, "n_token",
                     (json_int_t)document->text.tokens.n);
}

json_t *served_documents_list(struct served_documents *documents) {
    json_t *list = json_array();
    pthread_mutex_lock(&documents->lock);
    for (int i = 0; i < documents->n; i++)
        json_array_append_new(list, served_document_describe(documents->items[i]));
    pthread_mutex_unlock(&documents->lock);
    return list;
}
