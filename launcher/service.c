#include "launcher/service.h"

#include <stdlib.h>
#include <string.h>

#include "launcher/answer_line.h"
#include "launcher/beacon_files.h"
#include "launcher/reading.h"
#include "launcher/report.h"
#include "launcher/service_http.h"
#include "launcher/stop.h"
#include "launcher/task.h"
#include "launcher/text_stream.h"

static const double idle_seconds = 0.5; // between two looks at signals

// What rank 0 tells the others of a request; n 0: none came.
struct order {
    int64_t n, n_held,
        document_end; // tokens of the prompt, of these in the session, up to the document
    int64_t max_tokens, n_passage;
    int64_t document; // serial; 0: none
};

// One request on its way.
struct work {
    struct service *service;
    struct order order;
    struct service_request *request; // rank 0
    struct text_stream stream;       // rank 0
    int64_t n_spared;                // tokens that were not read: held, or restored
    double started;
    bool goes_on;
};

static enum status broadcast(struct service *s, void *data, int64_t bytes) {
    struct comm *host = comm_host(&s->job->comm);
    return host->ops->broadcast(host, data, bytes, 0);
}

static bool is_root(const struct service *s) {
    return s->job->comm.rank == 0;
}

// How many of the request's first tokens need not be read again. The last of a prompt is, for its
// logits.
static int64_t reusable(const struct service *s, const struct service_request *r) {
    const struct token_list *prompt = &r->prompt;
    int64_t n = 0, most = r->document ? r->document_end : prompt->n - 1;
    while (n < most && n < s->n_held && prompt->id[n] == s->held[n]) n++;
    // store.dir may have more of the document, and is asked about whole ones.
    if (r->document && n < most && s->job->options->store) n = 0;
    int64_t document = r->document ? r->document_end : prompt->n;
    const int64_t appends[] = {document - n, prompt->n - document};
    bool fits = session_has_room(s->job->session, n, appends, 2, r->max_tokens);
    return fits ? n : 0;
}

// Waits for a request, but not for long, on every rank.
static enum status next_order(struct service *s, struct work *work) {
    *work = (struct work){.service = s, .goes_on = true};
    if (is_root(s) && (work->request = queue_pop(&s->queue, idle_seconds))) {
        struct service_request *r = work->request;
        work->order = (struct order){.n = r->prompt.n,
                                     .n_held = reusable(s, r),
                                     .document_end = r->document_end,
                                     .max_tokens = r->max_tokens,
                                     .n_passage = r->n_passage,
                                     .document = r->document ? r->document->serial : 0};
        work->stream = (struct text_stream){
            .tokenizer = s->job->tokenizer, .stop = r->stop, .n_stop = r->n_stop};
        memcpy(s->token, r->prompt.id, (size_t)r->prompt.n * sizeof *s->token);
    }
    TRY(broadcast(s, &work->order, sizeof work->order));
    work->started = cluster_seconds();
    work->n_spared = work->order.n_held;
    return broadcast(s, s->token, work->order.n * (int64_t)sizeof *s->token);
}

static const char *name_of(const struct work *work) {
    const struct service_request *r = work->request;
    return r && r->document ? r->document->name : "a prompt";
}

static void tell_read(void *user, int64_t done) {
    struct work *work = user;
    if (work->request) queue_advance(&work->service->queue, work->request, done, work->n_spared);
}

// Tokens [begin, end) of the prompt; the document's last are behind those of store.dir.
static enum status read_part(struct work *work, int64_t begin, int64_t end, bool logits,
                             struct progress *progress) {
    struct service *s = work->service;
    int64_t n_restored;
    TRY(reading_run(s->job,
                    &(struct reading){.name = name_of(work),
                                      .token = s->token,
                                      .n = end,
                                      .length = s->context,
                                      .held = begin,
                                      .kept = work->order.document != 0,
                                      .chunk = s->job->options->chunk,
                                      .logits = logits,
                                      .progress = progress},
                    &n_restored));
    task_count_read(s->job, end - begin - n_restored, 0);
    if (begin == work->order.n_held) work->n_spared += n_restored;
    if (is_root(s)) work->goes_on = queue_advance(&s->queue, work->request, end, work->n_spared);
    return broadcast(s, &work->goes_on, sizeof work->goes_on);
}

