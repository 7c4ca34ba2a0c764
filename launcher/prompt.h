// The prompt of an answer: HEAD document MIDDLE question TAIL, as tokens. The document is read
// once; what follows it (middle, question and tail) is one list of tokens per question.
#ifndef HALKA_LAUNCHER_PROMPT_H
#define HALKA_LAUNCHER_PROMPT_H

#include "launcher/job.h"

struct prompt {
    struct token_list head;
    int n_question;             // at least 1: without a question, one empty list after
    struct token_list *after;   // [n_question] owned
    struct token_list baseline; // the same around an empty question; nothing without a question
    int n_stop;
    int32_t stop[MODEL_MAX_STOP + 2]; // tokens that end an answer
};

// How documents are tokenised for the job's task.
int prompt_document_flags(const struct options *options);
enum status prompt_open(const struct job *job, struct prompt *out); // close it even after a failure
void prompt_close(struct prompt *prompt);                           // accepts a zeroed struct
bool prompt_stops(const struct prompt *prompt, int32_t token);

// Pieces by themselves, appended to a list: what comes before a document, and what follows it.
enum status prompt_encode_head(const struct job *job, struct token_list *out);
enum status prompt_encode_question(const struct job *job, const char *question,
                                   struct token_list *out);
enum chat_role { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT };
struct chat_message {
    enum chat_role role;
    const char *text;
};
// A conversation by the model's template, up to where the next reply begins. A system message may
// come first; users and assistant alternate, and a user's message is the last. ERR_INPUT: they do
// not, or a text is not UTF-8.
enum status prompt_encode_chat(const struct job *job, const struct chat_message *messages, int n,
                               struct token_list *out);
// The most tokens around a document: head, longest question and answer.
enum status prompt_tokens_around(const struct job *job, int64_t *out);

#endif
