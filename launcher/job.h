// A job: the ranks, the model and what reads it. Opening it is loading and planning, where every
// rank reaches the same agreement; afterwards `working` is set and a failing rank ends the job.
#ifndef HALKA_LAUNCHER_JOB_H
#define HALKA_LAUNCHER_JOB_H

#include "dist/cluster.h"
#include "dist/comm.h"
#include "launcher/documents.h"
#include "launcher/options.h"
#include "launcher/span_file.h"
#include "launcher/vector_head.h"
#include "model/chat.h"
#include "model/session.h"

// What the report tells of a job's sessions, of which only evaluate has several.
struct session_sums {
    int64_t kv_bytes;                 // of the largest, as `resident`
    struct session_resident resident; // where memory is the host's
    int64_t gathered_bytes, expert_rows;
};

struct job {
    const struct options *options;
    const struct cluster *cluster;
    struct comm comm;      // in the backend's memory
    struct comm host_comm; // its `host`; zeroed where memory is the host's
    struct backend backend;
    struct checkpoint checkpoint;
    struct tokenizer *tokenizer;      // NULL: the checkpoint has none
    const struct chat_template *chat; // NULL without tokenizer
    struct document_set documents;
    int64_t around;         // tokens of a sequence besides its document: prompt and longest answer
    struct span_file spans; // of task.passages; rank 0
    struct vector_head vector_head; // of embed and locate
    struct session_options session_options;
    struct memory_plan plan;
    struct session *session;
    char context_options[DIGEST_BYTES]; // of reading.c; "": nothing is kept
    struct session_sums sums;           // of the sessions that are closed
    struct profile profile;
    struct beacon_light *light; // of beacon_files.c; NULL: none
    int64_t tokens_read;        // prompt tokens read by all ranks together ...
    int64_t own_tokens;         // ... and this rank's part of them
    int64_t tokens_generated;
    int64_t tokens_recomputed; // read although they had been read before
    int64_t tokens_restored;   // from store.dir, besides those read
    int64_t tokens_probed;     // of these, computed again to compare
    int64_t longest;           // tokens of the longest sequence so far
    struct {
        int64_t documents, packed; // written; of these in batches with others
        int64_t batches, vectors;
        int64_t longer; // sequences read beyond vector_head.max_tokens
    } embedded;
    int64_t task_bytes; // planned: host memory of the task besides the session's
    double started;     // seconds, cluster_seconds
    int64_t n_thread;   // of the rank that has least
    bool working;
};

enum status job_open_ranks(struct job *job, enum status parsed); // transport and backend
enum status job_open_model(struct job *job);                     // checkpoint, tokenizer, template
enum status job_open_shapes(struct job *job); // for plans: no tensor need be here
// Of so many ranks.
void job_set_session_options(struct job *job, int64_t max_tokens, int n_rank);
// Whether prefill.chunk was left to it and sequences are longer than what it took.
bool job_chose_chunk(const struct job *job);
enum status job_plan(struct job *job); // documents, session options, memory: ERR_MEMORY
// The last two alone: for sequences of up to `longest` tokens, which is the same on every rank.
enum status job_plan_length(struct job *job, int64_t longest);
enum status job_plan_service(struct job *job); // for sequences of up to the whole context
enum status job_open_session(struct job *job);
enum status job_close_session(struct job *job); // accepts a job without one
// With the session that is open.
enum status job_sum_sessions(struct job *job, struct session_sums *out);
void job_print_start(const struct job *job); // on rank 0
void job_close(struct job *job);             // accepts a zeroed struct

struct document_reader job_reader(const struct job *job);
int64_t job_context(const struct job *job); // longest sequence allowed
// Tokens that a sequence with this document (or a window of it) may come to hold: what methods of
// extension that depend on the length are told, whatever else the job reads.
int64_t job_sequence_length(const struct job *job, int document);
// How many of n positions lie beyond those the checkpoint was trained for.
int64_t job_beyond_training(const struct job *job, int64_t n_position);

// The verbs, after job_open_ranks. job->working says whether the ranks agreed on a failure.
enum status verb_run(struct job *job);
enum status verb_plan(struct job *job);
enum status verb_verify(struct job *job);
enum status verb_inspect(struct job *job);
enum status verb_evaluate(struct job *job);
enum status verb_serve(struct job *job);

#endif
