// Text token by token: what follows the sequence that the session holds, until a token ends it, so
// many are there, or rank 0 has enough. Every rank calls this with the same arguments.
#ifndef HALKA_LAUNCHER_GENERATION_H
#define HALKA_LAUNCHER_GENERATION_H

#include "launcher/evidence.h"
#include "launcher/prompt.h"
#include "model/sampler.h"

enum generation_end { END_STOP_TOKEN, END_LENGTH, END_ENOUGH };

struct generation {
    struct job *job;
    const struct prompt *prompt; // whose stop tokens end it
    const struct sampler *sampler;
    uint64_t document, question; // of the random numbers
    int64_t max_tokens;
    bool measures; // attention on the sequence (session_mass_take), that of the last token, too
    // NULL, or called on rank 0 with all tokens so far, the last of which is new: whether to go on.
    bool (*more)(void *user, const int32_t *token, int64_t n);
    void *user;

    int32_t *token;     // [max_tokens] of the caller: what was generated ...
    int64_t n_token;    // ... without the token that ends it
    int64_t n_appended; // queries whose attention was measured
    enum generation_end end;
};

// Forgets what the session holds from `begin` on, reads after[n_after] there, and goes on. Without
// `after` the session has the logits of its last token, and holds `begin`.
enum status generation_run(struct generation *generation, int64_t begin, const int32_t *after,
                           int64_t n_after);

// What an answer of up to max_tokens to the empty question, which `empty` asks behind `begin`,
// attends to: the evidence's baseline.
enum status generation_take_baseline(struct job *job, const struct prompt *prompt, int64_t begin,
                                     const struct token_list *empty, int64_t max_tokens,
                                     struct evidence *evidence);

#endif
