#include "launcher/service_api.h"

#include <stdlib.h>
#include <string.h>

#include "launcher/service_page.h"
#include "launcher/service_reply.h"
#include "model/json_util.h"

static const char in_request[] = "the request";

// Texts that end an answer: one, or a list.
static enum status read_stop(const json_t *stop, struct service_request *r) {
    if (!stop || json_is_null(stop)) return OK;
    size_t n = json_is_array(stop) ? json_array_size(stop) : 1;
    if (n > MAX_STOP_TEXT) FAIL(ERR_INPUT, "stop may hold %d texts, not %zu", MAX_STOP_TEXT, n);
    for (size_t i = 0; i < n; i++) {
        const char *text = json_string_value(json_is_array(stop) ? json_array_get(stop, i) : stop);
        if (!text || !*text) FAIL(ERR_INPUT, "stop must be a text, or a list of texts");
        if (!(r->stop[r->n_stop] = strdup(text))) FAIL(ERR_MEMORY, "no memory for a text");
        r->n_stop++;
    }
    return OK;
}

// What would change the answer, and is not to be had.
static enum status refuse_others(const json_t *json) {
    static const char *const absent[] = {"tools",    "functions",       "logit_bias",
                                         "logprobs", "response_format", "suffix"};
    static const char *const neutral[] = {"frequency_penalty", "presence_penalty"};
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++) {
        const json_t *value = json_object_get(json, absent[i]);
        bool asked = value && !json_is_null(value) && !json_is_false(value);
        if (asked) FAIL(ERR_INPUT, "%s is not supported: leave it out", absent[i]);
    }
    for (size_t i = 0; i < sizeof neutral / sizeof *neutral; i++) {
        if (json_number_value(json_object_get(json, neutral[i])) != 0)
            FAIL(ERR_INPUT, "%s is not supported: leave it out", neutral[i]);
    }
    int64_t n = 1, best_of = 1;
    bool echo = false;
    const struct json_object in = {json, in_request};
    TRY(json_read_int(in, "n", 1, 1, &n));
    TRY(json_read_int(in, "best_of", 1, 1, &best_of));
    TRY(json_read_bool(in, "echo", &echo));
    if (echo) FAIL(ERR_INPUT, "echo is not supported: leave it out");
    return OK;
}

// How to answer, and how much. The prompt is there already.
static enum status read_manner(const struct service *s, const json_t *json,
                               struct service_request *r) {
    const struct options *o = s->job->options;
    const struct json_object in = {json, in_request};
    int64_t room = s->context - r->prompt.n, wanted = 0, seed = o->seed;
    r->sampler =
        (struct sampler){.temperature = o->temperature, .top_p = o->top_p, .min_p = o->min_p};
    TRY(refuse_others(json));
    if (room < 1)
        FAIL(ERR_INPUT, "%lld tokens leave no room for an answer in the context of %lld",
             (long long)r->prompt.n, (long long)s->context);
    TRY(json_read_int(in, "max_completion_tokens", 1, INT32_MAX, &wanted));
    TRY(json_read_int(in, "max_tokens", 1, INT32_MAX, &wanted));
    if (wanted > room)
        FAIL(ERR_INPUT,
             "%lld tokens and an answer of %lld are more than the context of %lld: make max_tokens "
             "at most %lld",
             (long long)r->prompt.n, (long long)wanted, (long long)s->context, (long long)room);
    r->max_tokens = wanted ? wanted : o->max_tokens < room ? o->max_tokens : room;
    TRY(json_read_float(in, "temperature", 0, 100, &r->sampler.temperature));
    TRY(json_read_float(in, "top_p", 0, 1, &r->sampler.top_p));
    TRY(json_read_float(in, "min_p", 0, 1, &r->sampler.min_p));
    TRY(json_read_int(in, "seed", INT64_MIN, INT64_MAX, &seed));
    r->sampler.seed = (uint64_t)seed;
    return read_stop(json_object_get(json, "stop"), r);
}

// The text of a message: a string, or a list of parts that are texts.
static enum status read_content(const json_t *content, char **out) {
    if (json_is_string(content)) {
        *out = strdup(json_string_value(content));
        if (!*out) FAIL(ERR_MEMORY, "no memory for a message");
        return OK;
    }
    size_t bytes = 0;
    if (!json_is_array(content)) FAIL(ERR_INPUT, "a message has no content");
    if (!(*out = calloc(1, 1))) FAIL(ERR_MEMORY, "no memory for a message");
    for (size_t i = 0; i < json_array_size(content); i++) {
        const char *text = json_string_value(json_object_get(json_array_get(content, i), "text"));
        if (!text) FAIL(ERR_INPUT, "a part of a message is no text: others are not supported");
        char *longer = realloc(*out, bytes + strlen(text) + 1);
        if (!longer) FAIL(ERR_MEMORY, "no memory for a message");
        *out = longer;
        strcpy(longer + bytes, text);
        bytes += strlen(text);
    }
    return OK;
}

