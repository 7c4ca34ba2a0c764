#include "launcher/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/results.h"

struct rank_record {
    char host[256];
    int64_t tokens, bytes_sent, bytes_received;
    int64_t planned_bytes, peak_bytes; // of the memory that the backend computes in
    struct session_sums sessions;
    char device[64]; // "" where that is the host's
    struct profile profile;
};

static enum status own_record(struct job *job, struct rank_record *out) {
    struct device_memory memory = {0};
    struct backend *backend = &job->backend;
    profile_sample_memory(&job->profile);
    *out = (struct rank_record){.tokens = job->own_tokens,
                                .bytes_sent = job->comm.bytes_sent + job->host_comm.bytes_sent,
                                .bytes_received =
                                    job->comm.bytes_received + job->host_comm.bytes_received,
                                .planned_bytes = job->plan.total,
                                .profile = job->profile};
    memcpy(out->host, job->cluster->host, sizeof out->host);
    memcpy(out->device, backend->device_name, sizeof out->device);
    out->peak_bytes = out->profile.peak_pss_bytes;
    if (backend->ops->device_memory && backend->ops->device_memory(backend, &memory) == OK)
        out->peak_bytes = memory.peak;
    return job_sum_sessions(job, &out->sessions);
}

static const char *precision_name(enum precision precision) {
    return precision == PRECISION_BF16 ? "bf16" : precision == PRECISION_FP32 ? "fp32" : "auto";
}

static const char *index_precision_name(enum index_precision precision) {
    return precision == INDEX_FP8 ? "fp8" : precision == INDEX_BF16 ? "bf16" : "fp32";
}

static const char *pass_name(enum pass pass) {
    return pass == PASS_HALO ? "halo" : pass == PASS_Q ? "Q" : "KV";
}

static const char *layout_name(enum layout layout) {
    return layout == LAYOUT_ZIGZAG ? "zigzag" : "contiguous";
}

static const char *exchange_name(enum exchange exchange) {
    return exchange == EXCHANGE_SCORES ? "scores" : exchange == EXCHANGE_KEYS ? "keys" : "none";
}

// Means of each layer, NaN where it selected nothing; recall NULL where nobody asked.
struct selection_means {
    double *recall, *overlap; // [n_layer] owned
};

static enum status study_selection(struct job *job, struct selection_means *out) {
    if (!job->session_options.study) return OK;
    size_t n = (size_t)job->checkpoint.spec.n_layer;
    out->recall = malloc(n * sizeof *out->recall);
    out->overlap = malloc(n * sizeof *out->overlap);
    if (!out->recall || !out->overlap) FAIL(ERR_MEMORY, "no memory for the report");
    return session_study(job->session, out->recall, out->overlap);
}

static json_t *number_list(const double *values, int n) {
    json_t *array = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(array, json_number(values[i]));
    return array;
}

static json_t *describe_selection(const struct job *job, const struct session_facts *facts,
                                  const struct selection_means *means) {
    const struct model_spec *spec = &job->checkpoint.spec;
    json_t *object = json_object();
    json_object_set_new(object, "top_k", json_integer(model_spec_top_k(spec)));
    json_object_set_new(object, "precision",
                        json_string(index_precision_name(facts->index_precision)));
    json_object_set_new(object, "last_exchange", json_string(exchange_name(facts->last_exchange)));
    if (means->recall) {
        json_object_set_new(object, "recall", number_list(means->recall, spec->n_layer));
        json_object_set_new(object, "overlap", number_list(means->overlap, spec->n_layer));
    }
    return object;
}

static json_t *describe_parts(const struct job *job) {
    json_t *object = json_object();
    json_object_set_new(object, "method", json_string(job->checkpoint.spec.part_method));
    json_object_set_new(object, "parts", json_integer(job->checkpoint.spec.n_part));
    json_object_set_new(object, "context", json_integer(job_context(job)));
    return object;
}

