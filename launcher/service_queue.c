#include "launcher/service_queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct service_request *request_make(void) {
    return calloc(1, sizeof(struct service_request));
}

void request_drop(struct service_request *r) {
    if (!r) return;
    token_list_close(&r->prompt);
    served_document_release(r->document);
    free(r->question);
    for (int i = 0; i < r->n_stop; i++) free(r->stop[i]);
    free(r->text);
    json_decref(r->line);
    free(r);
}

enum status queue_open(struct service_queue *queue, int64_t capacity) {
    pthread_condattr_t attributes;
    *queue = (struct service_queue){.capacity = capacity};
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    bool opened = pthread_mutex_init(&queue->lock, NULL) == 0 &&
                  pthread_cond_init(&queue->changed, &attributes) == 0;
    pthread_condattr_destroy(&attributes);
    if (!opened) FAIL(ERR_MEMORY, "no memory for the queue of requests");
    return OK;
}

void queue_close(struct service_queue *queue) {
    pthread_cond_destroy(&queue->changed);
    pthread_mutex_destroy(&queue->lock);
}

static struct timespec after(double seconds) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    long nanoseconds = at.tv_nsec + (long)((seconds - (double)(long)seconds) * 1e9);
    at.tv_sec += (long)seconds + nanoseconds / 1000000000;
    at.tv_nsec = nanoseconds % 1000000000;
    return at;
}

// With the lock held; false: too late.
static bool wait_until(struct service_queue *queue, const struct timespec *at) {
    return pthread_cond_timedwait(&queue->changed, &queue->lock, at) != ETIMEDOUT;
}

bool queue_push(struct service_queue *queue, struct service_request *request) {
    pthread_mutex_lock(&queue->lock);
    bool taken = !queue->closed && queue->counts.n_waiting < queue->capacity;
    if (taken) {
        if (queue->last)
            queue->last->next = request;
        else
            queue->first = request;
        queue->last = request;
        request->serial = ++queue->n_pushed;
        queue->counts.n_waiting++;
        pthread_cond_broadcast(&queue->changed);
    } else {
        queue->counts.n_refused++;
    }
    pthread_mutex_unlock(&queue->lock);
    return taken;
}

static struct request_view look(const struct service_request *r) {
    return (struct request_view){r->state, r->n_read, r->n_held, r->n_token, r->bytes};
}

bool queue_watch(struct service_queue *queue, const struct service_request *request,
                 struct request_view *seen, double seconds) {
    struct timespec at = after(seconds);
    struct request_view now;
    bool differs;
    pthread_mutex_lock(&queue->lock);
    for (;;) {
        now = look(request);
        differs = now.state != seen->state || now.n_read != seen->n_read ||
                  now.bytes != seen->bytes || now.n_token != seen->n_token;
        if (differs || !wait_until(queue, &at)) break;
    }
    pthread_mutex_unlock(&queue->lock);
    *seen = now;
    return differs;
}

void queue_copy_text(struct service_queue *queue, const struct service_request *request,
                     size_t begin, size_t end, char *out) {
    pthread_mutex_lock(&queue->lock);
    if (begin < end) memcpy(out, request->text + begin, end - begin);
    pthread_mutex_unlock(&queue->lock);
}

static bool is_over(const struct service_request *request) {
    return request->state == REQUEST_DONE || request->state == REQUEST_REFUSED;
}

void queue_give_up(struct service_queue *queue, struct service_request *request) {
    pthread_mutex_lock(&queue->lock);
    request->given_up = true;
    while (!is_over(request)) pthread_cond_wait(&queue->changed, &queue->lock);
    pthread_mutex_unlock(&queue->lock);
}

struct service_counts queue_counts(struct service_queue *queue) {
    pthread_mutex_lock(&queue->lock);
    struct service_counts counts = queue->counts;
    counts.busy = queue->running != NULL;
    pthread_mutex_unlock(&queue->lock);
    return counts;
}

// With the lock held: the first that somebody waits for.
static struct service_request *take(struct service_queue *queue) {
    struct service_request *request;
    while ((request = queue->first)) {
        queue->first = request->next;
        if (!queue->first) queue->last = NULL;
        queue->counts.n_waiting--;
        if (!request->given_up) break;
        queue->counts.n_given_up++;
        request->state = REQUEST_REFUSED;
        pthread_cond_broadcast(&queue->changed);
    }
    return request;
}

struct service_request *queue_pop(struct service_queue *queue, double seconds) {
    struct timespec at = after(seconds);
    struct service_request *request;
    pthread_mutex_lock(&queue->lock);
    while (!(request = take(queue)) && wait_until(queue, &at)) continue;
    queue->running = request;
    if (request) request->state = REQUEST_READING;
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
    return request;
}

bool queue_advance(struct service_queue *queue, struct service_request *request, int64_t n_read,
                   int64_t n_held) {
    pthread_mutex_lock(&queue->lock);
    request->n_read = n_read;
    request->n_held = n_held;
    bool goes_on = !request->given_up;
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
    return goes_on;
}

bool queue_add_text(struct service_queue *queue, struct service_request *request, int64_t n_token,
                    const char *text, size_t bytes) {
    pthread_mutex_lock(&queue->lock);
    char *longer = bytes ? realloc(request->text, request->bytes + bytes) : NULL;
    bool goes_on = !request->given_up && (longer || bytes == 0);
    if (longer) {
        memcpy(longer + request->bytes, text, bytes);
        request->text = longer;
        request->bytes += bytes;
    }
    request->n_token = n_token;
    request->state = REQUEST_ANSWERING;
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
    return goes_on;
}

void queue_finish(struct service_queue *queue, struct service_request *request,
                  enum request_state state, enum generation_end end, json_t *line) {
    struct service_counts *counts = &queue->counts;
    pthread_mutex_lock(&queue->lock);
    request->end = end;
    request->line = line;
    request->state = state;
    queue->running = NULL;
    *(request->given_up ? &counts->n_given_up : &counts->n_answered) += 1;
    counts->tokens_read += request->n_read - request->n_held;
    counts->tokens_held += request->n_held;
    counts->tokens_generated += request->n_token;
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
}

void queue_stop(struct service_queue *queue) {
    pthread_mutex_lock(&queue->lock);
    queue->closed = true;
    for (struct service_request *r = queue->first; r; r = r->next) r->state = REQUEST_REFUSED;
    queue->first = queue->last = NULL;
    queue->counts.n_waiting = 0;
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
}
