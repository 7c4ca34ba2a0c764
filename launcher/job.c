// Loading and planning: each step is agreed on by all ranks before the next.
#include "launcher/job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/embed.h"
#include "launcher/estimate.h"
#include "launcher/extension.h"
#include "launcher/prompt.h"
#include "model/indexer.h"

enum {
    SERVICE_CHUNK = 4096,  // tokens read at once where prefill.chunk says nothing
    SERVICE_FORGET = 8192, // of a request that the next one does not share
};

// What ranks agree by. It carries the data as well, unless that is on devices.
static enum status open_host_comm(struct job *job) {
    enum transport_wish wish = (enum transport_wish)job->options->transport;
    bool alone = job->cluster->size == 1;
    if (wish == TRANSPORT_SELF && !alone) {
        FAIL(ERR_CONFIG, "run.transport = self is for one rank, and this job has %d: use mpi",
             job->cluster->size);
    }
    if (alone && wish != TRANSPORT_MPI) return comm_self_open(&job->comm, NULL);
    return comm_mpi_open(&job->comm, job->options->deadline);
}

static enum status open_backend(struct job *job) {
    const struct options *o = job->options;
    int n_device = backend_device_count((enum backend_kind)o->backend);
    TRY(backend_open(
        &(struct backend_options){.kind = (enum backend_kind)o->backend,
                                  .isa = (enum isa)o->isa,
                                  .n_thread = job->cluster->n_thread,
                                  .device = n_device ? job->cluster->local_rank % n_device : 0},
        &job->backend));
    if (job->backend.memory == MEMORY_HOST && o->transport > TRANSPORT_MPI) {
        FAIL(ERR_CONFIG,
             "run.transport = %s is for devices, and backend %s has none: use auto or mpi",
             o->transport == TRANSPORT_NCCL ? "nccl" : "mpi_staged", job->backend.ops->name);
    }
    return OK;
}

static enum status open_device_comm(struct job *job) {
    struct comm *host = &job->host_comm;
    const struct options *o = job->options;
    enum transport_wish wish = (enum transport_wish)o->transport;
    if (wish == TRANSPORT_AUTO && host->size == 1) wish = TRANSPORT_SELF;
    if (wish == TRANSPORT_AUTO) {
        bool distinct;
        TRY(comm_devices_distinct(host, &job->backend, &distinct));
        wish = distinct ? TRANSPORT_NCCL : TRANSPORT_MPI_STAGED;
    }
    if (wish == TRANSPORT_NCCL) return comm_nccl_open(&job->comm, host, &job->backend, o->deadline);
    if (wish == TRANSPORT_MPI_STAGED)
        return comm_mpi_staged_open(&job->comm, host, &job->backend, o->deadline);
    if (wish == TRANSPORT_SELF) {
        TRY(comm_self_open(&job->comm, &job->backend));
        job->comm.host = host;
        return OK;
    }
    if (!comm_mpi_reaches_devices())
        FAIL(ERR_CONFIG,
             "run.transport = mpi needs an MPI library built for the memory of backend "
             "%s, and this one is not: use auto or mpi_staged",
             job->backend.ops->name);
    return comm_mpi_device_open(&job->comm, host, &job->backend, o->deadline);
}

// A rank whose node shows no device would otherwise wait for transports that others do not open.
static enum status check_places(struct job *job) {
    int64_t on_device = job->backend.memory == MEMORY_DEVICE, all = on_device;
    TRY(job->comm.ops->all_reduce(&job->comm, &all, 1, REDUCE_SUM_I64));
    if (all != 0 && all != job->comm.size)
        FAIL(ERR_CONFIG, "%lld of %d ranks found a GPU: set run.backend to cuda or cpu for all",
             (long long)all, job->comm.size);
    return OK;
}

