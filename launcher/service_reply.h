// Answers of a service as its clients read them: at once, or token by token (server-sent events).
// Rank 0, the thread of the connection.
#ifndef HALKA_LAUNCHER_SERVICE_REPLY_H
#define HALKA_LAUNCHER_SERVICE_REPLY_H

#include "launcher/service_http.h"

enum dialect { DIALECT_QUESTION, DIALECT_CHAT, DIALECT_COMPLETION };

// Waits for the answer to a request that is in the queue, and takes it.
enum MHD_Result reply_whole(const struct http_request *x, struct service_request *request,
                            enum dialect dialect);
enum MHD_Result reply_stream(const struct http_request *x, struct service_request *request,
                             enum dialect dialect);

#endif