// How positions are turned into rotations, where that is scaled; NULL otherwise.
static json_t *describe_rope(const struct job *job) {
    const struct rope_spec *rope = &job->checkpoint.spec.ropes[0];
    double inv_freq[ROPE_MAX_FACTORS], attention_factor;
    if (job->checkpoint.spec.n_part) return describe_parts(job);
    if (rope->method == ROPE_DEFAULT) return NULL;
    rope_frequencies(rope, 1, inv_freq, &attention_factor);
    json_t *object = json_object();
    json_object_set_new(object, "method", json_string(rope_method_name(rope->method)));
    json_object_set_new(object, "factor", json_number(rope->factor));
    json_object_set_new(object, "original_context", json_number(rope->original_context));
    json_object_set_new(object, "attention_factor", json_number(attention_factor));
    json_object_set_new(object, "context", json_integer(job_context(job)));
    return object;
}

static void print_selection(FILE *out, const struct job *job, const struct session_facts *facts,
                            const struct selection_means *means) {
    const struct model_spec *spec = &job->checkpoint.spec;
    fprintf(out, "  sparse attention: %d tokens a query by %s index keys, last exchange: %s\n",
            model_spec_top_k(spec), index_precision_name(facts->index_precision),
            exchange_name(facts->last_exchange));
    if (!means->recall) return;
    fprintf(out,
            "\nSelection by layer: dense attention's mass on it, and tokens that the layer "
            "before had selected too\n  %-12s %12s %12s\n",
            "layer", "recall", "overlap");
    for (int i = 0; i < spec->n_layer; i++)
        fprintf(out, "  %-12d %12.4f %12.4f\n", i, means->recall[i], means->overlap[i]);
}

struct totals {
    double wall; // seconds of the whole job
    double work; // seconds of rank 0 in reading and answering: all but loading and tokenising
};

static struct totals measure(const struct job *job) {
    const double *seconds = job->profile.seconds;
    double wall = cluster_seconds() - job->started;
    return (struct totals){wall, wall - seconds[PHASE_LOAD] - seconds[PHASE_TOKENIZE]};
}

static json_t *describe_rank(const struct rank_record *r, int rank) {
    json_t *seconds = json_object(), *object = json_object();
    for (int phase = 0; phase < N_PHASE; phase++) {
        json_object_set_new(seconds, phase_name[phase], json_number(r->profile.seconds[phase]));
    }
    json_object_set_new(object, "rank", json_integer(rank));
    json_object_set_new(object, "host", json_text(r->host, strlen(r->host)));
    json_object_set_new(object, "tokens", json_integer(r->tokens));
    json_object_set_new(object, "kv_bytes", json_integer(r->sessions.kv_bytes));
    json_object_set_new(object, "bytes_sent", json_integer(r->bytes_sent));
    json_object_set_new(object, "bytes_received", json_integer(r->bytes_received));
    json_object_set_new(object, "weight_bytes_gathered", json_integer(r->sessions.gathered_bytes));
    json_object_set_new(object, "attention_flop", json_integer(r->profile.attention_flop));
    json_object_set_new(object, "expert_rows", json_integer(r->sessions.expert_rows));
    json_object_set_new(object, "seconds", seconds);
    json_object_set_new(object, "planned_bytes", json_integer(r->planned_bytes));
    json_object_set_new(object, "peak_bytes", json_integer(r->peak_bytes));
    if (!r->device[0]) {
        json_object_set_new(object, "kv_resident_bytes", json_integer(r->sessions.resident.kv));
        json_object_set_new(object, "buffer_resident_bytes",
                            json_integer(r->sessions.resident.buffers));
    } else {
        json_object_set_new(object, "device", json_text(r->device, strlen(r->device)));
        json_object_set_new(object, "host_peak_bytes", json_integer(r->profile.peak_pss_bytes));
    }
    return object;
}

// What an option makes of the network that the checkpoint does not say. NULL: nothing.
static char *approximation(const struct job *job) {
    const struct options *o = job->options;
    char *text = NULL;
    if (o->attention_window == 0) return NULL;
    int n = asprintf(&text,
                     "approximate: tokens see %lld before them and the first %lld, where the "
                     "model was trained to see all",
                     (long long)o->attention_window - 1, (long long)o->attention_sinks);
    return n < 0 ? NULL : text;
}

