#include "kernels/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MESSAGE_BYTES 1024

static _Thread_local char message[MESSAGE_BYTES];
static _Thread_local const char *failed_at = "";
static _Thread_local bool shared;

enum status status_fail(enum status code, const char *where, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    failed_at = where;
    shared = false;
    return code;
}

const char *status_message(void) {
    return message;
}

const char *status_where(void) {
    return failed_at;
}

enum status status_share(enum status code) {
    shared = true;
    return code;
}

bool status_is_shared(void) {
    return shared;
}

enum status status_context(enum status code, const char *format, ...) {
    char inner[MESSAGE_BYTES];
    memcpy(inner, message, sizeof inner);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (n >= 0 && n < MESSAGE_BYTES)
        snprintf(message + n, sizeof message - (size_t)n, ": %.*s", MESSAGE_BYTES - n, inner);
    return code;
}
