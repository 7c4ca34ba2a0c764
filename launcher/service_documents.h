// Documents that a service holds, to be asked about. Rank 0; any thread.
#ifndef HALKA_LAUNCHER_SERVICE_DOCUMENTS_H
#define HALKA_LAUNCHER_SERVICE_DOCUMENTS_H

#include <jansson.h>
#include <pthread.h>

#include "launcher/documents.h"

enum { MAX_SERVED_DOCUMENT = 1000 };

// Unchanged from when it is added until its last user lets go of it.
struct served_document {
    char id[DIGEST_BYTES]; // digest of the text
    int64_t serial;        // from 1, never again
    char *name;
    struct document_text text;
    int n_user; // of the registry's lock
    struct served_documents *registry;
};

struct served_documents {
    pthread_mutex_t lock;
    int n;
    int64_t n_added;
    struct served_document *items[MAX_SERVED_DOCUMENT]; // in the order they came
};
void served_documents_open(struct served_documents *documents);
void served_documents_close(struct served_documents *documents);

// Takes the text, also when it fails. One with the same bytes is the same document: it keeps its
// name. The caller uses it until served_document_release. ERR_CREATE: there are too many.
enum status served_documents_add(struct served_documents *documents, const char *name,
                                 struct document_text *text, struct served_document **out);
// For the caller's use; NULL: no such document.
struct served_document *served_documents_find(struct served_documents *documents, const char *id);
void served_document_release(struct served_document *document); // accepts NULL
// false: no such document. Who uses it keeps it.
bool served_documents_remove(struct served_documents *documents, const char *id);
json_t *served_documents_list(struct served_documents *documents);
json_t *served_document_describe(const struct served_document *document);

#endif