static void set_prefix(json_t *object, const char *key, const char *prefix) {
    if (prefix) json_object_set_new(object, key, json_text(prefix, strlen(prefix)));
}

static void describe_vectors(json_t *object, const struct job *job) {
    char *approximate = approximation(job);
    if (approximate) json_object_set_new(object, "approximate", json_string(approximate));
    free(approximate);
    if (job->embedded.batches == 0) return;
    const struct vector_head *head = &job->vector_head;
    json_object_set_new(object, "vectors", json_integer(job->embedded.vectors));
    json_object_set_new(object, "vector_elements", json_integer(head->n_out));
    json_object_set_new(object, "pooling", json_string(pooling_name(head->modules.pooling)));
    json_object_set_new(object, "dense_layers", json_integer(head->modules.n_dense));
    json_object_set_new(object, "normalised", json_boolean(head->normalise));
    set_prefix(object, "prefix", head->prefix);
    set_prefix(object, "query_prefix", head->query_prefix);
    if (head->max_tokens > 0) {
        json_object_set_new(object, "max_seq_length", json_integer(head->max_tokens));
        json_object_set_new(object, "longer_sequences", json_integer(job->embedded.longer));
    }
    json_object_set_new(object, "documents_packed", json_integer(job->embedded.packed));
    json_object_set_new(object, "batches", json_integer(job->embedded.batches));
}

static void print_vectors(FILE *out, const struct job *job) {
    char *approximate = approximation(job);
    if (approximate) fprintf(out, "  %s\n", approximate);
    free(approximate);
    if (job->embedded.batches == 0) return;
    fprintf(out, "  %lld vectors of %lld documents, %lld of them packed, in %lld batches\n",
            (long long)job->embedded.vectors, (long long)job->embedded.documents,
            (long long)job->embedded.packed, (long long)job->embedded.batches);
    const struct vector_head *head = &job->vector_head;
    fprintf(out, "  vectors of %lld elements: pooling %s, %d Dense layer%s, length %s\n",
            (long long)head->n_out, pooling_name(head->modules.pooling), head->modules.n_dense,
            head->modules.n_dense == 1 ? "" : "s", head->normalise ? "1" : "as it comes");
    if (head->prefix) fprintf(out, "  documents follow the prompt '%s'\n", head->prefix);
    if (head->query_prefix) fprintf(out, "  questions follow '%s'\n", head->query_prefix);
    if (job->embedded.longer > 0)
        fprintf(out,
                "  read whole though longer than the %lld tokens after which sentence-transformers "
                "cuts (max_seq_length): %lld sequences of up to %lld tokens\n",
                (long long)head->max_tokens, (long long)job->embedded.longer,
                (long long)job->longest);
}

