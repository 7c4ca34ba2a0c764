// What a service was asked, between the threads of its HTTP connections and the ranks that answer
// one request after another. A connection's thread makes a request, pushes it and looks at what
// comes; rank 0's main thread pops it, brings it forward and finishes it. Rank 0 only.
#ifndef HALKA_LAUNCHER_SERVICE_QUEUE_H
#define HALKA_LAUNCHER_SERVICE_QUEUE_H

#include <jansson.h>
#include <pthread.h>

#include "launcher/generation.h"
#include "launcher/service_documents.h"

enum { MAX_STOP_TEXT = 16 };

enum request_state {
    REQUEST_WAITING, // in the queue
    REQUEST_READING,
    REQUEST_ANSWERING,
    REQUEST_DONE,
    REQUEST_REFUSED // the service ends, or nobody waits for it any more
};

struct service_request {
    // Of its maker, untouched once pushed.
    struct token_list prompt;
    struct served_document *document; // whose question it is; NULL: the prompt stands alone
    char *question;
    int64_t document_end; // tokens of the prompt up to the document's end; 0 without document
    int64_t max_tokens, n_passage;
    struct sampler sampler;
    int n_stop;
    char *stop[MAX_STOP_TEXT]; // texts that end the answer, which is cut before them

    // Of the queue, under its lock.
    int64_t serial; // from 1
    enum request_state state;
    int64_t n_read, n_held; // tokens of the prompt that are read, and that need not be
    int64_t n_token;        // generated
    char *text;             // of them, without a part of a character or of a stop text at its end
    size_t bytes;
    enum generation_end end;
    json_t *line; // of a document's question: answer_line.h
    bool given_up;
    struct service_request *next;
};
struct service_request *request_make(void);         // NULL: no memory
void request_drop(struct service_request *request); // accepts NULL; not while it is queued

struct service_counts {
    int64_t n_waiting, n_answered, n_given_up, n_refused;
    int64_t tokens_read, tokens_held, tokens_generated;
    bool busy;
};

struct service_queue {
    pthread_mutex_t lock;
    pthread_cond_t changed; // the queue or any request
    struct service_request *first, *last, *running;
    int64_t capacity, n_pushed;
    bool closed;
    struct service_counts counts;
};
enum status queue_open(struct service_queue *queue, int64_t capacity);
void queue_close(struct service_queue *queue);

// false: the queue is full, or closed.
bool queue_push(struct service_queue *queue, struct service_request *request);
// Waits up to `seconds` for the state, the text or the tokens read to differ from what *seen says,
// and brings it up to date; false: nothing changed.
struct request_view {
    enum request_state state;
    int64_t n_read, n_held, n_token;
    size_t bytes;
};
bool queue_watch(struct service_queue *queue, const struct service_request *request,
                 struct request_view *seen, double seconds);
// Copies of the text's bytes [begin, end).
void queue_copy_text(struct service_queue *queue, const struct service_request *request,
                     size_t begin, size_t end, char *out);
// Nobody waits for it: returns when the ranks have let go of it.
void queue_give_up(struct service_queue *queue, struct service_request *request);
struct service_counts queue_counts(struct service_queue *queue);

// Of the main thread. NULL: nothing came within `seconds`.
struct service_request *queue_pop(struct service_queue *queue, double seconds);
// Tokens of the prompt that are read now, n_held of which were there; whether to go on.
bool queue_advance(struct service_queue *queue, struct service_request *request, int64_t n_read,
                   int64_t n_held);
// The answer has n_token tokens now, and `bytes` more of text; whether to go on.
bool queue_add_text(struct service_queue *queue, struct service_request *request, int64_t n_token,
                    const char *text, size_t bytes);
// Takes the reference to `line`.
void queue_finish(struct service_queue *queue, struct service_request *request,
                  enum request_state state, enum generation_end end, json_t *line);
// No more requests are taken, and those that wait are refused.
void queue_stop(struct service_queue *queue);

#endif
