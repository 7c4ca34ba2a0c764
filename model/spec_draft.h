// What a configuration says about a network, before it is checked and laid out as a model_spec.
// Two readers fill it: config.json (folders) and GGUF metadata.
#ifndef HALKA_MODEL_SPEC_DRAFT_H
#define HALKA_MODEL_SPEC_DRAFT_H

#include <stddef.h>

#include "model/gguf.h"
#include "model/spec.h"
#include "model/tensor.h"

// What differs between families. A family that fits this row needs little other code.
struct architecture {
    const char *name;       // model_spec.architecture, and the prefix of GGUF keys
    const char *model_type; // of config.json
    const char *class_name; // of config.json's "architectures"; NULL: any
    bool gguf_interleaved;  // GGUF stores the rows of q and k for pairs (2i, 2i+1)
    bool query_key_norm;
    bool query_key_value_bias; // always; others say so in attention_bias
    bool windowed;             // sliding_window applies without use_sliding_window
    bool latent;               // latent attention and experts: config_deepseek.c
    bool indexed;              // and a lightning indexer
    bool encoder;              // sees all tokens and has no output matrix
    bool no_gate;              // in the feed-forward
    bool scaled_embedding;     // by the square root of the hidden size
    bool embedding_norm;
    bool positions;          // learned absolute ones in place of a rotation
    bool positions_past_pad; // the first of them is the row after the padding token's
    enum norm_kind norm;
    enum norm_place norm_place;
    bool norm_bias;            // always; others say so in norm_bias
    float norm_offset;         // of norm weights in a folder; GGUF holds the sums
    enum tensor_scheme scheme; // of a folder
    // Every so many layers one is full, the last of them or the first, unless layer_types says
    // which; the others have windows. 0: all layers are alike.
    int full_every;
    bool full_first;
    const char *window_key; // NULL: sliding_window
    // The bases of full and of windowed layers, and their keys before rope_parameters.
    double rope_base, window_rope_base; // 0: 10000; as full ones
    const char *rope_base_key, *window_rope_base_key;
    const char *epsilon_key, *activation_key; // NULL: rms_norm_eps, hidden_act
    double epsilon;                           // 0: 1e-6
    enum activation activation;
};
// NULL when unsupported; either argument may be NULL.
const struct architecture *architecture_find(const char *model_type, const char *class_name);
const struct architecture *architecture_find_gguf(struct gguf_string name);
// "llama, mistral, qwen2, ...", for messages.
enum { ARCHITECTURE_LIST_BYTES = 256 };
const char *architecture_list(char out[ARCHITECTURE_LIST_BYTES]);

enum { SPEC_MAX_LAYER = 4096 };

struct spec_draft {
    const struct architecture *architecture;
    int64_t n_layer, n_hidden, n_head, n_feed_forward; // 0: not given
    int64_t n_kv_head;                                 // 0: n_head
    int64_t head_dim;                                  // 0: n_hidden / n_head
    int64_t n_vocab;                                   // 0: rows of the embedding table
    int64_t context;
    int64_t window; // of the layers that windowed[] names; 0: not given
    bool windowed[SPEC_MAX_LAYER];
    bool encoder;
    int64_t n_position, first_position, n_token_type; // learned absolute positions, if any
    double norm_eps;                                  // 0: not given
    double attention_scale;                           // 0: head_dim^-0.5
    enum activation activation;
    bool tied_head, attention_bias, output_bias, feed_forward_bias, norm_bias;
    float norm_offset;
    struct rope_spec rope; // dim 0: head_dim
    bool has_window_rope;  // layers with a window rotate by an other rope:
    struct rope_spec window_rope;
    double rotary_part;        // of a head that is rotated, when rope.dim is 0
    struct latent_spec latent; // rank 0: full attention
    struct expert_spec experts;
    struct index_spec index; // of a layer that scores; n_head 0: none does
    bool index_interleaved;
    bool has_experts[SPEC_MAX_LAYER], shares_index[SPEC_MAX_LAYER];
    int n_stop;
    int32_t stop[MODEL_MAX_STOP];
};

// Before either reader: the defaults that both formats share.
void spec_draft_init(struct spec_draft *draft);
// Adds an end-of-sequence id once; ids that cannot be tokens (-1 is in use) are passed over.
// ERR_INPUT beyond MODEL_MAX_STOP ids.
enum status spec_draft_add_stop(struct spec_draft *draft, int64_t id, const char *path);

enum status spec_draft_read_json(const char *text, size_t bytes, const char *path,
                                 struct spec_draft *draft); // config.json
enum status spec_draft_read_generation(const char *text, size_t bytes, const char *path,
                                       struct spec_draft *draft); // generation_config.json
// Reads rope divisors and the presence of biases from the tensor table as well.
enum status spec_draft_read_gguf(const struct gguf *gguf, const char *path,
                                 struct spec_draft *draft);

// Checks the draft and lays it out; *out is to be closed by the caller, also after a failure.
enum status spec_build(const struct spec_draft *draft, const char *path, struct model_spec *out);

#endif
