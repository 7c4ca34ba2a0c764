#include "model/session_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dist/cluster.h"

enum status session_open(const struct checkpoint *checkpoint, struct backend *backend,
                         struct comm *comm, struct profile *profile,
                         const struct session_options *options, struct session **out) {
    enum status status = OK;
    struct session *s = calloc(1, sizeof *s);
    if (!s) FAIL(ERR_MEMORY, "no memory for a session");
    s->options = *options;
    s->last_position = -1;
    sequence_open(&s->sequence, comm->size);
    TRY_OR(failed, session_measure(checkpoint, backend, comm->size, options, &s->sizes));
    const struct session_sizes *sizes = &s->sizes;
    struct forward *f = &s->forward;
    backend->tf32 = sizes->tf32;
    *f = (struct forward){.spec = &checkpoint->spec,
                          .backend = backend,
                          .comm = comm,
                          .profile = profile,
                          .rope_length = options->max_tokens,
                          .activation = sizes->forward.activation,
                          .query_dtype = sizes->forward.query,
                          .indexed = sizes->forward.indexed,
                          .index_dtype = sizes->forward.index};
    profile_attach(profile, backend);
    int64_t widest = sizes->attention.n_head * sizes->attention.head_dim;
    if (f->spec->n_hidden > widest) widest = f->spec->n_hidden;
    s->n_zero = widest;
    f->zeros = calloc((size_t)widest, sizeof *f->zeros);
    s->position = malloc((size_t)sizes->forward.n_row * sizeof *s->position);
    s->token = malloc((size_t)sizes->forward.n_token * sizeof *s->token);
    if (!sizes->encode_only)
        s->gathered = malloc((size_t)sizes->forward.n_all * sizeof *s->gathered);
    f->passes = calloc((size_t)f->spec->n_layer, sizeof *f->passes);
    if (!f->zeros || !f->passes || !s->position || !s->token ||
        (!sizes->encode_only && !s->gathered)) {
        FAIL_OR(failed, ERR_MEMORY, "no memory for the tables of %lld tokens",
                (long long)sizes->forward.n_all);
    }
    struct weights_owner owner = {comm->rank, comm->size, sizes->sharded};
    TRY_OR(failed, weights_open(checkpoint, backend, owner, &f->weights));
    if (owner.sharded)
        TRY_OR(failed, weight_gather_open(&f->gather, &f->weights, checkpoint, comm, profile));
    TRY_OR(failed, kv_store_open(f->spec, backend, &sizes->kv, &f->kv));
    TRY_OR(failed, ring_attention_open(&f->ring, backend, comm, profile, sizes->ring_bytes));
    TRY_OR(failed, backend->ops->alloc(backend, sizes->buffer_bytes, &s->arena));
    forward_buffers_carve(f->spec, &sizes->forward, s->arena, &f->buffers);
    if (sizes->experts.n_expert) {
        const int64_t none = 0;
        TRY_OR(failed, expert_exchange_open(&f->experts, backend, comm, profile, &sizes->experts));
        TRY_OR(failed, backend->ops->upload(backend, f->buffers.expert_count, &none, sizeof none));
    }
    if (sizes->study_bytes) {
        TRY_OR(failed, selection_study_open(&s->study, &f->ring, &sizes->study));
        f->study = &s->study;
    }
    f->keeps_steps = !options->eager && forward_decode_keeps(f);
    *out = s;
    return OK;
failed:
    session_close(&s);
    return status;
}

void session_close(struct session **session) {
    struct session *s = *session;
    if (!s) return;
    profile_detach(s->forward.profile);
    struct backend *backend = s->forward.backend; // NULL where nothing was opened
    if (backend && backend->ops->steps) backend->ops->steps->forget(backend);
    if (backend && s->arena) backend->ops->free(backend, s->arena);
    selection_study_close(&s->study);
    expert_exchange_close(&s->forward.experts);
    ring_attention_close(&s->forward.ring);
    kv_store_close(&s->forward.kv);
    weight_gather_close(&s->forward.gather);
    weights_close(&s->forward.weights);
    sequence_close(&s->sequence);
    free(s->gathered);
    free(s->token);
    free(s->position);
    free(s->forward.passes);
    free(s->forward.zeros);
    free(s);
    *session = NULL;
}

