// Every option of the program: one table (option_table.c) of path, type, unit, default, range and
// help. The job file, --set, the shorthand flags, --help and the start-up print all come from it.
// struct options is plain data; only options.c knows libconfig and the environment.
#ifndef HALKA_LAUNCHER_OPTIONS_H
#define HALKA_LAUNCHER_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "kernels/status.h"

struct string_list {
    int n;
    char **items; // owned
};
enum status string_list_add(struct string_list *list, const char *text);
void string_list_close(struct string_list *list); // accepts a zeroed struct

enum verb {
    VERB_NONE,
    VERB_RUN,
    VERB_PLAN,
    VERB_VERIFY,
    VERB_INSPECT,
    VERB_EVALUATE,
    VERB_SERVE,
    N_VERB
};
enum task_kind { TASK_SCORE, TASK_ANSWER, TASK_EMBED, TASK_LOCATE };
enum layout_wish { LAYOUT_WISH_AUTO, LAYOUT_WISH_ZIGZAG, LAYOUT_WISH_CONTIGUOUS };
enum truth_wish { TRUTH_AUTO, TRUTH_YES, TRUTH_NO };
enum weights_wish { WEIGHTS_AUTO, WEIGHTS_REPLICATED, WEIGHTS_SHARDED };
enum attention_wish { ATTENTION_WISH_AUTO, ATTENTION_WISH_DENSE, ATTENTION_WISH_DSA };
enum transport_wish {
    TRANSPORT_AUTO,
    TRANSPORT_SELF,
    TRANSPORT_MPI,
    TRANSPORT_MPI_STAGED,
    TRANSPORT_NCCL
};

// A choice holds the index of its word, which is the value of the enum named beside it.
struct options {
    enum verb verb;
    bool help, version, verbose, check_config, overwrite;
    char *job_file;     // NULL: none
    char *inspect_path; // of `inspect`

    char *model_path;
    int64_t model_context; // 0: the checkpoint's
    char *indexer_path;    // NULL: none

    struct string_list documents; // paths, globs, "-"
    struct string_list token_files;
    char *document_list;
    int64_t window, stride; // tokens; 0: none, half the window

    int task; // enum task_kind
    struct string_list questions;
    int64_t max_tokens;
    double temperature, top_p, min_p;
    int chat_template; // enum chat_family
    bool token_logprobs;
    int64_t evidence;
    int pooling;       // enum pooling
    int normalise;     // enum truth_wish
    char *passages;    // "document", "paragraphs" or a file; NULL: by the task
    int span_unit;     // enum span_unit
    int late_chunking; // enum truth_wish
    int64_t batch_tokens;
    char *prompt, *prefix, *query_prefix; // NULL: as the model says

    char *output;

    int precision, kv_precision; // enum precision
    int backend;                 // enum backend_kind
    int isa;                     // enum isa
    int transport;               // enum transport_wish
    int64_t threads;             // 0: this rank's share of the cores
    int64_t seed;
    double deadline, max_seconds;              // seconds; 0: no limit
    int attention_kind;                        // enum attention_wish
    int64_t attention_window, attention_sinks; // tokens; 0: the checkpoint's, none
    int64_t top_k;                             // 0: the checkpoint's
    int index_precision;                       // enum index_precision
    int exchange;                              // enum exchange
    bool study;
    int extension;                             // enum extension_method
    double extension_factor, original_context; // 0: not given, as in what follows
    double beta_fast, beta_slow, attention_factor, low_freq_factor, high_freq_factor;
    int64_t extension_group, extension_neighbours, extension_chunk;
    int64_t extension_sinks, extension_window;
    char *extension_factors; // NULL: the checkpoint's
    int layout;              // enum layout_wish
    int weights;             // enum weights_wish
    int64_t chunk;           // tokens; 0: the whole prompt

    char *store;        // NULL: nothing is kept
    double store_every; // seconds; 0: only what was read to its end

    char *evaluate_lengths, *evaluate_depths, *evaluate_families; // words with commas
    struct string_list evaluate_methods;
    int64_t evaluate_samples, evaluate_perplexity, evaluate_bin;

    char *serve_address, *serve_token; // token NULL: a random one
    int64_t serve_port;                // 0: any that is free
    int64_t serve_queue;               // requests that wait
    double serve_upload;               // MiB

    int64_t plan_tokens, plan_ranks; // 0: the documents', this job's
    double plan_memory;              // GB of a rank; 0: not said

    unsigned char source[128]; // enum option_source, by row of the table
};

enum option_source { SOURCE_DEFAULT, SOURCE_JOB_FILE, SOURCE_COMMAND_LINE };
enum option_type {
    OPTION_STRING,
    OPTION_LIST,
    OPTION_INT,
    OPTION_REAL,
    OPTION_BOOL,
    OPTION_CHOICE
};
struct option {
    const char *path;
    enum option_type type;
    const char *unit;
    const char *initial; // default, as --set would take it; NULL: unset
    double least, most;  // numbers
    const char *choices; // "auto|fp32": words in the order of the enum
    const char *later;   // words that are known but not in this version
    const char *help;
    size_t offset;        // of the field
    const char *flag;     // shorthand, or NULL
    bool changes_result;  // part of a result's identity
    bool changes_context; // and of that of the keys and values of given tokens
    bool is_file;         // a path: what the file holds is that part, wherever it lies
};
extern const struct option option_table[];
extern const int n_option;

// Fills `out` from argv; close it even after a failure. ERR_USAGE: a command line that cannot be
// understood; ERR_CONFIG: a job file or a value that cannot work; ERR_NO_INPUT: no such job file.
enum status options_parse(int argc, char **argv, struct options *out);
void options_close(struct options *options); // accepts a zeroed struct

// The parts of options_parse.
enum status options_set_defaults(struct options *out);
enum status options_read_job_file(struct options *options, const char *path);
enum status options_read_job_text(struct options *options, const char *text, const char *name);
// `origin` is for messages: "--set" or "FILE:LINE".
enum status options_set(struct options *options, const char *path, const char *value,
                        enum option_source source, const char *origin);
enum status options_check(const struct options *options);

// NULL when absent; nearest never is. Distance: insertions, deletions, substitutions, swaps.
const struct option *option_find(const char *path);
const struct option *option_nearest(const char *path);
void option_nearest_group(const char *path, char *group, size_t bytes); // "model" for "modle"
int edit_distance(const char *a, const char *b);
// The value as text, into `text` of `bytes`.
void option_format(const struct options *options, const struct option *option, char *text,
                   size_t bytes);
const char *verb_name(enum verb verb);
bool verb_writes(enum verb verb); // to an output folder, and stops by a signal
bool options_name_documents(const struct options *options);

// Whether this process prints what needs no ranks. Launchers number the processes of a job in the
// environment, which can be read before MPI starts.
bool options_process_prints(void);
// Whether srun started this process, rather than mpirun or a shell.
bool options_process_is_step(void);
void options_print_help(FILE *out, enum verb verb);
void options_print_changed(FILE *out, const struct options *options); // values other than defaults

#endif