enum status job_open_ranks(struct job *job, enum status parsed) {
    job->started = cluster_seconds();
    TRY(open_host_comm(job));
    TRY(comm_agree(&job->comm, parsed));
    cluster_pin_threads(job->cluster);
    job->n_thread = job->cluster->n_thread;
    TRY(job->comm.ops->all_reduce(&job->comm, &job->n_thread, 1, REDUCE_MIN_I64));
    TRY(comm_agree(&job->comm, open_backend(job)));
    TRY(comm_agree(&job->comm, check_places(job)));
    if (job->backend.memory == MEMORY_HOST) return OK;
    job->host_comm = job->comm;
    job->comm = (struct comm){0};
    return comm_agree(&job->host_comm, open_device_comm(job));
}

void job_print_start(const struct job *job) {
    const struct cluster *cluster = job->cluster;
    int n_thread = cluster->n_thread;
    if (job->comm.rank != 0) return;
    bool device = job->backend.memory == MEMORY_DEVICE;
    fprintf(stderr, "halka: %d rank%s, %d thread%s each, backend %s%s%s%s, transport %s\n",
            job->comm.size, job->comm.size == 1 ? "" : "s", n_thread, n_thread == 1 ? "" : "s",
            job->backend.ops->name, device ? " (" : "", job->backend.device_name, device ? ")" : "",
            job->comm.ops->name);
    options_print_changed(stderr, job->options);
    if (cluster->cores_idle) {
        fprintf(stderr,
                "halka: warning: this job may not use all %d cores of %s: give mpirun "
                "--bind-to none, or more ranks or cores\n",
                cluster->node_core, cluster->host);
    }
}

// Which layers select, and how many tokens.
static enum status open_indexer(struct job *job) {
    const struct options *o = job->options;
    struct model_spec *spec = &job->checkpoint.spec;
    if (o->indexer_path)
        TRY(indexer_attach(o->indexer_path, job->comm.rank == 0, &job->checkpoint));
    bool has_indexer = model_spec_top_k(spec) > 0;
    if (o->attention_kind == ATTENTION_WISH_DSA && !has_indexer)
        FAIL(ERR_CONFIG,
             "attention.kind = dsa needs an indexer, and %s has none: set model.indexer",
             o->model_path);
    if (o->top_k > 0 && !has_indexer)
        FAIL(ERR_CONFIG, "dsa.top_k is set, but %s has no indexer: set model.indexer",
             o->model_path);
    if (o->top_k > job_context(job))
        FAIL(ERR_CONFIG, "dsa.top_k = %lld exceeds the context of %lld tokens", (long long)o->top_k,
             (long long)job_context(job));
    if (o->top_k > 0) model_spec_set_top_k(spec, (int)o->top_k);
    return OK;
}

// What the options ask of the network.
static enum status open_network(struct job *job) {
    const struct options *o = job->options;
    struct model_spec *spec = &job->checkpoint.spec;
    if (!spec->causal && (o->task == TASK_SCORE || o->task == TASK_ANSWER))
        FAIL(ERR_CONFIG,
             "%s is an encoder (%s), which predicts no next token: use --task embed or locate",
             o->model_path, spec->architecture);
    TRY(open_indexer(job));
    struct extension extension = extension_from_options(o);
    TRY(extension_apply(&extension, o->model_path, spec));
    if (o->attention_window > 0)
        TRY(model_spec_set_window(spec, o->attention_window, o->attention_sinks));
    return OK;
}

static enum status open_model(struct job *job) {
    const char *path = job->options->model_path;
    enum task_kind task = (enum task_kind)job->options->task;
    TRY(checkpoint_open(path, &job->checkpoint));
    TRY(open_network(job));
    if (task == TASK_EMBED || task == TASK_LOCATE)
        TRY(vector_head_open(job->options, &job->checkpoint, &job->vector_head));
    TRY(tokenizer_open(job->checkpoint.folder, job->checkpoint.gguf, &job->tokenizer));
    if (job->tokenizer) {
        job->chat =
            chat_template_choose(job->tokenizer, (enum chat_family)job->options->chat_template);
    } else if (task == TASK_ANSWER || task == TASK_LOCATE) {
        FAIL(ERR_INPUT, "%s has no tokenizer (tokenizer.json), which task.kind = %s needs", path,
             task == TASK_ANSWER ? "answer" : "locate");
    }
    return OK;
}