enum status session_check_tokens(const struct session *s, const int32_t *token, int64_t n) {
    int64_t n_vocab = s->forward.spec->n_vocab;
    if (n < 1) FAIL(ERR_INTERNAL, "nothing to append");
    if (s->sequence.length + n > s->sizes.forward.n_all) {
        FAIL(ERR_CONFIG, "%lld tokens do not fit the session, which has room for %lld",
             (long long)(s->sequence.length + n), (long long)s->sizes.forward.n_all);
    }
    for (int64_t i = 0; i < n; i++) {
        if (token[i] < 0 || token[i] >= n_vocab) {
            FAIL(ERR_INPUT, "token id %d at index %lld is outside the vocabulary of %lld", token[i],
                 (long long)i, (long long)n_vocab);
        }
    }
    return OK;
}

enum status session_place_chunks(struct session *s, int64_t n) {
    for (int64_t done = 0, piece; done < n; done += piece) {
        piece = n - done < s->sizes.chunk ? n - done : s->sizes.chunk;
        if (!sequence_append(&s->sequence, s->sizes.layout.layout, piece))
            FAIL(ERR_MEMORY, "no memory for the sequence");
    }
    return OK;
}

// Appends a piece to the sequence and describes it for the forward pass.
static enum status begin_chunk(struct session *s, int64_t n, bool decode,
                               struct forward_chunk *chunk) {
    int rank = s->forward.comm->rank;
    int64_t begin = s->sequence.length;
    enum layout layout = decode ? LAYOUT_ROUND_ROBIN : s->sizes.layout.layout;
    if (!sequence_append(&s->sequence, layout, n)) FAIL(ERR_MEMORY, "no memory for the sequence");
    chunk->sequence = &s->sequence;
    chunk->begin = begin;
    chunk->end = begin + n;
    chunk->n_token = sequence_count(&s->sequence, rank, begin, begin + n);
    chunk->first_row = sequence_count(&s->sequence, rank, 0, begin);
    if (chunk->first_row + chunk->n_token > s->sizes.forward.n_row) {
        FAIL(ERR_MEMORY, "the K/V shard has room for %lld tokens, not %lld: too many short appends",
             (long long)s->sizes.forward.n_row, (long long)(chunk->first_row + chunk->n_token));
    }
    return kv_store_begin(&s->forward.kv,
                          &(struct kv_chunk){&s->sequence, rank, begin, begin + n, decode});
}

static enum status upload_tokens(struct session *s, const int32_t *token, int64_t n) {
    return BACKEND(s)->ops->upload(BACKEND(s), s->forward.buffers.token, token,
                                   n * (int64_t)sizeof *token);
}

// values[i] of every rank's own tokens in [begin, end), in order of position into host `out`.
static enum status gather_by_position(struct session *s, int64_t begin, int64_t end,
                                      const float *own, float *out) {
    struct comm *comm = s->forward.comm;
    int size = comm->size;
    int64_t bytes[size];
    for (int rank = 0; rank < size; rank++) {
        bytes[rank] = sequence_count(&s->sequence, rank, begin, end) * (int64_t)sizeof *own;
    }
    TRY(comm->ops->all_gather(comm, own, s->forward.buffers.all_values, bytes));
    TRY(BACKEND(s)->ops->download(BACKEND(s), s->gathered, s->forward.buffers.all_values,
                                  (end - begin) * (int64_t)sizeof *own));
    TRY(profile_sync(s->forward.profile, BACKEND(s)));
    const float *value = s->gathered;
    for (int rank = 0; rank < size; rank++) {
        int64_t n = bytes[rank] / (int64_t)sizeof *own;
        sequence_positions(&s->sequence, rank, begin, end, s->position);
        for (int64_t i = 0; i < n; i++) out[s->position[i] - begin] = *value++;
    }
    return OK;
}