static enum status read_message(const json_t *json, struct chat_message *out, char **text) {
    const char *role = json_string_value(json_object_get(json, "role"));
    if (!role) FAIL(ERR_INPUT, "a message has no role");
    if (strcmp(role, "system") == 0 || strcmp(role, "developer") == 0)
        out->role = ROLE_SYSTEM;
    else if (strcmp(role, "user") == 0)
        out->role = ROLE_USER;
    else if (strcmp(role, "assistant") == 0)
        out->role = ROLE_ASSISTANT;
    else
        FAIL(ERR_INPUT, "the role '%.40s' is none of system, user, assistant", role);
    TRY(read_content(json_object_get(json, "content"), text));
    out->text = *text;
    return OK;
}

static enum status read_messages(const struct service *s, const json_t *json,
                                 struct service_request *r) {
    const json_t *list = NULL;
    TRY(json_read_array((struct json_object){json, in_request}, "messages", &list));
    size_t n = json_array_size(list);
    if (n == 0) FAIL(ERR_INPUT, "messages is missing or empty");
    struct chat_message *messages = calloc(n, sizeof *messages);
    char **texts = calloc(n, sizeof *texts);
    enum status status = OK;
    if (!messages || !texts) FAIL_OR(done, ERR_MEMORY, "no memory for %zu messages", n);
    for (size_t i = 0; i < n; i++)
        TRY_OR(done, read_message(json_array_get(list, i), &messages[i], &texts[i]));
    status = prompt_encode_chat(s->job, messages, (int)n, &r->prompt);
done:
    for (size_t i = 0; texts && i < n; i++) free(texts[i]);
    free(texts);
    free(messages);
    return status;
}

static enum status read_ids(const struct service *s, const json_t *list,
                            struct service_request *r) {
    int64_t n_vocab = s->job->checkpoint.spec.n_vocab;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id >= n_vocab)
            FAIL(ERR_INPUT, "entry %zu of prompt is no token id below %lld", i, (long long)n_vocab);
        TRY(document_add_ids(&r->prompt, &(int32_t){(int32_t)id}, 1));
    }
    return OK;
}

static enum status read_prompt(const struct service *s, const json_t *json,
                               struct service_request *r) {
    const json_t *prompt = json_object_get(json, "prompt");
    if (json_is_array(prompt))
        TRY(read_ids(s, prompt, r));
    else if (json_is_string(prompt))
        TRY(tokenizer_encode(s->job->tokenizer, json_string_value(prompt),
                             json_string_length(prompt), ENCODE_ADD_SPECIALS, &r->prompt));
    if (r->prompt.n == 0) FAIL(ERR_INPUT, "prompt must be a text or a list of token ids");
    return OK;
}

static enum status read_question(const struct service *s, const json_t *json,
                                 struct service_request *r) {
    const struct token_list *tokens = &r->document->text.tokens;
    const char *question = NULL;
    const struct json_object in = {json, in_request};
    TRY(json_read_string(in, "question", &question));
    if (!question || !*question) FAIL(ERR_INPUT, "question is missing or empty");
    if (!(r->question = strdup(question))) FAIL(ERR_MEMORY, "no memory for a question");
    r->n_passage = s->job->options->evidence;
    TRY(json_read_int(in, "evidence", 0, 1000, &r->n_passage));
    TRY(document_add_ids(&r->prompt, s->head.id, s->head.n));
    TRY(document_add_ids(&r->prompt, tokens->id, tokens->n));
    r->document_end = r->prompt.n;
    struct token_list after = {0};
    enum status status = prompt_encode_question(s->job, question, &after);
    if (status == OK) status = document_add_ids(&r->prompt, after.id, after.n);
    token_list_close(&after);
    return status;
}

static enum status read_all(const struct http_request *x, enum dialect dialect,
                            struct service_request *r, bool *streams) {
    json_t *json = NULL;
    TRY(json_read_text(x->body ? x->body : "", x->bytes, in_request, &json));
    enum status status = dialect == DIALECT_CHAT       ? read_messages(x->service, json, r)
                         : dialect == DIALECT_QUESTION ? read_question(x->service, json, r)
                                                       : read_prompt(x->service, json, r);
    if (status == OK) status = read_manner(x->service, json, r);
    if (status == OK)
        status = json_read_bool((struct json_object){json, in_request}, "stream", streams);
    json_decref(json);
    return status;
}

