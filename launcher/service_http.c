#include "launcher/service_http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher/results.h"
#include "launcher/service_api.h"
#include "model/durable.h"

enum { TOKEN_BYTES = 33, MAX_CONNECTION = 512, IDLE_SECONDS = 60 };

struct service_http {
    struct service *service;
    struct MHD_Daemon *daemon;
    const char *token; // NULL: none is asked for
    char made[TOKEN_BYTES];
    char *path; // OUTPUT/service.json
    int file;   // which holds the lock; -1: not open
    int port;
};

static const char type_json[] = "application/json";

static enum MHD_Result queue_reply(struct MHD_Connection *connection, unsigned code,
                                   const char *type, struct MHD_Response *response) {
    if (!response) return MHD_NO;
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    if (code == MHD_HTTP_UNAUTHORIZED)
        MHD_add_response_header(response, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
    if (code == MHD_HTTP_SERVICE_UNAVAILABLE)
        MHD_add_response_header(response, MHD_HTTP_HEADER_RETRY_AFTER, "10");
    enum MHD_Result result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return result;
}

enum MHD_Result reply_text(const struct http_request *x, unsigned code, const char *type,
                           const char *text, size_t bytes) {
    return queue_reply(x->connection, code, type,
                       MHD_create_response_from_buffer(bytes, (void *)text, MHD_RESPMEM_MUST_COPY));
}

enum MHD_Result reply_json(const struct http_request *x, unsigned code, json_t *object) {
    char *text = object ? json_dumps(object, JSON_REAL_PRECISION(9)) : NULL;
    json_decref(object);
    if (!text) return MHD_NO;
    return queue_reply(x->connection, code, type_json,
                       MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE));
}

enum MHD_Result reply_error(const struct http_request *x, unsigned code, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return reply_json(
        x, code,
        json_pack("{s:{s:o, s:s, s:i}}", "error", "message", json_text(text, strlen(text)), "type",
                  code < 500 ? "invalid_request_error" : "server_error", "code", (int)code));
}

enum MHD_Result reply_failure(const struct http_request *x, enum status status) {
    unsigned code = status == ERR_INPUT || status == ERR_CONFIG ? MHD_HTTP_BAD_REQUEST
                    : status == ERR_CREATE                      ? MHD_HTTP_INSUFFICIENT_STORAGE
                                                                : MHD_HTTP_INTERNAL_SERVER_ERROR;
    return reply_error(x, code, "%s", status_message());
}

bool client_is_gone(struct MHD_Connection *connection) {
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    char byte;
    if (!info) return true;
    ssize_t n = recv(info->connect_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

// In a time that does not tell where they differ.
static bool equal(const char *a, const char *b) {
    size_t n = strlen(a);
    unsigned char differs = strlen(b) != n;
    for (size_t i = 0; i < n && i < strlen(b); i++) differs |= (unsigned char)(a[i] ^ b[i]);
    return !differs;
}

static bool is_allowed(const struct service_http *http, struct MHD_Connection *connection) {
    static const char bearer[] = "Bearer ";
    if (!http->token) return true;
    const char *given =
        MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_AUTHORIZATION);
    if (given && strncasecmp(given, bearer, sizeof bearer - 1) == 0)
        return equal(http->token, given + sizeof bearer - 1);
    given = MHD_lookup_connection_value(connection, MHD_GET_ARGUMENT_KIND, "token");
    return given && equal(http->token, given);
}

// What has come of a request.
struct upload {
    struct http_request request;
    size_t capacity;
    bool too_large;
};

static enum MHD_Result begin(struct service_http *http, struct MHD_Connection *connection,
                             void **user) {
    struct upload *upload = calloc(1, sizeof *upload);
    if (!upload) return MHD_NO;
    upload->request.service = http->service;
    upload->request.connection = connection;
    *user = upload;
    return MHD_YES;
}

static void take(struct upload *upload, const char *data, size_t bytes) {
    struct http_request *x = &upload->request;
    double most = x->service->job->options->serve_upload * (1 << 20);
    if (upload->too_large || (double)(x->bytes + bytes) > most) {
        upload->too_large = true;
        return;
    }
    if (x->bytes + bytes + 1 > upload->capacity) {
        size_t capacity = 2 * upload->capacity + bytes + 1;
        char *body = realloc(x->body, capacity);
        upload->too_large = !body;
        if (!body) return;
        x->body = body;
        upload->capacity = capacity;
    }
    memcpy(x->body + x->bytes, data, bytes);
    x->bytes += bytes;
    x->body[x->bytes] = '\0';
}

static enum MHD_Result dispatch(const struct service_http *http, struct upload *upload,
                                const char *path, const char *method) {
    struct http_request *x = &upload->request;
    const struct route *route;
    char id[DIGEST_BYTES];
    bool other_method = false;
    route = route_find(method, path, id, &other_method);
    if (route && route->is_open) return route->reply(x);
    if (!is_allowed(http, x->connection))
        return reply_error(x, MHD_HTTP_UNAUTHORIZED,
                           "the token is missing or wrong: send 'Authorization: Bearer TOKEN' with "
                           "that of OUTPUT/service.json");
    if (!route && other_method)
        return reply_error(x, MHD_HTTP_METHOD_NOT_ALLOWED, "%s does not take %s", path, method);
    if (!route) return reply_error(x, MHD_HTTP_NOT_FOUND, "there is no %.200s", path);
    if (upload->too_large)
        return reply_error(x, MHD_HTTP_CONTENT_TOO_LARGE,
                           "the request is larger than serve.upload = %g MiB",
                           x->service->job->options->serve_upload);
    x->id = id;
    return route->reply(x);
}

// Called at the beginning, with each part of the body, and at the end.
static enum MHD_Result handle(void *user, struct MHD_Connection *connection, const char *path,
                              const char *method, const char *version, const char *data,
                              size_t *bytes, void **request) {
    struct service_http *http = user;
    (void)version;
    if (!*request) return begin(http, connection, request);
    struct upload *upload = *request;
    if (*bytes == 0) return dispatch(http, upload, path, method);
    take(upload, data, *bytes);
    *bytes = 0;
    return MHD_YES;
}

static void completed(void *user, struct MHD_Connection *connection, void **request,
                      enum MHD_RequestTerminationCode how) {
    struct upload *upload = *request;
    (void)user;
    (void)connection;
    (void)how;
    if (!upload) return;
    free(upload->request.body);
    free(upload);
    *request = NULL;
}

static enum status choose_token(struct service_http *http) {
    const char *given = http->service->job->options->serve_token;
    unsigned char random[(TOKEN_BYTES - 1) / 2];
    http->token = given && strcmp(given, "none") != 0 ? given : NULL;
    if (given) return OK;
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        FAIL(ERR_INTERNAL, "no random bytes for a token: %s", strerror(errno));
    for (size_t i = 0; i < sizeof random; i++) snprintf(http->made + 2 * i, 3, "%02x", random[i]);
    http->token = http->made;
    return OK;
}

static enum status start(struct service_http *http) {
    const struct options *o = http->service->job->options;
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM},
                    *found;
    char port[16];
    snprintf(port, sizeof port, "%lld", (long long)o->serve_port);
    int code = getaddrinfo(o->serve_address, port, &hints, &found);
    if (code != 0)
        FAIL(ERR_CONFIG, "serve.address = %s is no address of this node: %s", o->serve_address,
             gai_strerror(code));
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_POLL;
    if (found->ai_family == AF_INET6) flags |= MHD_USE_IPv6;
    http->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, handle, http, MHD_OPTION_SOCK_ADDR, found->ai_addr,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)MAX_CONNECTION, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)IDLE_SECONDS, MHD_OPTION_NOTIFY_COMPLETED, completed, NULL, MHD_OPTION_END);
    int error = errno;
    freeaddrinfo(found);
    if (!http->daemon)
        FAIL(ERR_CREATE, "cannot listen on %s, port %s: %s (serve.port = 0 takes one that is free)",
             o->serve_address, port, strerror(error));
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_BIND_PORT);
    http->port = info ? info->port : (int)o->serve_port;
    return OK;
}

