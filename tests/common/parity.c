#include "tests/common/parity.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/common/mpi_test.h"
#include "tests/common/tolerance.h"

static void demand(enum status status) {
    if (status != OK) fail_msg("%s", status_message());
}

static struct session *open_session(const struct parity_model *model, struct profile *profile,
                                    int64_t max_tokens) {
    struct session *session = NULL;
    struct session_options options = {.precision = model->precision,
                                      .kv_precision = PRECISION_AUTO,
                                      .layout = model->layout,
                                      .max_tokens = max_tokens,
                                      .chunk = model->chunk,
                                      .exchange = model->exchange,
                                      .index_precision = model->index_precision,
                                      .dense = model->dense,
                                      .sharded = model->sharded};
    demand(
        session_open(model->checkpoint, model->backend, model->comm, profile, &options, &session));
    return session;
}

static float *poisoned(int64_t n) {
    float *out = malloc((size_t)n * sizeof *out);
    assert_non_null(out);
    for (int64_t i = 0; i < n; i++) out[i] = NAN;
    return out;
}

// The larger of `worst` and |got - expected|; infinite when `got` is not a number.
static double worse(double worst, double got, double expected) {
    double distance = fabs(got - expected);
    if (isnan(distance)) return INFINITY;
    return distance > worst ? distance : worst;
}

struct state_check {
    const struct fixture_case *from;
    int64_t n_hidden, n_seen, last;
    double worst;
};

static enum status compare_states(void *user, const int64_t *position, int64_t n,
                                  const float *state) {
    struct state_check *c = user;
    for (int64_t i = 0; i < n; i++) {
        assert_true(position[i] > c->last);
        c->last = position[i];
        for (int64_t j = 0; j < c->n_hidden; j++)
            c->worst = worse(c->worst, state[i * c->n_hidden + j],
                             c->from->state[position[i] * c->n_hidden + j]);
    }
    c->n_seen += n;
    return OK;
}

// Every token's state comes once, from one of the ranks.
static struct parity_distance measure_states(const struct parity_model *model,
                                             const struct fixture_case *from) {
    struct profile profile = {0};
    struct session *session = open_session(model, &profile, from->n_token);
    struct state_check check = {
        .from = from, .n_hidden = from->n_state / from->n_token, .last = -1};
    assert_int_equal(check.n_hidden, model->checkpoint->spec.n_hidden);
    demand(session_encode(session, &(struct encode_args){.token = from->token,
                                                         .n = from->n_token,
                                                         .n_document = from->n_document,
                                                         .document_end = from->document_end,
                                                         .states = compare_states,
                                                         .user = &check}));
    struct session_facts facts;
    session_get_facts(session, &facts);
    assert_int_equal(check.n_seen, facts.tokens);
    session_close(&session);
    return (struct parity_distance){.state_max = check.worst};
}

struct parity_distance parity_measure(const struct parity_model *model,
                                      const struct fixture_case *from) {
    struct parity_distance out = {0};
    struct profile profile = {0};
    if (from->n_state) return measure_states(model, from);
    int64_t n_vocab = model->checkpoint->spec.n_vocab;
    float *logprob = poisoned(from->n_token), *logits = poisoned(n_vocab);
    struct session *session = open_session(model, &profile, from->n_token);
    demand(session_append(session, &(struct append_args){.token = from->token,
                                                         .n = from->n_token,
                                                         .logprob = logprob,
                                                         .last_logits = logits}));
    double sum = 0;
    for (int64_t i = 1; i < from->n_token; i++) {
        sum += from->logprob[i] - (double)logprob[i];
        out.logprob_max = worse(out.logprob_max, logprob[i], from->logprob[i]);
        out.logprob_mean += fabs(logprob[i] - from->logprob[i]) / (double)(from->n_token - 1);
    }
    out.perplexity = exp(sum / (double)(from->n_token - 1)) - 1;
    if (from->n_logit) assert_int_equal(from->n_logit, n_vocab);
    for (int64_t i = 0; i < from->n_logit; i++) {
        out.logit_max = worse(out.logit_max, logits[i], from->last_logits[i]);
    }
    session_close(&session);
    free(logits);
    free(logprob);
    return out;
}

int64_t parity_check_greedy(const struct parity_model *model, const struct fixture_greedy *from,
                            double margin) {
    struct profile profile = {0};
    int64_t n_vocab = model->checkpoint->spec.n_vocab, n_equal = 0;
    float *logits = poisoned(n_vocab);
    struct session *session = open_session(model, &profile, from->n_prompt + from->n_token);
    demand(session_append(
        session,
        &(struct append_args){.token = from->prompt, .n = from->n_prompt, .last_logits = logits}));
    while (n_equal < from->n_token) {
        int32_t best = 0;
        for (int32_t i = 1; i < n_vocab; i++) {
            if (logits[i] > logits[best]) best = i;
        }
        if (best != from->token[n_equal]) {
            if (from->margin[n_equal] > margin) {
                fail_msg("greedy token %d is %d, not %d, whose lead is %g", (int)n_equal, best,
                         from->token[n_equal], from->margin[n_equal]);
            }
            break;
        }
        if (++n_equal == from->n_token) break;
        demand(session_append(
            session, &(struct append_args){.token = &best, .n = 1, .last_logits = logits}));
    }
    session_close(&session);
    free(logits);
    return n_equal;
}

void parity_check(const struct parity_run *run) {
    char path[256];
    struct fixture fixture;
    struct checkpoint checkpoint = {0};
    struct backend backend = {0};
    if (mpi_test_repeats(run->kind)) return;
    snprintf(path, sizeof path, "tests/fixtures/%s/%s", run->name,
             run->reference ? run->reference : "reference.json");
    assert_true(fixture_open(path, &fixture));
    snprintf(path, sizeof path, "tests/fixtures/%s%s%s", run->name, run->file ? "/" : "",
             run->file ? run->file : "");
    demand(checkpoint_open(path, &checkpoint));
    if (run->extension) demand(extension_apply(run->extension, path, &checkpoint.spec));
    if (run->window) demand(model_spec_set_window(&checkpoint.spec, run->window, run->sinks));
    mpi_test_open_backend(run->kind, &backend);
    struct parity_model model = {.checkpoint = &checkpoint,
                                 .backend = &backend,
                                 .comm = &mpi_test_comm,
                                 .precision = PRECISION_FP32,
                                 .chunk = run->chunk,
                                 .layout = run->layout,
                                 .exchange = run->exchange,
                                 .index_precision = run->index_precision,
                                 .sharded = run->sharded};
    for (int i = 0; i < fixture.n_case; i++) {
        struct parity_distance d = parity_measure(&model, &fixture.cases[i]);
        if (!(d.logprob_max <= PARITY_FP32_MAX) || !(d.logit_max <= PARITY_FP32_MAX) ||
            !(d.state_max <= PARITY_FP32_MAX)) {
            fail_msg("%s, case %s: log-probabilities differ by %g, logits by %g, states by %g",
                     run->name, fixture.cases[i].name, d.logprob_max, d.logit_max, d.state_max);
        }
    }
    for (int i = 0; i < fixture.n_greedy; i++) {
        parity_check_greedy(&model, &fixture.greedy[i], 2 * PARITY_FP32_MAX);
    }
    mpi_test_close_backend(&backend);
    checkpoint_close(&checkpoint);
    fixture_close(&fixture);
}