static enum status write_json(const struct job *job, const struct rank_record *records,
                              const struct selection_means *means) {
    struct session_facts facts;
    struct totals totals = measure(job);
    session_get_facts(job->session, &facts);
    json_t *object = json_object(), *ranks = json_array();
    for (int rank = 0; rank < job->comm.size; rank++) {
        json_array_append_new(ranks, describe_rank(&records[rank], rank));
    }
    json_object_set_new(object, "documents", json_integer(job->documents.n));
    json_object_set_new(object, "tokens_read", json_integer(job->tokens_read));
    json_object_set_new(object, "tokens_generated", json_integer(job->tokens_generated));
    json_object_set_new(object, "recomputed_tokens", json_integer(job->tokens_recomputed));
    json_object_set_new(object, "restored_tokens", json_integer(job->tokens_restored));
    json_object_set_new(object, "probed_tokens", json_integer(job->tokens_probed));
    json_object_set_new(object, "tokens_beyond_training",
                        json_integer(job_beyond_training(job, job->longest)));
    json_object_set_new(object, "seconds", json_number(totals.wall));
    json_object_set_new(object, "tokens_per_second",
                        json_number((double)job->tokens_read / totals.work));
    json_object_set_new(object, "precision", json_string(precision_name(facts.precision)));
    json_object_set_new(object, "kv_precision", json_string(precision_name(facts.kv_precision)));
    json_object_set_new(object, "layout", json_string(layout_name(facts.layout.layout)));
    json_object_set_new(object, "last_pass", json_string(pass_name(facts.last_pass)));
    if (facts.layout.zigzag_s > 0)
        json_object_set_new(object, "layout_seconds",
                            json_pack("{s:f,s:f}", "zigzag", facts.layout.zigzag_s, "contiguous",
                                      facts.layout.contiguous_s));
    if (facts.windows)
        json_object_set_new(object, "window_pass", json_string(pass_name(facts.window_pass)));
    if (facts.indexed) json_object_set_new(object, "dsa", describe_selection(job, &facts, means));
    json_t *rope = describe_rope(job);
    if (rope) json_object_set_new(object, "rope", rope);
    json_object_set_new(object, "backend", json_string(job->backend.ops->name));
    json_object_set_new(object, "transport", json_string(job->comm.ops->name));
    describe_vectors(object, job);
    json_object_set_new(object, "ranks", ranks);
    char *text = json_dumps(object, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(object);
    if (!text) FAIL(ERR_MEMORY, "no memory for report.json");
    enum status status = output_write(job->options, "report.json", text);
    free(text);
    return status;
}

// One row of the table: least, mean and most over the ranks, and the share of the whole time.
static void print_row(FILE *out, const char *name, const double *values, int n, double wall) {
    double least = INFINITY, most = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) {
        if (values[i] < least) least = values[i];
        if (values[i] > most) most = values[i];
        sum += values[i];
    }
    fprintf(out, "  %-12s %12.3f %12.3f %12.3f", name, least, sum / n, most);
    if (wall > 0) fprintf(out, " %8.1f %%", 100 * sum / n / wall);
    fputc('\n', out);
}

static void print_phases(FILE *out, const struct rank_record *records, int n, double wall) {
    double values[n], unaccounted[n];
    for (int rank = 0; rank < n; rank++) unaccounted[rank] = wall;
    fprintf(out, "\nSeconds by phase over %d ranks\n  %-12s %12s %12s %12s %10s\n", n, "phase",
            "least", "mean", "most", "of all");
    for (int phase = 0; phase < N_PHASE; phase++) {
        for (int rank = 0; rank < n; rank++) {
            values[rank] = records[rank].profile.seconds[phase];
            unaccounted[rank] -= values[rank];
        }
        print_row(out, phase_name[phase], values, n, wall);
    }
    print_row(out, "unaccounted", unaccounted, n, wall);
}

static void print_loads(FILE *out, const struct rank_record *records, int n) {
    const double mib = 1 << 20;
    enum { N_COLUMN = 9 };
    double columns[N_COLUMN][n];
    static const char *const names[N_COLUMN] = {"tokens",      "Gflop att.", "expert rows",
                                                "MiB KV",      "MiB sent",   "MiB recv.",
                                                "MiB weights", "MiB plan",   "MiB peak"};
    for (int rank = 0; rank < n; rank++) {
        const struct rank_record *r = &records[rank];
        columns[0][rank] = (double)r->tokens;
        columns[1][rank] = (double)r->profile.attention_flop * 1e-9;
        columns[2][rank] = (double)r->sessions.expert_rows;
        columns[3][rank] = (double)r->sessions.kv_bytes / mib;
        columns[4][rank] = (double)r->bytes_sent / mib;
        columns[5][rank] = (double)r->bytes_received / mib;
        columns[6][rank] = (double)r->sessions.gathered_bytes / mib; // of those received
        columns[7][rank] = (double)r->planned_bytes / mib;
        columns[8][rank] = (double)r->peak_bytes / mib;
    }
    fprintf(out, "\nWork and memory by rank\n  %-12s %12s %12s %12s\n", "", "least", "mean",
            "most");
    for (int i = 0; i < N_COLUMN; i++) print_row(out, names[i], columns[i], n, 0);
}