// Readable by its owner alone, as it tells the token. Locked while the service runs.
static enum status open_file(struct service_http *http) {
    const struct options *o = http->service->job->options;
    TRY(durable_folder(o->output, "output", "output.dir"));
    if (asprintf(&http->path, "%s/service.json", o->output) < 0)
        FAIL(ERR_MEMORY, "no memory for a path");
    http->file = open(http->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (http->file < 0) FAIL(ERR_CREATE, "cannot create %s: %s", http->path, strerror(errno));
    if (flock(http->file, LOCK_EX | LOCK_NB) != 0) {
        close(http->file);
        http->file = -1; // it is not this service's to remove
        FAIL(ERR_CREATE, "%s: another service runs with this output folder: choose another",
             http->path);
    }
    if (fchmod(http->file, 0600) != 0 || ftruncate(http->file, 0) != 0)
        FAIL(ERR_CREATE, "cannot write %s: %s", http->path, strerror(errno));
    return OK;
}

static enum status tell(struct service_http *http) {
    const struct job *job = http->service->job;
    const char *address = job->options->serve_address, *host = job->cluster->host;
    bool any = strcmp(address, "0.0.0.0") == 0 || strcmp(address, "::") == 0;
    const char *name = any ? host : address,
               *format = strchr(name, ':') ? "http://[%s]:%d/" : "http://%s:%d/";
    char url[512];
    snprintf(url, sizeof url, format, name, http->port);
    json_t *object =
        json_pack("{s:s, s:s?, s:s, s:i, s:s}", "url", url, "token", http->token, "host", host,
                  "pid", (int)getpid(), "model", job->options->model_path);
    char *text = object ? json_dumps(object, JSON_INDENT(2)) : NULL;
    json_decref(object);
    if (!text) FAIL(ERR_MEMORY, "no memory for service.json");
    enum status status = durable_write_at(http->file, http->path, text, (int64_t)strlen(text), 0);
    free(text);
    TRY(status);
    fprintf(stderr, "halka: serving at %s%s%s (%s)\n", url, http->token ? "?token=" : "",
            http->token ? http->token : "", http->path);
    return OK;
}

enum status service_http_listen(struct service_http *http) {
    TRY(choose_token(http));
    signal(SIGPIPE, SIG_IGN);
    TRY(start(http));
    return tell(http);
}

enum status service_http_open(struct service *service, struct service_http **out) {
    *out = calloc(1, sizeof **out);
    if (!*out) FAIL(ERR_MEMORY, "no memory for the service");
    (*out)->service = service;
    (*out)->file = -1;
    return open_file(*out);
}

void service_http_close(struct service_http **http) {
    struct service_http *h = *http;
    if (!h) return;
    if (h->daemon) MHD_stop_daemon(h->daemon);
    if (h->file >= 0) {
        unlink(h->path);
        close(h->file);
    }
    free(h->path);
    free(h);
    *http = NULL;
}