enum status job_open_model(struct job *job) {
    double begun = profile_begin(&job->profile, PHASE_LOAD);
    TRY(comm_agree(&job->comm, open_model(job)));
    profile_end(&job->profile, PHASE_LOAD, begun);
    return OK;
}

static enum status open_shapes(struct job *job) {
    TRY(checkpoint_open_shapes(job->options->model_path, &job->checkpoint));
    return open_network(job);
}

enum status job_open_shapes(struct job *job) {
    return comm_agree(&job->comm, open_shapes(job));
}

struct document_reader job_reader(const struct job *job) {
    return (struct document_reader){.tokenizer = job->tokenizer,
                                    .n_vocab = job->checkpoint.spec.n_vocab,
                                    .encode_flags = prompt_document_flags(job->options),
                                    .prefix = job->vector_head.prefix};
}

int64_t job_context(const struct job *job) {
    int64_t wanted = job->options->model_context, reach = job->checkpoint.spec.reach;
    return wanted > 0 ? wanted : reach > 0 ? reach : job->checkpoint.spec.context;
}

int64_t job_beyond_training(const struct job *job, int64_t n_position) {
    int64_t beyond = n_position - job->checkpoint.spec.context;
    return beyond > 0 ? beyond : 0;
}

// Tokens that one sequence needs for this document.
static enum status measure_document(const struct job *job, const struct document *document,
                                    int64_t around, int64_t *out) {
    const struct options *o = job->options;
    int64_t context = job_context(job), n = document->n_token + around;
    bool windows = o->task == TASK_SCORE && o->window > 0;
    if (windows && n > o->window) n = o->window;
    if (n > context && windows) {
        FAIL(ERR_CONFIG,
             "document.window = %lld is more than the model's context of %lld tokens: "
             "make it smaller, or set model.context",
             (long long)n, (long long)context);
    }
    if (n > context) {
        const char *advice = o->task == TASK_SCORE
                                 ? "set document.window to read it in windows, or "
                                   "extension.method or model.context to lift the limit"
                                 : "set extension.method or model.context to lift the limit";
        FAIL(ERR_INPUT, "%s needs %lld tokens%s but the model's context is %lld: %s",
             document->name, (long long)n, around ? " with prompt and answer" : "",
             (long long)context, advice);
    }
    *out = n;
    return OK;
}

static enum status measure_documents(struct job *job, int64_t *longest) {
    struct document_reader reader = job_reader(job);
    *longest = 1;
    if (job->options->task == TASK_EMBED || job->options->task == TASK_LOCATE)
        return embed_plan(job, longest, &job->task_bytes);
    TRY(document_set_open(job->options, &reader, &job->documents));
    if (job->options->task == TASK_ANSWER) TRY(prompt_tokens_around(job, &job->around));
    for (int i = 0; i < job->documents.n; i++) {
        int64_t n;
        TRY(measure_document(job, &job->documents.items[i], job->around, &n));
        if (n > *longest) *longest = n;
    }
    return OK;
}

static enum status measure_plan(struct job *job) {
    TRY(session_plan(&job->checkpoint, &job->backend, job->comm.size, job->cluster->local_size,
                     &job->session_options, &job->plan));
    int64_t head = vector_head_bytes(&job->vector_head); // of rank 0
    job->plan.tables += job->task_bytes;
    job->plan.activations += head;
    job->plan.total += head + (job->backend.memory == MEMORY_HOST ? job->task_bytes : 0);
    return OK;
}

// What this rank may use of its device, which it may share with others of its node; 0 on hosts.
static enum status measure_device(struct job *job, int64_t *share) {
    struct comm *host = comm_host(&job->comm);
    struct device_memory memory;
    bool distinct;
    *share = 0;
    if (job->backend.memory == MEMORY_HOST) return OK;
    TRY(comm_devices_distinct(host, &job->backend, &distinct));
    TRY(comm_agree(host, job->backend.ops->device_memory(&job->backend, &memory)));
    int n_device = backend_device_count((enum backend_kind)job->options->backend);
    int n_here = job->cluster->local_size;
    if (n_device < 1) n_device = 1; // one that is imitated
    *share = memory.available / (distinct ? 1 : (n_here + n_device - 1) / n_device);
    return OK;
}