// Log-probabilities of the successors of this rank's tokens in the chunk. `token` and `out` begin
// at position append_begin; out[i] belongs to position append_begin + i.
static enum status chunk_logprobs(struct session *s, const struct forward_chunk *chunk,
                                  const struct append_args *args, int64_t append_begin) {
    struct forward *f = &s->forward;
    struct weight head;
    int64_t n = chunk->n_token, last = append_begin + args->n - 1;
    TRY(forward_whole_head(f, &head));
    for (int64_t i = 0; i < n; i++) {
        int64_t next = s->position[i] < last ? s->position[i] + 1 : last;
        s->token[i] = args->token[next - append_begin];
    }
    TRY(upload_tokens(s, s->token, n));
    for (int64_t row = 0; row < n; row += f->buffers.tile) {
        int64_t count = n - row < f->buffers.tile ? n - row : f->buffers.tile;
        TRY(forward_final_norm(f, row, count, f->buffers.normed, f->activation));
        double begun = profile_begin(f->profile, PHASE_MATMUL);
        TRY(BACKEND(s)->ops->logprob(BACKEND(s),
                                     &(struct logprob_args){.x = f->buffers.normed,
                                                            .x_dtype = f->activation,
                                                            .n_token = count,
                                                            .head = head,
                                                            .target = f->buffers.token + row,
                                                            .logprob = f->buffers.logprob + row}));
        profile_end(f->profile, PHASE_MATMUL, begun);
    }
    // Position p tells of token p + 1: shift by one; the last position of the append has no
    // successor.
    int64_t from = chunk->begin - append_begin;
    float *shifted = malloc((size_t)(chunk->end - chunk->begin) * sizeof *shifted);
    if (!shifted) FAIL(ERR_MEMORY, "no memory for %lld log-probabilities", (long long)n);
    enum status status =
        gather_by_position(s, chunk->begin, chunk->end, f->buffers.logprob, shifted);
    for (int64_t i = 0; status == OK && i < chunk->end - chunk->begin; i++) {
        if (from + i + 1 < args->n) args->logprob[from + i + 1] = shifted[i];
    }
    free(shifted);
    return status;
}

// The owner of the last position norms its state; every rank receives it.
static enum status share_last_hidden(struct session *s, const struct forward_chunk *chunk) {
    struct forward *f = &s->forward;
    int owner = sequence_owner(&s->sequence, chunk->end - 1, NULL);
    if (owner == f->comm->rank) {
        TRY(forward_final_norm(f, chunk->n_token - 1, 1, f->buffers.last_hidden, f->activation));
    }
    TRY(f->comm->ops->broadcast(f->comm, f->buffers.last_hidden,
                                dtype_bytes(f->activation, f->spec->n_hidden), owner));
    s->last_position = chunk->end - 1;
    return OK;
}

// Into buffers.logits and, unless NULL, `host`, where they are after sync.
static enum status queue_logits(struct session *s, float *host) {
    TRY(forward_logits(&s->forward, s->forward.buffers.last_hidden));
    if (!host) return OK;
    return BACKEND(s)->ops->download(BACKEND(s), host, s->forward.buffers.logits,
                                     s->forward.spec->n_vocab * (int64_t)sizeof *host);
}

