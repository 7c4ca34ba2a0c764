#include "launcher/prompt.h"

#include <stdlib.h>
#include <string.h>

int prompt_document_flags(const struct options *options) {
    bool asked = options->questions.n > 0 || options->verb == VERB_SERVE;
    bool in_template = options->task == TASK_ANSWER && asked;
    return in_template ? ENCODE_CONTINUE : ENCODE_ADD_SPECIALS;
}

// A piece of the template: its specials are tokens.
static enum status encode_piece(const struct job *job, const char *piece, struct token_list *out) {
    const bool first = out->n == 0;
    int flags = ENCODE_PARSE_SPECIALS;
    if (!first) flags |= ENCODE_CONTINUE;
    if (first && job->chat->add_bos) flags |= ENCODE_ADD_SPECIALS;
    return tokenizer_encode(job->tokenizer, piece, strlen(piece), flags, out);
}

enum status prompt_encode_head(const struct job *job, struct token_list *out) {
    return encode_piece(job, job->chat->head, out);
}

enum status prompt_encode_question(const struct job *job, const char *question,
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
    TRY(prompt_encode_head(job, &out->head));
    for (int i = 0; i < questions->n; i++) {
        TRY(prompt_encode_question(job, questions->items[i], &out->after[i]));
        if (out->after[i].n == 0) FAIL(ERR_CONFIG, "question %d is empty", i + 1);
    }
    return prompt_encode_question(job, "", &out->baseline);
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

static enum status check_turns(const struct chat_message *messages, int n) {
    int first = n > 0 && messages[0].role == ROLE_SYSTEM;
    for (int i = first; i < n; i++) {
        if (messages[i].role == ROLE_SYSTEM)
            FAIL(ERR_INPUT, "message %d: a system message can only be the first", i + 1);
        if (messages[i].role != ((i - first) % 2 ? ROLE_ASSISTANT : ROLE_USER))
            FAIL(ERR_INPUT,
                 "message %d: messages of user and assistant take turns, the user's first", i + 1);
    }
    if (n == first || messages[n - 1].role != ROLE_USER)
        FAIL(ERR_INPUT, "the last message must be the user's");
    return OK;
}

static enum status encode_message(const struct job *job, const char *text, struct token_list *out) {
    size_t begin = 0, end = strlen(text);
    if (job->chat->turns.trims) {
        begin = strspn(text, " \t\r\n");
        while (end > begin && strchr(" \t\r\n", text[end - 1])) end--;
    }
    return tokenizer_encode(job->tokenizer, text + begin, end - begin, ENCODE_CONTINUE, out);
}

// What comes before the first user's own text.
static enum status encode_opening(const struct job *job, const char *system,
                                  struct token_list *out) {
    const struct chat_turns *turns = &job->chat->turns;
    if (!system && job->chat->family != CHAT_NONE) return prompt_encode_head(job, out);
    TRY(encode_piece(job, turns->begin, out));
    if (system && turns->system_open) {
        TRY(encode_piece(job, turns->system_open, out));
        TRY(encode_message(job, system, out));
        TRY(encode_piece(job, turns->system_close, out));
    }
    TRY(encode_piece(job, turns->user_open, out));
    if (!system || turns->system_open) return OK;
    TRY(encode_message(job, system, out));
    return encode_piece(job, "\n\n", out);
}

enum status prompt_encode_chat(const struct job *job, const struct chat_message *messages, int n,
                               struct token_list *out) {
    const struct chat_turns *turns = &job->chat->turns;
    TRY(check_turns(messages, n));
    int i = messages[0].role == ROLE_SYSTEM;
    TRY(encode_opening(job, i ? messages[0].text : NULL, out));
    for (;; i += 2) {
        TRY(encode_message(job, messages[i].text, out));
        TRY(encode_piece(job, job->chat->tail, out));
        if (i + 1 >= n) return OK;
        TRY(encode_piece(job, turns->reply_open, out));
        TRY(encode_message(job, messages[i + 1].text, out));
        TRY(encode_piece(job, turns->reply_close, out));
        TRY(encode_piece(job, turns->user_open, out));
    }
}
