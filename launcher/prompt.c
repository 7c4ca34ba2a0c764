#include "launcher/prompt.h"

#include <stdlib.h>
#include <string.h>

int prompt_document_flags(const struct options *options) {
    bool in_template = options->task == TASK_ANSWER && options->questions.n > 0;
    return in_template ? ENCODE_CONTINUE : ENCODE_ADD_SPECIALS;
}

static enum status encode_after(const struct job *job, const char *question,
                                struct token_list *out) {
    const struct tokenizer *tokenizer = job->tokenizer;
    const int piece = ENCODE_CONTINUE | ENCODE_PARSE_SPECIALS;
    const char *middle = job->chat->middle, *tail = job->chat->tail;
    TRY(tokenizer_encode(tokenizer, middle, strlen(middle), piece, out));
    enum status status =
        tokenizer_encode(tokenizer, question, strlen(question), ENCODE_CONTINUE, out);
    if (status != OK) return status_context(status, "question '%.40s'", question);
    return tokenizer_encode(tokenizer, tail, strlen(tail), piece, out);
}

static void add_stop(struct prompt *prompt, int32_t token) {
    if (token >= 0 && !prompt_stops(prompt, token)) prompt->stop[prompt->n_stop++] = token;
}

enum status prompt_open(const struct job *job, struct prompt *out) {
    const struct string_list *questions = &job->options->questions;
    const struct model_spec *spec = &job->checkpoint.spec;
    *out = (struct prompt){.n_question = questions->n > 0 ? questions->n : 1};
    for (int i = 0; i < spec->n_stop; i++) add_stop(out, spec->stop[i]);
    add_stop(out, tokenizer_eos(job->tokenizer));
    if (job->chat->stop) add_stop(out, tokenizer_find(job->tokenizer, job->chat->stop));
    out->after = calloc((size_t)out->n_question, sizeof *out->after);
    if (!out->after) FAIL(ERR_MEMORY, "no memory for %d questions", out->n_question);
    if (questions->n == 0) return OK;
    TRY(tokenizer_encode(job->tokenizer, job->chat->head, strlen(job->chat->head),
                         ENCODE_PARSE_SPECIALS | (job->chat->add_bos ? ENCODE_ADD_SPECIALS : 0),
                         &out->head));
    for (int i = 0; i < questions->n; i++) {
        TRY(encode_after(job, questions->items[i], &out->after[i]));
        if (out->after[i].n == 0) FAIL(ERR_CONFIG, "question %d is empty", i + 1);
    }
    return encode_after(job, "", &out->baseline);
}

void prompt_close(struct prompt *prompt) {
    token_list_close(&prompt->head);
    token_list_close(&prompt->baseline);
    for (int i = 0; prompt->after && i < prompt->n_question; i++) {
        token_list_close(&prompt->after[i]);
    }
    free(prompt->after);
    *prompt = (struct prompt){0};
}

bool prompt_stops(const struct prompt *prompt, int32_t token) {
    for (int i = 0; i < prompt->n_stop; i++) {
        if (prompt->stop[i] == token) return true;
    }
    return false;
}

enum status prompt_tokens_around(const struct job *job, int64_t *out) {
    struct prompt prompt;
    enum status status = prompt_open(job, &prompt);
    int64_t longest = prompt.baseline.n;
    for (int i = 0; prompt.after && i < prompt.n_question; i++) {
        if (prompt.after[i].n > longest) longest = prompt.after[i].n;
    }
    *out = prompt.head.n + longest + job->options->max_tokens;
    prompt_close(&prompt);
    return status;
}
