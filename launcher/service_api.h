// What a service can be asked; docs/service.md has it with examples.
#ifndef HALKA_LAUNCHER_SERVICE_API_H
#define HALKA_LAUNCHER_SERVICE_API_H

#include "launcher/service_http.h"

//   GET    /                               a page for people, GET /health (both without token)
//   GET    /metrics                        Prometheus' text format
//   GET    /v1/models                      as OpenAI's clients expect it, like the next two
//   POST   /v1/chat/completions            {"messages", "max_tokens", "stream", ...}
//   POST   /v1/completions                 {"prompt": text or ids, ...}
//   GET    /v1/documents                   those that the service holds
//   POST   /v1/documents[?name=NAME]       the text, or JSON {"name", "text"}
//   GET    /v1/documents/ID
//   GET    /v1/documents/ID/text           its bytes, which offsets of evidence count
//   DELETE /v1/documents/ID
//   POST   /v1/documents/ID/questions      {"question", ...} -> an object of results.jsonl
struct route {
    const char *method, *path; // "*" stands for a document's id
    bool is_open;              // needs no token
    enum MHD_Result (*reply)(struct http_request *request);
};
// id: of the path, where it has one. NULL: none; *other_method: there is one for another method.
const struct route *route_find(const char *method, const char *path, char id[DIGEST_BYTES],
                               bool *other_method);

#endif