// The document, which store.dir keeps as a whole; or the prompt, part by part, so that nobody waits
// for one whose client has gone.
static enum status read_prompt(struct work *work) {
    struct service *s = work->service;
    const struct order *o = &work->order;
    bool whole = o->document && s->job->options->store;
    int64_t n = o->document ? o->document_end : o->n,
            part = whole ? n : s->job->session_options.chunk;
    if (o->n_held == n) return OK;
    struct progress progress = progress_begin(s->job, name_of(work), n);
    progress.tell = tell_read;
    progress.user = work;
    for (int64_t begin = o->n_held, end; begin < n && work->goes_on; begin = end) {
        end = begin + part < n ? begin + part : n;
        TRY(read_part(work, begin, end, end == o->n, &progress));
    }
    progress_end(&progress);
    return OK;
}

// More of the answer for those who wait for it.
static bool tell_token(void *user, const int32_t *token, int64_t n) {
    struct work *work = user;
    const char *text;
    size_t bytes;
    if (text_stream_add(&work->stream, token, n, false, &text, &bytes) != OK) return false;
    return queue_add_text(&work->service->queue, work->request, n, text, bytes) &&
           !work->stream.stopped;
}

// Passages of the request's document, unless those at hand are.
static enum status open_evidence(struct work *work) {
    struct service *s = work->service;
    const struct document_text none = {0};
    if (work->order.n_passage == 0 || s->evidence_of == work->order.document) return OK;
    evidence_close(&s->evidence);
    s->evidence_of = 0;
    TRY(evidence_open(s->job, work->request ? &work->request->document->text : &none, s->head.n,
                      &s->evidence));
    TRY(generation_take_baseline(s->job, &s->prompt, work->order.document_end, &s->baseline,
                                 work->order.max_tokens, &s->evidence));
    s->evidence_of = work->order.document;
    return OK;
}

static enum status answer(struct work *work, struct generation *g) {
    struct service *s = work->service;
    struct job *job = s->job;
    const struct order *o = &work->order;
    const int64_t begin = o->document ? o->document_end : o->n;
    const struct sampler unused = {0};
    TRY(open_evidence(work));
    *g = (struct generation){.job = job,
                             .prompt = &s->prompt,
                             .sampler = work->request ? &work->request->sampler : &unused,
                             .max_tokens = o->max_tokens,
                             .measures = o->n_passage > 0,
                             .more = tell_token,
                             .user = work,
                             .token = s->token + o->n};
    beacon_begin(job->profile.beacon,
                 &(struct beacon_task){ACTIVITY_ANSWERING, name_of(work), o->max_tokens, 0, 0});
    TRY(generation_run(g, begin, s->token + begin, o->n - begin));
    job->tokens_generated += g->n_token;
    if (o->n_passage > 0) TRY(evidence_take_answer(&s->evidence, job->session, g->n_appended));
    return OK;
}

// Rank 0: what is left of the text, and the line.
static enum status finish(struct work *work, const struct generation *g) {
    struct service *s = work->service;
    struct service_request *r = work->request;
    const char *text;
    size_t bytes;
    json_t *line = NULL;
    TRY(text_stream_add(&work->stream, g->token, g->n_token, true, &text, &bytes));
    queue_advance(&s->queue, r, r->prompt.n, work->n_spared);
    queue_add_text(&s->queue, r, g->n_token, text, bytes);
    if (r->document)
        TRY(answer_line(s->job,
                        &(struct answered){.document = r->document->name,
                                           .question = r->question,
                                           .n_prompt = r->prompt.n,
                                           .token = g->token,
                                           .n_token = g->n_token,
                                           .evidence = &s->evidence,
                                           .text = &r->document->text,
                                           .n_passage = r->n_passage,
                                           .length = s->context,
                                           .seconds = cluster_seconds() - work->started},
                        &line));
    fprintf(stderr, "answered on %s: %lld tokens read, %lld held, %lld generated in %.2f s\n",
            name_of(work), (long long)(r->prompt.n - work->n_spared), (long long)work->n_spared,
            (long long)g->n_token, cluster_seconds() - work->started);
    queue_finish(&s->queue, r, REQUEST_DONE, g->end, line);
    return OK;
}