// ln p(first token of the append | what came before), from the state kept by the append before.
static enum status first_logprob(struct session *s, const struct append_args *args) {
    args->logprob[0] = NAN;
    if (s->last_position < 0 || s->last_position != s->sequence.length - 1) return OK;
    int64_t n = s->forward.spec->n_vocab;
    float *logits = malloc((size_t)n * sizeof *logits);
    if (!logits) FAIL(ERR_MEMORY, "no memory for %lld logits", (long long)n);
    enum status status = queue_logits(s, logits);
    if (status == OK) status = BACKEND(s)->ops->sync(BACKEND(s));
    if (status == OK) {
        float max = logits[0];
        for (int64_t i = 1; i < n; i++) max = fmaxf(max, logits[i]);
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += exp((double)logits[i] - max);
        args->logprob[0] = (float)(logits[args->token[0]] - max - log(sum));
    }
    free(logits);
    return status;
}

// The first layer that sees and holds what this one does.
static int first_alike(const struct model_spec *spec, int layer) {
    const struct layer_spec *layers = spec->layers;
    int i = 0;
    while (layers[i].window != layers[layer].window || layers[i].sinks != layers[layer].sinks) i++;
    return i;
}

// Chooses what travels in this chunk.
static void choose_exchange(struct session *s, const struct forward_chunk *chunk) {
    struct forward *f = &s->forward;
    const struct session_sizes *sizes = &s->sizes;
    const int64_t most_sent = session_most_sent(f->indexed);
    for (int i = 0; i < f->spec->n_layer; i++) {
        const struct visible_range range = {.sequence = &s->sequence,
                                            .visibility = forward_visibility(f->spec, i, chunk),
                                            .key_begin = f->kv.layers[i].block.key_begin,
                                            .query_begin = chunk->begin,
                                            .query_end = chunk->end};
        int alike = first_alike(f->spec, i);
        f->passes[i] =
            alike < i ? f->passes[alike] : volume_choose_pass(&range, &sizes->attention, most_sent);
    }
    if (!f->indexed || chunk->end <= sizes->index.k) return;
    bool is_short = chunk->end - chunk->begin <= most_sent;
    f->exchange = is_short ? s->options.exchange : EXCHANGE_KEYS;
    if (f->exchange == EXCHANGE_AUTO)
        f->exchange = volume_choose_exchange(&s->sequence, &sizes->attention, &sizes->index,
                                             chunk->begin, chunk->end);
}

// Positions of packed documents begin at 0 in each.
static void place_in_documents(int64_t *position, int64_t n, const struct forward_chunk *chunk) {
    int64_t begin = 0;
    for (int64_t i = 0, document = 0; i < n; i++) {
        while (document < chunk->n_document && position[i] >= chunk->document_end[document])
            begin = chunk->document_end[document++];
        position[i] -= begin;
    }
}

enum status session_prefill_chunk(struct session *s, const int32_t *token, int64_t n,
                                  struct forward_chunk *chunk) {
    struct forward *f = &s->forward;
    f->step.kept = false;
    TRY(begin_chunk(s, n, false, chunk));
    sequence_positions(&s->sequence, f->comm->rank, chunk->begin, chunk->end, s->position);
    for (int64_t i = 0; i < chunk->n_token; i++) {
        s->token[i] = token[s->position[i] - chunk->begin];
    }
    chunk->token = s->token;
    place_in_documents(s->position, chunk->n_token, chunk);
    TRY(upload_tokens(s, s->token, chunk->n_token));
    TRY(forward_set_positions(f, s->position, chunk->n_token));
    choose_exchange(s, chunk);
    TRY(forward_prefill(f, chunk));
    sequence_positions(&s->sequence, f->comm->rank, chunk->begin, chunk->end, s->position);
    return OK;
}

static enum status prefill(struct session *s, const struct append_args *args) {
    struct forward *f = &s->forward;
    int64_t append_begin = s->sequence.length, done = 0;
    while (done < args->n) {
        int64_t n = args->n - done < s->sizes.chunk ? args->n - done : s->sizes.chunk;
        struct forward_chunk chunk = {.score = args->logprob != NULL};
        TRY(session_prefill_chunk(s, args->token + done, n, &chunk));
        if (args->logprob) TRY(chunk_logprobs(s, &chunk, args, append_begin));
        done += n;
        if (done == args->n) TRY(share_last_hidden(s, &chunk));
        TRY(profile_sync(f->profile, BACKEND(s))); // what is reported as read has been read
        profile_sample_memory(f->profile);
        if (args->progress) args->progress(args->user, done);
    }
    return OK;
}

