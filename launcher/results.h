// OUTPUT/results.jsonl: one object per (document, task, question), durable as soon as it is there.
// A line's id is the digest of everything that determines it; a job that finds its own lines skips
// them, and lines of another job are refused. Rank 0 only.
#ifndef HALKA_LAUNCHER_RESULTS_H
#define HALKA_LAUNCHER_RESULTS_H

#include <jansson.h>

#include "launcher/job.h"
#include "model/digest.h"

enum { RESULT_ID_BYTES = DIGEST_BYTES };

struct result_line {
    char id[RESULT_ID_BYTES]; // of equal questions, or of a document that is named twice, the same
    bool there;               // an earlier run wrote it, and nobody took it yet
};

struct results {
    int file;   // descriptor, valid while path is set
    char *path; // OUTPUT/results.jsonl
    int n;
    struct result_line *lines; // [n] this job's, sorted
    int64_t n_row;             // rows of vectors.npy up to the last that earlier lines name
};

// Digest of all options that change results, or keys and values; those that name a file by what it
// holds.
enum digest_scope { CHANGES_RESULT, CHANGES_CONTEXT };
enum status options_digest(const struct options *options, enum digest_scope scope,
                           char out[DIGEST_BYTES]);
// Id of one line, with that digest of the job's options; question -1: the task has none.
void result_id(const struct job *job, const char *option_digest, int document, int question,
               char out[RESULT_ID_BYTES]);
// Makes the folder and reads what is there. ids: [n] of this job. ERR_CREATE: the folder cannot be
// written, another job is writing to it, or it holds another job's results; an unfinished last line
// is cut off.
enum status results_open(const struct options *options, char (*ids)[RESULT_ID_BYTES], int n,
                         struct results *out);
void results_close(struct results *results); // accepts a zeroed struct
// Whether an earlier run wrote a line with this id; each such line is taken once.
bool results_take(struct results *results, const char *id);
// Takes the reference. ERR_IO when it cannot be written.
enum status results_write(struct results *results, const char *id, json_t *object);
// The two halves of it: a line is durable after the second.
enum status results_append(struct results *results, const char *id, json_t *object);
enum status results_sync(struct results *results);

// Text as JSON: what is not UTF-8 becomes U+FFFD. Numbers: null when not finite.
json_t *json_text(const char *text, size_t bytes);
json_t *json_number(double x);
// Writes OUTPUT/name durably, through a temporary name.
enum status output_write(const struct options *options, const char *name, const char *text);

#endif