static enum status write_text(const struct job *job, const struct rank_record *records,
                              const struct selection_means *means) {
    struct session_facts facts;
    struct totals totals = measure(job);
    char *text = NULL;
    size_t bytes;
    session_get_facts(job->session, &facts);
    FILE *out = open_memstream(&text, &bytes);
    if (!out) FAIL(ERR_MEMORY, "no memory for report.txt");
    fprintf(out, "Halka read %lld tokens of %d document%s and generated %lld in %.2f s\n",
            (long long)job->tokens_read, job->documents.n, job->documents.n == 1 ? "" : "s",
            (long long)job->tokens_generated, totals.wall);
    fprintf(out, "  %.1f tokens/s read and generated, without loading and tokenising (%.2f s)\n",
            (double)(job->tokens_read + job->tokens_generated) / totals.work, totals.work);
    fprintf(out, "  products %s, K/V %s, layout %s, last prefill by pass-%s, threads per rank %d\n",
            precision_name(facts.precision), precision_name(facts.kv_precision),
            layout_name(facts.layout.layout), pass_name(facts.last_pass), job->cluster->n_thread);
    if (facts.layout.zigzag_s > 0)
        fprintf(out,
                "  layout chosen: attention takes about %.3g s by zigzag, %.3g s by contiguous "
                "shards\n",
                facts.layout.zigzag_s, facts.layout.contiguous_s);
    if (facts.windows)
        fprintf(out, "  layers of a window by pass-%s\n", pass_name(facts.window_pass));
    fprintf(out, "  %lld tokens were read again\n", (long long)job->tokens_recomputed);
    if (job->options->store)
        fprintf(out, "  %lld tokens were restored from %s, %lld of them computed to compare\n",
                (long long)job->tokens_restored, job->options->store,
                (long long)job->tokens_probed);
    int64_t beyond = job_beyond_training(job, job->longest);
    if (beyond > 0) {
        fprintf(out, "  up to %lld positions lie beyond the %lld that the model was trained for\n",
                (long long)beyond, (long long)job->checkpoint.spec.context);
    }
    const struct rope_spec *rope = &job->checkpoint.spec.ropes[0];
    if (job->checkpoint.spec.n_part)
        fprintf(out, "  positions by %s, in %d parts, for contexts of %lld tokens\n",
                job->checkpoint.spec.part_method, job->checkpoint.spec.n_part,
                (long long)job_context(job));
    else if (rope->method != ROPE_DEFAULT)
        fprintf(out, "  positions by %s, factor %g, for contexts of %lld tokens\n",
                rope_method_name(rope->method), rope->factor, (long long)job_context(job));
    print_vectors(out, job);
    if (facts.indexed) print_selection(out, job, &facts, means);
    print_phases(out, records, job->comm.size, totals.wall);
    print_loads(out, records, job->comm.size);
    fclose(out);
    enum status status = output_write(job->options, "report.txt", text);
    free(text);
    return status;
}

enum status report_write(struct job *job) {
    int size = job->comm.size;
    enum status status = OK;
    struct comm *host = comm_host(&job->comm);
    struct rank_record own, *records = malloc((size_t)size * sizeof *records);
    int64_t *bytes = malloc((size_t)size * sizeof *bytes);
    struct selection_means means = {NULL, NULL};
    beacon_begin(job->profile.beacon, &(struct beacon_task){.activity = ACTIVITY_REPORTING});
    if (!records || !bytes) FAIL_OR(done, ERR_MEMORY, "no memory for the report");
    TRY_OR(done, own_record(job, &own));
    for (int rank = 0; rank < size; rank++) bytes[rank] = sizeof own;
    TRY_OR(done, host->ops->all_gather(host, &own, records, bytes));
    TRY_OR(done, study_selection(job, &means));
    if (job->comm.rank == 0) {
        TRY_OR(done, write_json(job, records, &means));
        TRY_OR(done, write_text(job, records, &means));
    }
done:
    free(means.overlap);
    free(means.recall);
    free(bytes);
    free(records);
    return status;
}
