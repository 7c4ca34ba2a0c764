// Reading more tokens than a checkpoint was trained for, without training: how its positions are
// turned into rotations. AUTO leaves what the checkpoint's own configuration says.
#ifndef HALKA_MODEL_EXTENSION_H
#define HALKA_MODEL_EXTENSION_H

#include "model/spec.h"

enum { EXTENSION_LONGEST = 1000000000 }; // tokens, of methods without a limit

enum extension_method {
    EXTENSION_AUTO,
    EXTENSION_NONE,
    EXTENSION_LINEAR,
    EXTENSION_NTK,
    EXTENSION_DYNAMIC,
    EXTENSION_YARN,
    EXTENSION_LLAMA3,
    EXTENSION_LONGROPE,
    // These leave the rotations as they are and change the positions (model_spec.parts).
    EXTENSION_SELF_EXTEND, // Jin et al. 2024
    EXTENSION_DCA,         // Dual Chunk Attention, An et al. 2024
    EXTENSION_STREAMING,   // StreamingLLM, Xiao et al. 2023
    N_EXTENSION
};

struct extension {
    enum extension_method method;
    double factor;           // 0: context / original_context; dynamic: 1
    double original_context; // tokens; 0: the checkpoint's
    int64_t context;         // wanted, tokens; 0: what the method reaches
    // 0: the formulas' usual values.
    double beta_fast, beta_slow, attention_factor, low_freq_factor, high_freq_factor;
    int64_t group, neighbours; // self_extend: positions to one, true ones; 0: by the contexts
    int64_t chunk;             // dca; 0: three quarters of the original context
    int64_t sinks, window;     // streaming; window 0: the original context less the sinks
    const char *factor_path; // longrope: JSON with short_factor and long_factor; NULL: checkpoint's
};

// Replaces the checkpoint's rotations and sets spec->reach. ERR_CONFIG where method, parameters and
// network do not go together; `path` names the checkpoint in messages.
enum status extension_apply(const struct extension *extension, const char *path,
                            struct model_spec *spec);

#endif
