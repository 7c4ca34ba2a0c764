// `halka serve`: an HTTP service of one model on all ranks of an allocation. Rank 0 listens; its
// connections (service_http.h) put requests into a queue, and the ranks answer one after another.
// The session keeps what the last request held: of the next one, only what comes behind the
// beginning that both share is read.
#ifndef HALKA_LAUNCHER_SERVICE_H
#define HALKA_LAUNCHER_SERVICE_H

#include "launcher/evidence.h"
#include "launcher/service_queue.h"

struct service {
    struct job *job;
    int64_t context; // tokens of a request and its answer
    struct prompt prompt;
    struct token_list head, baseline; // before a document; an empty question behind it

    int32_t *token;           // [context] the request's, then the answer's
    struct evidence evidence; // of the document whose serial this is; 0: of none
    int64_t evidence_of;

    // Rank 0.
    struct service_queue queue;
    struct served_documents documents;
    struct service_http *http;
    int32_t *held; // [n_held] of the session
    int64_t n_held;
};

// A text to be asked about, as requests hold it. Takes it, also when it fails.
enum status service_add_document(struct service *service, const char *name, char *text,
                                 size_t bytes, struct served_document **out);

#endif
