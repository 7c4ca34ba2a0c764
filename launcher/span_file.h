// A file of spans, one a line: "START END", or a JSON object with "start", "end" and, where it is
// for one document only, "document" (the name as the job gives it). END is one past the last.
#ifndef HALKA_LAUNCHER_SPAN_FILE_H
#define HALKA_LAUNCHER_SPAN_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "model/digest.h"

struct span_line {
    int64_t begin, end; // 0 <= begin < end
    char *document;     // owned; NULL: of every document
    int line;           // of the file, from 1
};

struct span_file {
    char *name; // for messages; NULL: no file was read
    int64_t n, capacity;
    struct span_line *lines;   // owned
    char digest[DIGEST_BYTES]; // of its bytes
};

// Close it even after a failure. ERR_NO_INPUT: not there; ERR_INPUT: a line is no span.
enum status span_file_open(const char *path, struct span_file *out);
enum status span_file_parse(const char *text, size_t bytes, const char *name,
                            struct span_file *out);
void span_file_close(struct span_file *file); // accepts a zeroed struct

#endif