static enum status check_device(const struct job *job, int64_t share) {
    if (job->plan.total <= share) return OK;
    FAIL(ERR_MEMORY,
         "the plan needs %.2f GiB of a device where a rank may use %.2f GiB: use more ranks, "
         "%sor a smaller prefill.chunk or document",
         (double)job->plan.total / (1 << 30), (double)share / (1 << 30),
         job->session_options.sharded ? "" : "partition.weights = sharded, ");
}

static enum status check_node(const struct job *job) {
    int64_t node = job->plan.total * job->cluster->local_size;
    int64_t available = cluster_available_bytes();
    if (available <= 0 || node <= available) return OK;
    FAIL(ERR_MEMORY,
         "the plan needs %.2f GiB on this node (%d ranks of %.2f GiB) and %.2f GiB "
         "are available: use more nodes, or a smaller prefill.chunk or document",
         (double)node / (1 << 30), job->cluster->local_size, (double)job->plan.total / (1 << 30),
         (double)available / (1 << 30));
}

static enum status check_plan(struct job *job, int64_t device_share) {
    TRY(measure_plan(job));
    return device_share ? check_device(job, device_share) : check_node(job);
}

// Shards where some rank's device cannot hold all weights. The ranks of a host share one copy,
// whose pages the system can drop.
static enum status choose_weights(struct job *job, int64_t device_share) {
    struct comm *host = comm_host(&job->comm);
    if (job->options->weights != WEIGHTS_AUTO || job->backend.memory == MEMORY_HOST) return OK;
    TRY(comm_agree(host, measure_plan(job)));
    int64_t lacking = job->plan.total > device_share;
    TRY(host->ops->all_reduce(host, &lacking, 1, REDUCE_MAX_I64));
    job->session_options.sharded = lacking && host->size > 1;
    return OK;
}

// By which `auto` chooses; zeroed where the layout is given.
static struct attention_rates layout_rates(const struct job *job) {
    if (job->options->layout != LAYOUT_WISH_AUTO) return (struct attention_rates){0};
    if (job->backend.memory == MEMORY_DEVICE) return rates_of_gpu;
    struct attention_rates rates = rates_of_thread;
    rates.flop_per_s *= (double)job->n_thread;
    return rates;
}

// Where what is read is kept, a job that is to stop does so between chunks. At about half of the
// rate of attention, which the tables have; longer where a rank's products would be short.
static int64_t choose_chunk(const struct job *job, int64_t max_tokens, int n_rank) {
    const struct options *o = job->options;
    bool device = job->backend.memory == MEMORY_DEVICE;
    bool kept = o->store && o->window == 0 && o->verb != VERB_EVALUATE &&
                (o->task == TASK_SCORE || o->task == TASK_ANSWER);
    if (o->chunk == 0 && o->verb == VERB_SERVE) return SERVICE_CHUNK;
    if (o->chunk > 0 || !kept) return o->chunk;
    const struct estimate_case reading = {&job->checkpoint.spec, n_rank,
                                          o->attention_kind == ATTENTION_WISH_DENSE,
                                          o->task == TASK_SCORE};
    double flop_per_s =
        device ? rates_of_gpu.flop_per_s : rates_of_thread.flop_per_s * (double)job->n_thread;
    return estimate_chunk(&reading, max_tokens, flop_per_s / 2, device ? 1024 * n_rank : 512);
}

bool job_chose_chunk(const struct job *job) {
    const struct session_options *session = &job->session_options;
    return job->options->chunk == 0 && session->chunk > 0 && session->chunk < session->max_tokens;
}