// What the session holds from here on, for the next request.
static void remember(struct service *s) {
    s->n_held = session_length(s->job->session);
    memcpy(s->held, s->token, (size_t)s->n_held * sizeof *s->held);
}

static enum status serve(struct work *work) {
    struct service *s = work->service;
    struct generation g = {.end = END_ENOUGH};
    enum status status = read_prompt(work);
    if (status == OK && work->goes_on) status = answer(work, &g);
    if (status == OK && is_root(s)) {
        remember(s);
        if (work->goes_on)
            status = finish(work, &g);
        else
            queue_finish(&s->queue, work->request, REQUEST_REFUSED, g.end, NULL);
    }
    text_stream_close(&work->stream);
    return status;
}

static enum status serve_all(struct service *s) {
    bool works = true;
    for (;;) {
        struct work work;
        bool stops;
        if (works)
            beacon_begin(s->job->profile.beacon,
                         &(struct beacon_task){.activity = ACTIVITY_WAITING});
        TRY(stop_wanted(s->job, &stops));
        if (stops) return OK;
        TRY(next_order(s, &work));
        works = work.order.n > 0;
        if (works) TRY(serve(&work));
    }
}

enum status service_add_document(struct service *s, const char *name, char *text, size_t bytes,
                                 struct served_document **out) {
    struct document_text held;
    const struct document_reader reader = job_reader(s->job);
    enum status status = document_text_take(name, text, bytes, &reader, &held);
    if (status == OK) status = served_documents_add(&s->documents, name, &held, out);
    document_text_close(&held);
    return status;
}

// The job's documents, which every rank comes to know and rank 0 holds.
static enum status take_documents(struct service *s) {
    struct job *job = s->job;
    struct document_reader reader = job_reader(job);
    for (int i = 0; i < job->documents.n; i++) {
        struct document_text text;
        struct served_document *added = NULL;
        TRY(document_text_open(&job->documents, i, &reader, comm_host(&job->comm), &text));
        if (is_root(s))
            TRY(served_documents_add(&s->documents, job->documents.items[i].name, &text, &added));
        served_document_release(added);
        document_text_close(&text);
    }
    return OK;
}

static enum status open_service(struct service *s) {
    struct job *job = s->job;
    TRY(prompt_open(job, &s->prompt));
    TRY(prompt_encode_head(job, &s->head));
    TRY(prompt_encode_question(job, "", &s->baseline));
    s->token = malloc((size_t)s->context * sizeof *s->token);
    s->held = malloc((size_t)s->context * sizeof *s->held);
    if (!s->token || !s->held) FAIL(ERR_MEMORY, "no memory for %lld tokens", (long long)s->context);
    if (!is_root(s)) return OK;
    served_documents_open(&s->documents);
    TRY(queue_open(&s->queue, job->options->serve_queue));
    return service_http_open(s, &s->http);
}

static void close_service(struct service *s) {
    if (is_root(s)) {
        queue_stop(&s->queue);
        service_http_close(&s->http);
        served_documents_close(&s->documents);
        queue_close(&s->queue);
    }
    evidence_close(&s->evidence);
    free(s->held);
    free(s->token);
    token_list_close(&s->baseline);
    token_list_close(&s->head);
    prompt_close(&s->prompt);
}

enum status verb_serve(struct job *job) {
    struct service s = {.job = job};
    enum status status = OK;
    job_print_start(job);
    TRY(job_open_model(job));
    s.context = job_context(job);
    TRY(job_plan_service(job));
    TRY_OR(done, comm_agree(&job->comm, open_service(&s)));
    TRY_OR(done, beacon_files_open(job));
    TRY_OR(done, job_open_session(job));
    TRY_OR(done, reading_open(job));
    TRY_OR(done, take_documents(&s));
    TRY_OR(done, comm_agree(&job->comm, is_root(&s) ? service_http_listen(s.http) : OK));
    job->working = true;
    TRY_OR(done, serve_all(&s));
    if (is_root(&s)) queue_stop(&s.queue);
    TRY_OR(done, report_write(job));
    status = stop_here(job);
done:
    close_service(&s);
    return status;
}
