#include "launcher/service_reply.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "launcher/results.h"

static const double look_seconds = 0.5;      // between two looks at the client
static const double keep_alive_seconds = 10; // after which a stream says that it is alive

// An answer on its way to a client.
struct reply {
    struct service *service;
    struct MHD_Connection *connection;
    struct service_request *request; // owned
    enum dialect dialect;
    char id[64];
    long created;
    struct request_view seen;
    double told; // when the client last heard something
    bool begun, over;
    size_t n_told;  // bytes of the answer's text
    char *ready;    // of the stream, not yet taken by the client ...
    size_t n_ready; // ... so many bytes
};

static bool is_over(const struct reply *r) {
    return r->seen.state == REQUEST_DONE || r->seen.state == REQUEST_REFUSED;
}

static struct reply begin(const struct http_request *x, struct service_request *request,
                          enum dialect dialect) {
    struct reply r = {.service = x->service,
                      .connection = x->connection,
                      .request = request,
                      .dialect = dialect,
                      .created = (long)time(NULL),
                      .told = cluster_seconds()};
    snprintf(r.id, sizeof r.id, "%s-%lx-%llx", dialect == DIALECT_CHAT ? "chatcmpl" : "cmpl",
             (unsigned long)r.created, (unsigned long long)request->serial);
    return r;
}

// The request goes with it.
static void end(struct reply *r) {
    queue_give_up(&r->service->queue, r->request);
    request_drop(r->request);
    free(r->ready);
}

static const char *finish_reason(const struct service_request *request) {
    return request->end == END_LENGTH ? "length" : "stop";
}

static json_t *usage(const struct service_request *r) {
    int64_t n = r->prompt.n + r->n_token;
    return json_pack("{s:I, s:I, s:I, s:{s:I}}", "prompt_tokens", (json_int_t)r->prompt.n,
                     "completion_tokens", (json_int_t)r->n_token, "total_tokens", (json_int_t)n,
                     "prompt_tokens_details", "cached_tokens", (json_int_t)r->n_held);
}

// The frame that OpenAI's clients expect around a choice, whose reference it takes.
static json_t *envelope(const struct reply *r, const char *object, json_t *choice) {
    return json_pack("{s:s, s:s, s:I, s:s, s:[o]}", "id", r->id, "object", object, "created",
                     (json_int_t)r->created, "model", r->service->job->options->model_path,
                     "choices", choice);
}

static json_t *whole(const struct reply *r) {
    struct service_request *request = r->request;
    if (r->dialect == DIALECT_QUESTION) return json_incref(request->line);
    json_t *text = json_text(request->text ? request->text : "", request->bytes);
    json_t *choice =
        r->dialect == DIALECT_CHAT
            ? json_pack("{s:i, s:{s:s, s:o}, s:s}", "index", 0, "message", "role", "assistant",
                        "content", text, "finish_reason", finish_reason(request))
            : json_pack("{s:i, s:o, s:n, s:s}", "index", 0, "text", text, "logprobs",
                        "finish_reason", finish_reason(request));
    json_t *object =
        envelope(r, r->dialect == DIALECT_CHAT ? "chat.completion" : "text_completion", choice);
    json_object_set_new(object, "usage", usage(request));
    return object;
}

static enum MHD_Result refuse(const struct http_request *x) {
    return reply_error(x, MHD_HTTP_SERVICE_UNAVAILABLE, "the service stops: ask it again later");
}

enum MHD_Result reply_whole(const struct http_request *x, struct service_request *request,
                            enum dialect dialect) {
    struct reply r = begin(x, request, dialect);
    while (!is_over(&r)) {
        queue_watch(&x->service->queue, request, &r.seen, look_seconds);
        if (!is_over(&r) && client_is_gone(x->connection)) {
            end(&r);
            return MHD_NO;
        }
    }
    enum MHD_Result result =
        r.seen.state == REQUEST_DONE ? reply_json(x, MHD_HTTP_OK, whole(&r)) : refuse(x);
    end(&r);
    return result;
}

// Puts a text behind what is ready.
static void put(struct reply *r, const char *before, const char *text, const char *after) {
    size_t sizes[] = {strlen(before), strlen(text), strlen(after)};
    char *longer = realloc(r->ready, r->n_ready + sizes[0] + sizes[1] + sizes[2]);
    if (!longer) return;
    r->ready = longer;
    memcpy(longer + r->n_ready, before, sizes[0]);
    memcpy(longer + r->n_ready + sizes[0], text, sizes[1]);
    memcpy(longer + r->n_ready + sizes[0] + sizes[1], after, sizes[2]);
    r->n_ready += sizes[0] + sizes[1] + sizes[2];
    r->told = cluster_seconds();
}

static void put_event(struct reply *r, json_t *object) {
    char *text = object ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(object);
    if (text) put(r, "data: ", text, "\n\n");
    free(text);
}