void job_set_session_options(struct job *job, int64_t max_tokens, int n_rank) {
    const struct options *o = job->options;
    job->session_options = (struct session_options){
        .precision = (enum precision)o->precision,
        .kv_precision = (enum precision)o->kv_precision,
        .layout = o->layout == LAYOUT_WISH_CONTIGUOUS ? LAYOUT_CONTIGUOUS : LAYOUT_ZIGZAG,
        .rates = layout_rates(job),
        .max_tokens = max_tokens,
        .chunk = choose_chunk(job, max_tokens, n_rank),
        .dense = o->attention_kind == ATTENTION_WISH_DENSE,
        .index_precision = (enum index_precision)o->index_precision,
        .exchange = (enum exchange)o->exchange,
        .study = o->study,
        .sharded = o->weights == WEIGHTS_SHARDED,
        .encode_only = o->task == TASK_EMBED || o->task == TASK_LOCATE,
        .max_forget = job->around, // question and answer, before the next question
    };
}

int64_t job_sequence_length(const struct job *job, int document) {
    const struct options *o = job->options;
    int64_t n = job->documents.items[document].n_token + job->around;
    return o->window > 0 && o->window < n ? o->window : n;
}

enum status job_plan_length(struct job *job, int64_t longest) {
    int64_t device_share;
    job_set_session_options(job, longest, job->comm.size);
    TRY(measure_device(job, &device_share));
    TRY(choose_weights(job, device_share));
    return comm_agree(&job->comm, check_plan(job, device_share));
}

enum status job_plan(struct job *job) {
    int64_t longest = 0;
    double begun = profile_begin(&job->profile, PHASE_TOKENIZE);
    enum status status = job->comm.rank == 0 ? measure_documents(job, &longest) : OK;
    TRY(comm_agree(&job->comm, status));
    TRY(comm_agree(&job->comm, document_set_share(&job->documents, comm_host(&job->comm))));
    struct comm *host = comm_host(&job->comm);
    TRY(host->ops->broadcast(host, &longest, sizeof longest, 0));
    TRY(host->ops->broadcast(host, &job->task_bytes, sizeof job->task_bytes, 0));
    TRY(host->ops->broadcast(host, &job->around, sizeof job->around, 0));
    profile_end(&job->profile, PHASE_TOKENIZE, begun);
    return job_plan_length(job, longest);
}

enum status job_plan_service(struct job *job) {
    int64_t context = job_context(job), longest;
    double begun = profile_begin(&job->profile, PHASE_TOKENIZE);
    bool measures = job->comm.rank == 0 && options_name_documents(job->options);
    TRY(comm_agree(&job->comm, measures ? measure_documents(job, &longest) : OK));
    TRY(comm_agree(&job->comm, document_set_share(&job->documents, comm_host(&job->comm))));
    profile_end(&job->profile, PHASE_TOKENIZE, begun);
    job->around = context < SERVICE_FORGET ? context : SERVICE_FORGET;
    return job_plan_length(job, context);
}

enum status job_open_session(struct job *job) {
    double begun = profile_begin(&job->profile, PHASE_LOAD);
    TRY(comm_agree(&job->comm, session_open(&job->checkpoint, &job->backend, &job->comm,
                                            &job->profile, &job->session_options, &job->session)));
    profile_end(&job->profile, PHASE_LOAD, begun);
    return OK;
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

enum status job_sum_sessions(struct job *job, struct session_sums *out) {
    struct session_facts facts;
    int64_t expert_rows;
    *out = job->sums;
    if (!job->session) return OK;
    session_get_facts(job->session, &facts);
    TRY(session_expert_rows(job->session, &expert_rows));
    struct session_resident resident = session_get_resident(job->session);
    out->kv_bytes = larger(out->kv_bytes, facts.kv_bytes);
    out->resident.kv = larger(out->resident.kv, resident.kv);
    out->resident.buffers = larger(out->resident.buffers, resident.buffers);
    out->gathered_bytes += facts.gathered_bytes;
    out->expert_rows += expert_rows;
    return OK;
}

enum status job_close_session(struct job *job) {
    TRY(job_sum_sessions(job, &job->sums));
    session_close(&job->session);
    return OK;
}

void job_close(struct job *job) {
    session_close(&job->session);
    vector_head_close(&job->vector_head);
    span_file_close(&job->spans);
    document_set_close(&job->documents);
    tokenizer_close(&job->tokenizer);
    checkpoint_close(&job->checkpoint);
    comm_close(&job->comm);
    backend_close(&job->backend);
    comm_close(&job->host_comm);
}
