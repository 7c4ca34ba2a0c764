#include "launcher/generation.h"

enum { BASELINE_TOKENS = 16 }; // generated under the empty question

static enum status append(struct job *job, const int32_t *token, int64_t n) {
    return session_append(job->session,
                          &(struct append_args){.token = token, .n = n, .logits = true});
}

// Rank 0 draws and judges, so that all ranks go on with the same token whatever their processors.
static enum status pick(struct generation *g, bool *goes_on) {
    struct job *job = g->job;
    struct comm *host = comm_host(&job->comm);
    struct {
        int32_t token, end;
    } said = {0, -1};
    double begun = profile_begin(&job->profile, PHASE_SAMPLING);
    if (job->comm.rank == 0) {
        struct sample_args how =
            sampler_draw(g->sampler, g->document, g->question, (uint64_t)g->n_token);
        TRY(session_sample(job->session, &how, &said.token));
        g->token[g->n_token] = said.token;
        if (prompt_stops(g->prompt, said.token))
            said.end = END_STOP_TOKEN;
        else if (g->more && !g->more(g->user, g->token, g->n_token + 1))
            said.end = END_ENOUGH;
        else if (g->n_token + 1 == g->max_tokens)
            said.end = END_LENGTH;
    }
    TRY(host->ops->broadcast(host, &said, sizeof said, 0));
    if (said.end != END_STOP_TOKEN) g->token[g->n_token++] = said.token;
    *goes_on = said.end < 0;
    if (!*goes_on) g->end = (enum generation_end)said.end;
    profile_end(&job->profile, PHASE_SAMPLING, begun);
    return OK;
}

enum status generation_run(struct generation *g, int64_t begin, const int32_t *after,
                           int64_t n_after) {
    struct job *job = g->job;
    g->n_token = g->n_appended = 0;
    TRY(session_truncate(job->session, begin));
    if (n_after > 0) TRY(append(job, after, n_after));
    job->tokens_read += n_after;
    TRY(session_mass_reset(job->session, g->measures));
    for (bool goes_on = true; goes_on;) {
        TRY(pick(g, &goes_on));
        beacon_done(job->profile.beacon, g->n_token);
        bool is_new = goes_on || g->end != END_STOP_TOKEN;
        // The last token is read too where its attention counts.
        if (!is_new || (!goes_on && !g->measures)) break;
        TRY(append(job, &g->token[g->n_token - 1], 1));
        g->n_appended++;
    }
    if (session_length(job->session) > job->longest) job->longest = session_length(job->session);
    return OK;
}

enum status generation_take_baseline(struct job *job, const struct prompt *prompt, int64_t begin,
                                     const struct token_list *empty, int64_t max_tokens,
                                     struct evidence *evidence) {
    static const struct sampler greedy = {.top_p = 1};
    int32_t token[BASELINE_TOKENS];
    struct generation g = {.job = job,
                           .prompt = prompt,
                           .sampler = &greedy,
                           .max_tokens =
                               max_tokens < BASELINE_TOKENS ? max_tokens : BASELINE_TOKENS,
                           .measures = true,
                           .token = token};
    TRY(generation_run(&g, begin, empty->id, empty->n));
    return evidence_take_baseline(evidence, job->session, g.n_appended);
}