static void put_choice(struct reply *r, json_t *choice) {
    bool chat = r->dialect == DIALECT_CHAT;
    put_event(r, envelope(r, chat ? "chat.completion.chunk" : "text_completion", choice));
}

static void put_text(struct reply *r, const char *text, size_t bytes) {
    json_t *value = json_text(text, bytes);
    if (r->dialect == DIALECT_QUESTION)
        put_event(r, json_pack("{s:o}", "text", value));
    else if (r->dialect == DIALECT_CHAT)
        put_choice(r, json_pack("{s:i, s:{s:o}, s:n}", "index", 0, "delta", "content", value,
                                "finish_reason"));
    else
        put_choice(r, json_pack("{s:i, s:o, s:n, s:n}", "index", 0, "text", value, "logprobs",
                                "finish_reason"));
}

static void put_more_text(struct reply *r) {
    size_t n = r->seen.bytes - r->n_told;
    char *text = malloc(n + 1);
    if (!text || n == 0) {
        free(text);
        return;
    }
    queue_copy_text(&r->service->queue, r->request, r->n_told, r->seen.bytes, text);
    r->n_told = r->seen.bytes;
    put_text(r, text, n);
    free(text);
}

static void put_end(struct reply *r) {
    struct service_request *request = r->request;
    r->over = true;
    if (r->seen.state == REQUEST_REFUSED) {
        put_event(r, json_pack("{s:{s:s, s:s, s:i}}", "error", "message",
                               "the service stops: ask it again later", "type", "server_error",
                               "code", MHD_HTTP_SERVICE_UNAVAILABLE));
        return;
    }
    if (r->dialect == DIALECT_QUESTION) {
        put_event(r, json_incref(request->line));
        return;
    }
    json_t *choice = r->dialect == DIALECT_CHAT
                         ? json_pack("{s:i, s:{}, s:s}", "index", 0, "delta", "finish_reason",
                                     finish_reason(request))
                         : json_pack("{s:i, s:s, s:n, s:s}", "index", 0, "text", "", "logprobs",
                                     "finish_reason", finish_reason(request));
    bool chat = r->dialect == DIALECT_CHAT;
    json_t *object = envelope(r, chat ? "chat.completion.chunk" : "text_completion", choice);
    json_object_set_new(object, "usage", usage(request));
    put_event(r, object);
    put(r, "data: ", "[DONE]", "\n\n");
}

// How far reading is, for those who ask about a document.
static void put_progress(struct reply *r) {
    if (r->dialect != DIALECT_QUESTION || r->seen.state != REQUEST_READING) return;
    put_event(r, json_pack("{s:I, s:I}", "n_read", (json_int_t)r->seen.n_read, "n_prompt",
                           (json_int_t)r->request->prompt.n));
}

// Waits until something is ready for the client.
static bool fill(struct reply *r) {
    if (!r->begun && r->dialect == DIALECT_CHAT)
        put_choice(r, json_pack("{s:i, s:{s:s, s:s}, s:n}", "index", 0, "delta", "role",
                                "assistant", "content", "", "finish_reason"));
    r->begun = true;
    while (r->n_ready == 0 && !r->over) {
        bool differs = queue_watch(&r->service->queue, r->request, &r->seen, look_seconds);
        if (!is_over(r) && client_is_gone(r->connection)) return false;
        if (differs) put_progress(r);
        if (r->seen.bytes > r->n_told) put_more_text(r);
        if (is_over(r)) put_end(r);
        if (cluster_seconds() - r->told > keep_alive_seconds) put(r, ": ", "waiting", "\n\n");
    }
    return true;
}

static ssize_t read_stream(void *user, uint64_t position, char *out, size_t most) {
    struct reply *r = user;
    (void)position;
    if (r->n_ready == 0 && r->over) return MHD_CONTENT_READER_END_OF_STREAM;
    if (r->n_ready == 0 && !fill(r)) return MHD_CONTENT_READER_END_WITH_ERROR;
    if (r->n_ready == 0) return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t n = r->n_ready < most ? r->n_ready : most;
    memcpy(out, r->ready, n);
    memmove(r->ready, r->ready + n, r->n_ready - n);
    r->n_ready -= n;
    return (ssize_t)n;
}

static void close_stream(void *user) {
    end(user);
    free(user);
}

enum MHD_Result reply_stream(const struct http_request *x, struct service_request *request,
                             enum dialect dialect) {
    enum { BLOCK = 16384 };
    struct reply *r = malloc(sizeof *r), begun = begin(x, request, dialect);
    struct MHD_Response *response =
        r ? MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK, read_stream, r, close_stream)
          : NULL;
    if (!response) {
        end(&begun);
        free(r);
        return MHD_NO;
    }
    *r = begun;
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, "text/event-stream");
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    enum MHD_Result result = MHD_queue_response(x->connection, MHD_HTTP_OK, response);
    MHD_destroy_response(response);
    return result;
}