static enum status decode(struct session *s, const struct append_args *args) {
    struct forward *f = &s->forward;
    struct forward_chunk chunk = {.token = args->token};
    TRY(begin_chunk(s, 1, true, &chunk));
    TRY(upload_tokens(s, args->token, 1));
    TRY(forward_set_positions(f, &chunk.begin, 1));
    TRY(forward_decode(f, &chunk, s->mass_on));
    TRY(forward_final_norm(f, 0, 1, f->buffers.last_hidden, f->activation));
    s->last_position = chunk.begin;
    if (args->progress) args->progress(args->user, 1);
    return OK;
}

// Keeps the step of the next token while the device does this one's.
static enum status decode_ahead(struct session *s) {
    struct forward *f = &s->forward;
    int64_t length = s->sequence.length;
    int64_t n_row = sequence_count(&s->sequence, f->comm->rank, 0, length);
    bool room = length < s->sizes.forward.n_all && n_row < s->sizes.forward.n_row;
    struct forward_chunk chunk = {0};
    if (!f->keeps_steps || !room) return OK;
    TRY(begin_chunk(s, 1, true, &chunk));
    enum status status = forward_decode_ahead(f, &chunk, s->mass_on);
    sequence_truncate(&s->sequence, length);
    return status;
}

enum status session_append(struct session *s, const struct append_args *args) {
    if (!s->forward.spec->causal)
        FAIL(ERR_CONFIG, "%s is an encoder: use --task embed or locate",
             s->forward.spec->architecture);
    if (s->sizes.encode_only) FAIL(ERR_INTERNAL, "the session was opened to encode only");
    TRY(session_check_tokens(s, args->token, args->n));
    if (args->logprob) TRY(first_logprob(s, args));
    TRY(args->n == 1 ? decode(s, args) : prefill(s, args));
    if (args->logits || args->last_logits) TRY(queue_logits(s, args->last_logits));
    if (args->n == 1) TRY(decode_ahead(s));
    return args->last_logits ? BACKEND(s)->ops->sync(BACKEND(s)) : OK;
}

enum status session_recall_logits(struct session *s) {
    if (s->last_position < 0 || s->last_position != s->sequence.length - 1)
        FAIL(ERR_INTERNAL, "the state of the last of %lld tokens was not kept",
             (long long)s->sequence.length);
    return queue_logits(s, NULL);
}

enum status session_sample(struct session *s, const struct sample_args *how, int32_t *out) {
    struct sample_args args = *how;
    args.logits = s->forward.buffers.logits;
    args.n = s->forward.spec->n_vocab;
    args.token = s->forward.buffers.sampled;
    TRY(BACKEND(s)->ops->sample(BACKEND(s), &args));
    TRY(BACKEND(s)->ops->download(BACKEND(s), out, args.token, sizeof *out));
    TRY(BACKEND(s)->ops->sync(BACKEND(s)));
    if (*out < 0)
        FAIL(ERR_INTERNAL, "no logit of %lld is finite after %lld tokens", (long long)args.n,
             (long long)s->sequence.length);
    return OK;
}

enum status session_set_length(struct session *s, int64_t length) {
    if (s->sequence.length > 0 && s->forward.rope_length != length)
        FAIL(ERR_INTERNAL, "%lld tokens were read as part of %lld, not of %lld",
             (long long)s->sequence.length, (long long)s->forward.rope_length, (long long)length);
    s->forward.rope_length = length;
    return OK;
}

int64_t session_length(const struct session *s) {
    return s->sequence.length;
}

