// One result type for the whole program. The failing line formats the message (FAIL), callers only
// hand it on (TRY); launcher/main.c alone prints it and exits with the code (those of sysexits.h).
#ifndef HALKA_KERNELS_STATUS_H
#define HALKA_KERNELS_STATUS_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

enum status {
    OK = 0,
    ERR_USAGE = 64,    // wrong command line
    ERR_INPUT = 65,    // damaged or unsupported input data
    ERR_NO_INPUT = 66, // input file not found or not readable
    ERR_RANK = 69,     // a rank or a transport failed or did not answer before the deadline
    ERR_INTERNAL = 70, // a defect in Halka or a library it uses
    ERR_MEMORY = 71,   // the plan does not fit memory, or an allocation failed
    ERR_CREATE = 73,   // an output cannot be created
    ERR_IO = 74,       // reading or writing failed midway
    STOPPED = 75,      // stopped at a checkpoint: submit again
    ERR_CONFIG = 78,   // job file or option values that cannot work
};

// Formats the message of this thread's last failure and returns `code`. `where` is "file:line".
enum status status_fail(enum status code, const char *where, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

// The message of this thread's last failure; "" when there was none. Owned by this module.
const char *status_message(void);
// "file:line" of that failure, for --verbose and internal errors.
const char *status_where(void);
// Every rank has this thread's last failure, and comes back with it. By comm_agree alone.
enum status status_share(enum status code);
bool status_is_shared(void);
// Replaces the message by "context: message": for callers that know the file or the document.
enum status status_context(enum status code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#define STATUS_TEXT_(x) #x
#define STATUS_TEXT(x) STATUS_TEXT_(x)
// The code is handed on as a constant, so that compilers see that a failure is never OK.
#define FAIL(code, ...)                                                                            \
    do {                                                                                           \
        (void)status_fail(code, __FILE__ ":" STATUS_TEXT(__LINE__), __VA_ARGS__);                  \
        return code;                                                                               \
    } while (0)
#define TRY(call)                                                                                  \
    do {                                                                                           \
        enum status try_status_ = (call);                                                          \
        if (try_status_ != OK) return try_status_;                                                 \
    } while (0)
// For functions with one cleanup label: sets `status` (a local of the caller) and jumps.
#define TRY_OR(label, call)                                                                        \
    do {                                                                                           \
        status = (call);                                                                           \
        if (status != OK) goto label;                                                              \
    } while (0)
#define FAIL_OR(label, code, ...)                                                                  \
    do {                                                                                           \
        (void)status_fail(code, __FILE__ ":" STATUS_TEXT(__LINE__), __VA_ARGS__);                  \
        status = code;                                                                             \
        goto label;                                                                                \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
