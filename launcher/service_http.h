// The HTTP side of a service (libmicrohttpd): who may ask, what comes in, where it goes. A thread a
// connection, which waits for its answer; rank 0.
#ifndef HALKA_LAUNCHER_SERVICE_HTTP_H
#define HALKA_LAUNCHER_SERVICE_HTTP_H

#include <microhttpd.h>

#include "launcher/service.h"

struct service_http; // opaque
// Takes OUTPUT for this service. ERR_CREATE: another one has it.
enum status service_http_open(struct service *service, struct service_http **out);
// Listens, and writes OUTPUT/service.json: url, token, host, process. ERR_CREATE: the address and
// port cannot be had.
enum status service_http_listen(struct service_http *http);
void service_http_close(struct service_http **http); // accepts NULL in *http

// One request of a connection, when all of it has come.
struct http_request {
    struct service *service;
    struct MHD_Connection *connection;
    const char *id; // the part of the path that names a document, or NULL
    char *body;     // [bytes], with a zero behind it; NULL: none
    size_t bytes;
};

// Answers with a code and an object, whose reference it takes; with text of a type; with a message
// as OpenAI's clients expect it. All return what libmicrohttpd wants.
enum MHD_Result reply_json(const struct http_request *request, unsigned code, json_t *object);
enum MHD_Result reply_text(const struct http_request *request, unsigned code, const char *type,
                           const char *text, size_t bytes);
enum MHD_Result reply_error(const struct http_request *request, unsigned code, const char *format,
                            ...) __attribute__((format(printf, 3, 4)));
// By this thread's last failure.
enum MHD_Result reply_failure(const struct http_request *request, enum status status);

// The client closed its end.
bool client_is_gone(struct MHD_Connection *connection);

#endif
