#include "launcher/evidence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/results.h"

// Shortest passage that stands alone: a heading belongs to what follows it.
enum { SHORTEST_PASSAGE = 12 };

// How good a place the end of a token is to end a passage.
enum cut { CUT_NONE, CUT_SENTENCE, CUT_LINE, CUT_PARAGRAPH };

static enum cut cut_after(const char *text, int64_t begin, int64_t end, int64_t next_end) {
    bool space_next = text[end] == ' ' || text[end] == '\n';
    const char *token = text + begin;
    int n_line_end = 0;
    // Line ends that this token ends with, and those that the next one begins with.
    for (int64_t i = end; i > begin && strchr(" \t\r\n", text[i - 1]); i--) {
        n_line_end += text[i - 1] == '\n';
    }
    bool line_here = n_line_end > 0;
    for (int64_t i = end; line_here && i < next_end && strchr(" \t\r\n", text[i]); i++) {
        n_line_end += text[i] == '\n';
    }
    if (n_line_end > 1) return CUT_PARAGRAPH;
    if (n_line_end == 1) return CUT_LINE;
    if (space_next && memchr(token, '.', (size_t)(end - begin))) return CUT_SENTENCE;
    return CUT_NONE;
}

// End of the passage that begins at token `begin`.
static int64_t passage_end(const char *text, const int64_t *byte_begin, const int64_t *byte_end,
                           int64_t begin, int64_t n_token) {
    int64_t limit = begin + PASSAGE_TOKENS < n_token ? begin + PASSAGE_TOKENS : n_token;
    int64_t best = limit;
    enum cut best_cut = CUT_NONE;
    if (!byte_end) return limit;
    for (int64_t t = begin; t < limit && t + 1 < n_token; t++) {
        if (t + 1 - begin < SHORTEST_PASSAGE) continue;
        enum cut cut = cut_after(text, byte_begin[t], byte_end[t], byte_end[t + 1]);
        if (cut == CUT_PARAGRAPH) return t + 1;
        bool far_enough = t + 1 - begin >= PASSAGE_TOKENS / 2;
        if (far_enough && cut > CUT_NONE && cut >= best_cut) best = t + 1, best_cut = cut;
    }
    return limit == n_token ? n_token : best;
}

// A passage's bytes are without the white space around it.
static void trim(const char *text, struct passage *p) {
    while (p->byte_begin < p->byte_end && strchr(" \t\r\n", text[p->byte_begin])) p->byte_begin++;
    while (p->byte_end > p->byte_begin && strchr(" \t\r\n", text[p->byte_end - 1])) p->byte_end--;
}

enum status evidence_cut(const char *text, const int64_t *byte_begin, const int64_t *byte_end,
                         int64_t n_token, struct passage **out, int64_t *n_out) {
    int64_t capacity = n_token / SHORTEST_PASSAGE + 1;
    struct passage *passages = calloc((size_t)capacity, sizeof *passages);
    if (!passages) FAIL(ERR_MEMORY, "no memory for %lld passages", (long long)capacity);
    int64_t n = 0;
    for (int64_t begin = 0, end; begin < n_token; begin = end) {
        end = passage_end(text, byte_begin, byte_end, begin, n_token);
        passages[n] = (struct passage){
            .token_begin = begin,
            .token_end = end,
            .byte_begin = byte_begin ? byte_begin[begin] : -1,
            .byte_end = byte_end ? byte_end[end - 1] : -1,
        };
        if (byte_begin) trim(text, &passages[n]);
        n++;
    }
    *out = passages;
    *n_out = n;
    return OK;
}

enum status evidence_open(const struct job *job, const struct document_text *text,
                          int64_t first_position, struct evidence *out) {
    struct comm *comm = comm_host((struct comm *)&job->comm);
    *out = (struct evidence){.first_position = first_position};
    if (comm->rank == 0) {
        TRY(evidence_cut(text->text, text->tokens.byte_begin, text->tokens.byte_end, text->tokens.n,
                         &out->passages, &out->n_passage));
    }
    TRY(comm->ops->broadcast(comm, &out->n_passage, sizeof out->n_passage, 0));
    int64_t bytes = out->n_passage * (int64_t)sizeof *out->passages;
    if (!out->passages) out->passages = malloc((size_t)bytes);
    if (!out->passages) FAIL(ERR_MEMORY, "no memory for %lld passages", (long long)out->n_passage);
    return comm->ops->broadcast(comm, out->passages, bytes, 0);
}