// Takes the caller's use of the document.
static enum MHD_Result ask(struct http_request *x, enum dialect dialect,
                           struct served_document *document) {
    struct service_request *r = request_make();
    bool streams = false;
    if (!r) {
        served_document_release(document);
        return MHD_NO;
    }
    r->document = document;
    enum status status = read_all(x, dialect, r, &streams);
    if (status != OK) {
        request_drop(r);
        return reply_failure(x, status);
    }
    if (!queue_push(&x->service->queue, r)) {
        request_drop(r);
        return reply_error(x, MHD_HTTP_SERVICE_UNAVAILABLE,
                           "%lld requests wait already, or the service stops: ask again later",
                           (long long)x->service->job->options->serve_queue);
    }
    return streams ? reply_stream(x, r, dialect) : reply_whole(x, r, dialect);
}

static enum MHD_Result reply_chat(struct http_request *x) {
    return ask(x, DIALECT_CHAT, NULL);
}

static enum MHD_Result reply_completion(struct http_request *x) {
    return ask(x, DIALECT_COMPLETION, NULL);
}

static enum MHD_Result no_document(const struct http_request *x) {
    return reply_error(x, MHD_HTTP_NOT_FOUND, "there is no document %s", x->id);
}

static enum MHD_Result reply_question(struct http_request *x) {
    struct served_document *document = served_documents_find(&x->service->documents, x->id);
    return document ? ask(x, DIALECT_QUESTION, document) : no_document(x);
}

// The text and its name, from JSON or as they are.
static enum status read_document(struct http_request *x, char **text, size_t *bytes, char **name) {
    const char *type =
        MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_TYPE);
    const char *said = MHD_lookup_connection_value(x->connection, MHD_GET_ARGUMENT_KIND, "name");
    json_t *json = NULL;
    enum status status = OK;
    if (type && strncasecmp(type, "application/json", strlen("application/json")) == 0) {
        const char *content = NULL;
        TRY(json_read_text(x->body ? x->body : "", x->bytes, in_request, &json));
        const struct json_object in = {json, in_request};
        TRY_OR(done, json_read_string(in, "text", &content));
        TRY_OR(done, json_read_string(in, "name", &said));
        if (!content) FAIL_OR(done, ERR_INPUT, "text is missing");
        *text = strdup(content);
    } else {
        *text = x->body ? x->body : strdup("");
        x->body = NULL;
    }
    *name = strdup(said && *said ? said : "document");
    if (!*text || !*name) FAIL_OR(done, ERR_MEMORY, "no memory for a document");
    *bytes = json ? strlen(*text) : x->bytes;
done:
    json_decref(json);
    return status;
}

static enum status add_document(struct http_request *x, struct served_document **out) {
    struct service *s = x->service;
    char *text = NULL, *name = NULL;
    size_t bytes = 0;
    enum status status = read_document(x, &text, &bytes, &name);
    if (status == OK)
        status = service_add_document(s, name, text, bytes, out);
    else
        free(text);
    free(name);
    return status;
}

static enum MHD_Result reply_new_document(struct http_request *x) {
    struct served_document *document = NULL;
    enum status status = add_document(x, &document);
    if (status != OK) return reply_failure(x, status);
    json_t *object = served_document_describe(document);
    served_document_release(document);
    return reply_json(x, MHD_HTTP_CREATED, object);
}

static enum MHD_Result reply_documents(struct http_request *x) {
    return reply_json(x, MHD_HTTP_OK,
                      json_pack("{s:o}", "data", served_documents_list(&x->service->documents)));
}

static enum MHD_Result reply_document(struct http_request *x) {
    struct served_document *document = served_documents_find(&x->service->documents, x->id);
    if (!document) return no_document(x);
    json_t *object = served_document_describe(document);
    served_document_release(document);
    return reply_json(x, MHD_HTTP_OK, object);
}

static enum MHD_Result send_text(const struct http_request *x, const struct document_text *text) {
    size_t mark = (size_t)text->mark_bytes;
    char *whole = malloc(mark + text->bytes + 1);
    if (!whole) return MHD_NO;
    memcpy(whole, "\xef\xbb\xbf", mark);
    memcpy(whole + mark, text->text, text->bytes);
    enum MHD_Result result =
        reply_text(x, MHD_HTTP_OK, "text/plain; charset=utf-8", whole, mark + text->bytes);
    free(whole);
    return result;
}

static enum MHD_Result reply_document_text(struct http_request *x) {
    struct served_document *document = served_documents_find(&x->service->documents, x->id);
    if (!document) return no_document(x);
    enum MHD_Result result =
        document->text.text ? send_text(x, &document->text)
                            : reply_error(x, MHD_HTTP_NOT_FOUND,
                                          "%s is a file of token ids, not of text", document->name);
    served_document_release(document);
    return result;
}

