// Chat templates by family, as text around a document and a question. The document precedes the
// question in every template, so that it is read once for many questions. A model that can think
// before it answers gets the form in which it does not.
#ifndef HALKA_MODEL_CHAT_H
#define HALKA_MODEL_CHAT_H

#include "model/tokenizer.h"

enum chat_family {
    CHAT_AUTO,
    CHAT_NONE,
    CHAT_CHATML,
    CHAT_LLAMA3,
    CHAT_MISTRAL,
    CHAT_DEEPSEEK,
    CHAT_GLM,
    CHAT_GEMMA,
    N_CHAT_FAMILY
};

// A conversation: begin, then system_open TEXT system_close (without a system message: what `head`
// has), then for each message user_open TEXT tail, and for each reply before the last message
// reply_open TEXT reply_close. Only the messages of users where system_open is NULL: there a system
// message precedes the first of them, and a blank line.
struct chat_turns {
    const char *begin, *system_open, *system_close, *user_open, *reply_open, *reply_close;
    bool trims; // messages lose the white space around them
};

// Pieces of the prompt: head + DOCUMENT + middle + QUESTION + tail. Constant strings; specials in
// them are to be parsed, in DOCUMENT and QUESTION they are not.
struct chat_template {
    enum chat_family family;
    const char *name;
    const char *head, *middle, *tail;
    bool add_bos;     // the tokenizer's BOS comes first
    const char *stop; // token that ends an answer, besides EOS
    struct chat_turns turns;
};

// The row that fits the checkpoint's own template, else its vocabulary, of the wanted family or
// (CHAT_AUTO) of any. Without a fit the family's plain form; for CHAT_AUTO that of CHAT_NONE.
const struct chat_template *chat_template_choose(const struct tokenizer *tokenizer,
                                                 enum chat_family wanted);
enum status chat_family_parse(const char *name, enum chat_family *out);

#endif