void evidence_close(struct evidence *evidence) {
    free(evidence->passages);
    *evidence = (struct evidence){0};
}

// Mass per query on each passage, into baseline or mass by `field`.
static enum status take(struct evidence *e, struct session *session, int64_t n_query,
                        size_t field) {
    float *mass = malloc((size_t)session_length(session) * sizeof *mass);
    if (!mass) FAIL(ERR_MEMORY, "no memory for the attention mass");
    enum status status = session_mass_take(session, mass);
    for (int64_t i = 0; status == OK && i < e->n_passage; i++) {
        const struct passage *p = &e->passages[i];
        double sum = 0;
        for (int64_t t = p->token_begin; t < p->token_end; t++) {
            int64_t position = e->first_position + t;
            if (position >= SINK_TOKENS) sum += mass[position];
        }
        *(double *)((char *)p + field) = n_query > 0 ? sum / (double)n_query : 0;
    }
    free(mass);
    return status;
}

enum status evidence_take_baseline(struct evidence *e, struct session *session, int64_t n_query) {
    return take(e, session, n_query, offsetof(struct passage, baseline));
}

enum status evidence_take_answer(struct evidence *e, struct session *session, int64_t n_query) {
    TRY(take(e, session, n_query, offsetof(struct passage, mass)));
    double total = 0, baseline_total = 0;
    int64_t n_token = 0;
    for (int64_t i = 0; i < e->n_passage; i++) {
        total += e->passages[i].mass;
        baseline_total += e->passages[i].baseline;
        n_token += e->passages[i].token_end - e->passages[i].token_begin;
    }
    // The geometric mean of the passage's share of the mass and of that share relative to the one
    // it has without a question (or by its length). The plain ratio loses passages that are
    // remarkable by themselves: 42 of the 50 in tests/cli/evidence_planted.sh, against 48.
    for (int64_t i = 0; i < e->n_passage; i++) {
        struct passage *p = &e->passages[i];
        double length_share = (double)(p->token_end - p->token_begin) / (double)n_token;
        double share = total > 0 ? p->mass / total : 0;
        double usual = baseline_total > 0 ? p->baseline / baseline_total : length_share;
        p->weight = usual > 0 ? share / sqrt(usual) : 0;
    }
    return OK;
}

static int compare_weights(const void *a, const void *b) {
    const struct passage *x = *(const struct passage *const *)a;
    const struct passage *y = *(const struct passage *const *)b;
    if (x->weight != y->weight) return x->weight > y->weight ? -1 : 1;
    return x < y ? -1 : x > y;
}

static json_t *passage_text(const struct job *job, const struct passage *p,
                            const struct document_text *text) {
    if (p->byte_begin >= 0) {
        return json_text(text->text + p->byte_begin, (size_t)(p->byte_end - p->byte_begin));
    }
    char *decoded;
    size_t bytes;
    if (tokenizer_decode(job->tokenizer, text->tokens.id + p->token_begin,
                         p->token_end - p->token_begin, true, &decoded, &bytes) != OK) {
        return json_null();
    }
    json_t *value = json_text(decoded, bytes);
    free(decoded);
    return value;
}

static json_t *byte_offset(const struct document_text *text, int64_t byte) {
    return byte >= 0 ? json_integer(byte + text->mark_bytes) : json_null();
}

json_t *evidence_list(const struct job *job, const struct evidence *e,
                      const struct document_text *text, int64_t n_best) {
    const struct passage **order = malloc((size_t)e->n_passage * sizeof *order);
    json_t *list = json_array();
    if (!order || !list) {
        free(order);
        json_decref(list);
        return NULL;
    }
    for (int64_t i = 0; i < e->n_passage; i++) order[i] = &e->passages[i];
    qsort(order, (size_t)e->n_passage, sizeof *order, compare_weights);
    for (int64_t i = 0; i < e->n_passage && i < n_best; i++) {
        const struct passage *p = order[i];
        json_t *item = json_object();
        json_object_set_new(item, "byte_start", byte_offset(text, p->byte_begin));
        json_object_set_new(item, "byte_end", byte_offset(text, p->byte_end));
        json_object_set_new(item, "token_start", json_integer(p->token_begin));
        json_object_set_new(item, "token_end", json_integer(p->token_end));
        json_object_set_new(item, "weight", json_number(p->weight));
        json_object_set_new(item, "text", passage_text(job, p, text));
        json_array_append_new(list, item);
    }
    free(order);
    return list;
}