static enum MHD_Result remove_document(struct http_request *x) {
    if (!served_documents_remove(&x->service->documents, x->id)) return no_document(x);
    return reply_json(x, MHD_HTTP_OK, json_pack("{s:s, s:b}", "id", x->id, "deleted", 1));
}

static enum MHD_Result reply_models(struct http_request *x) {
    const struct job *job = x->service->job;
    return reply_json(x, MHD_HTTP_OK,
                      json_pack("{s:s, s:[{s:s, s:s, s:s, s:I}]}", "object", "list", "data", "id",
                                job->options->model_path, "object", "model", "owned_by", "halka",
                                "max_model_len", (json_int_t)x->service->context));
}

static enum MHD_Result reply_health(struct http_request *x) {
    struct service_counts counts = queue_counts(&x->service->queue);
    return reply_json(x, MHD_HTTP_OK,
                      json_pack("{s:s, s:b, s:I}", "status", "ok", "busy", (int)counts.busy,
                                "waiting", (json_int_t)counts.n_waiting));
}

static enum MHD_Result reply_metrics(struct http_request *x) {
    const struct service *s = x->service;
    struct service_counts c = queue_counts(&x->service->queue);
    char text[2048];
    int n = snprintf(text, sizeof text,
                     "# TYPE halka_requests_total counter\n"
                     "halka_requests_total{end=\"answered\"} %lld\n"
                     "halka_requests_total{end=\"given_up\"} %lld\n"
                     "halka_requests_total{end=\"refused\"} %lld\n"
                     "# TYPE halka_tokens_total counter\n"
                     "halka_tokens_total{kind=\"read\"} %lld\n"
                     "halka_tokens_total{kind=\"held\"} %lld\n"
                     "halka_tokens_total{kind=\"generated\"} %lld\n"
                     "# TYPE halka_requests_waiting gauge\nhalka_requests_waiting %lld\n"
                     "# TYPE halka_busy gauge\nhalka_busy %d\n"
                     "# TYPE halka_context_tokens gauge\nhalka_context_tokens %lld\n"
                     "# TYPE halka_ranks gauge\nhalka_ranks %d\n"
                     "# TYPE halka_uptime_seconds counter\nhalka_uptime_seconds %.3f\n",
                     (long long)c.n_answered, (long long)c.n_given_up, (long long)c.n_refused,
                     (long long)c.tokens_read, (long long)c.tokens_held,
                     (long long)c.tokens_generated, (long long)c.n_waiting, c.busy,
                     (long long)s->context, s->job->comm.size, cluster_seconds() - s->job->started);
    return reply_text(x, MHD_HTTP_OK, "text/plain; version=0.0.4", text, (size_t)n);
}

static enum MHD_Result reply_page(struct http_request *x) {
    return reply_text(x, MHD_HTTP_OK, "text/html; charset=utf-8", service_page,
                      strlen(service_page));
}

static const struct route routes[] = {
    {"GET", "/", true, reply_page},
    {"GET", "/health", true, reply_health},
    {"GET", "/metrics", false, reply_metrics},
    {"GET", "/v1/models", false, reply_models},
    {"POST", "/v1/chat/completions", false, reply_chat},
    {"POST", "/v1/completions", false, reply_completion},
    {"GET", "/v1/documents", false, reply_documents},
    {"POST", "/v1/documents", false, reply_new_document},
    {"GET", "/v1/documents/*", false, reply_document},
    {"GET", "/v1/documents/*/text", false, reply_document_text},
    {"DELETE", "/v1/documents/*", false, remove_document},
    {"POST", "/v1/documents/*/questions", false, reply_question},
};

// Whether the path is of that form; its "*" goes to id.
static bool matches(const char *form, const char *path, char id[DIGEST_BYTES]) {
    size_t before = strcspn(form, "*");
    id[0] = '\0';
    if (!form[before]) return strcmp(form, path) == 0;
    if (strncmp(form, path, before) != 0) return false;
    size_t n = strcspn(path + before, "/");
    if (n == 0 || n >= DIGEST_BYTES) return false;
    memcpy(id, path + before, n);
    id[n] = '\0';
    return strcmp(form + before + 1, path + before + n) == 0;
}

const struct route *route_find(const char *method, const char *path, char id[DIGEST_BYTES],
                               bool *other_method) {
    *other_method = false;
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        if (!matches(routes[i].path, path, id)) continue;
        if (strcmp(routes[i].method, method) == 0) return &routes[i];
        *other_method = true;
    }
    return NULL;
}