enum status session_truncate(struct session *s, int64_t length) {
    if (!kv_store_holds(&s->forward.kv, length))
        FAIL(ERR_INTERNAL,
             "the session was opened to forget %lld tokens at once, not those of %lld to %lld",
             (long long)s->options.max_forget, (long long)length, (long long)s->sequence.length);
    kv_store_truncate(&s->forward.kv, length);
    sequence_truncate(&s->sequence, length);
    s->forward.step.kept = false;
    if (s->last_position >= length) s->last_position = -1;
    if (s->stored.n > length) s->stored.n = 0;
    return OK;
}

enum status session_mass_reset(struct session *s, bool on) {
    s->mass_on = on;
    int64_t n = s->sizes.forward.n_row;
    for (int64_t row = 0; row < n; row += s->n_zero) {
        int64_t count = n - row < s->n_zero ? n - row : s->n_zero;
        TRY(BACKEND(s)->ops->upload(BACKEND(s), s->forward.buffers.mass + row, s->forward.zeros,
                                    count * (int64_t)sizeof(float)));
    }
    return OK;
}

enum status session_mass_take(struct session *s, float *mass) {
    return gather_by_position(s, 0, s->sequence.length, s->forward.buffers.mass, mass);
}

enum status session_study(struct session *s, double *recall, double *overlap) {
    if (s->forward.study) return selection_study_take(&s->study, recall, overlap);
    for (int i = 0; i < s->forward.spec->n_layer; i++) recall[i] = overlap[i] = NAN;
    return OK;
}

// Of the first layer with a window, or without; of the first layer where there is none.
static enum pass pass_of(const struct forward *f, bool window) {
    for (int i = 0; i < f->spec->n_layer; i++)
        if ((f->spec->layers[i].window > 0) == window) return f->passes[i];
    return f->passes[0];
}

void session_get_facts(const struct session *s, struct session_facts *out) {
    *out = (struct session_facts){
        .kv_bytes = s->sizes.kv_bytes,
        .tokens = sequence_count(&s->sequence, s->forward.comm->rank, 0, s->sequence.length),
        .precision = s->sizes.precision,
        .kv_precision = s->sizes.kv_precision,
        .layout = s->sizes.layout,
        .windows = model_spec_window(s->forward.spec) > 0,
        .last_pass = pass_of(&s->forward, false),
        .window_pass = pass_of(&s->forward, true),
        .indexed = s->forward.indexed,
        .index_precision = s->sizes.forward.index == DTYPE_F32    ? INDEX_FP32
                           : s->sizes.forward.index == DTYPE_BF16 ? INDEX_BF16
                                                                  : INDEX_FP8,
        .last_exchange = s->forward.exchange,
        .gathered_bytes = s->forward.gather.received,
        .steps = s->forward.step.n_launched,
    };
}

struct session_resident session_get_resident(const struct session *s) {
    const struct forward *f = &s->forward;
    if (f->backend->memory == MEMORY_DEVICE) return (struct session_resident){0, 0};
    struct kv_resident kv = kv_store_resident(&f->kv);
    return (struct session_resident){
        .kv = kv.kept,
        .buffers = kv.room + cluster_resident_bytes(s->arena, s->sizes.buffer_bytes) +
                   cluster_resident_bytes(f->ring.workspace, s->sizes.ring_bytes)};
}

enum status session_expert_rows(struct session *s, int64_t *out) {
    const struct forward *f = &s->forward;
    int64_t decoded = 0; // the backend counts, since the host does not know what the gate chose
    if (s->sizes.experts.n_expert) {
        TRY(BACKEND(s)->ops->download(BACKEND(s), &decoded, f->buffers.expert_count,
                                      sizeof decoded));
        TRY(BACKEND(s)->ops->sync(BACKEND(s)));
    }
    *out = f->experts.rows_received + decoded;
    return OK;
}
