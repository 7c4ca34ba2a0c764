// The network as data: one layer_spec per layer, filled from the checkpoint's own configuration
// (config.json or GGUF metadata). A new architecture is a new filling, not a new forward pass.
#ifndef HALKA_MODEL_SPEC_H
#define HALKA_MODEL_SPEC_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "partition/visibility.h"

enum { MODEL_MAX_STOP = 16, MODEL_MAX_ROPE = 4, MODEL_MAX_PART = 3, ROPE_MAX_FACTORS = 256 };

// The position as which position p is rotated: min(p mod modulus / group + offset, limit). Zeroed:
// p itself.
struct position_map {
    int64_t modulus, group, offset, limit; // modulus, group and limit 0: none
};

enum rope_method {
    ROPE_DEFAULT,
    ROPE_LINEAR,
    ROPE_NTK,
    ROPE_DYNAMIC,
    ROPE_YARN,
    ROPE_LLAMA3,
    ROPE_LONGROPE,
    N_ROPE_METHOD
};
struct rope_spec {
    enum rope_method method;
    double base;             // rope_theta
    int dim;                 // rotated elements of a head; 0: none
    bool interleaved;        // pairs (2i, 2i+1) as GGUF's llama stores them; else halves
    double factor;           // all but default
    double original_context; // dynamic, yarn, llama3, longrope
    double low_freq_factor, high_freq_factor; // llama3
    double beta_fast, beta_slow;              // yarn
    double attention_factor;                  // yarn, longrope; 0: by formula
    bool truncate;                            // yarn: floor/ceil of the ramp's ends
    int n_factor;                             // longrope: of each list; dim / 2
    float short_factor[ROPE_MAX_FACTORS];     // longrope: up to original_context ...
    float long_factor[ROPE_MAX_FACTORS];      // ... and for longer sequences: inv_freq[i] /= x[i]
    struct position_map map;
    bool has_divisors; // GGUF rope_freqs.weight: inv_freq[i] /= divisor[i]
    float divisor[ROPE_MAX_FACTORS];
};

// FULL: keys and values of heads are kept. LATENT (MLA): one latent row and one rotated key part
// are kept for all heads; attention runs in the absorbed form, queries against latents.
enum attention_kind { ATTENTION_FULL, ATTENTION_LATENT };
// PLAIN: down(activation(up(x))), where GATED is down(activation(gate(x)) * up(x)).
enum feed_forward_kind { FEED_FORWARD_GATED, FEED_FORWARD_PLAIN, FEED_FORWARD_EXPERTS };
// With f one of attention and feed-forward: PRE is x += f(norm(x)), POST is x = norm(x + f(x)) and
// SANDWICH is x += norm2(f(norm(x))).
enum norm_place { NORM_PRE, NORM_POST, NORM_SANDWICH };

struct latent_spec {        // DeepSeek-V2 technical report, section 2.1
    int query_rank;         // q_lora_rank; 0: queries come straight from the hidden state
    int rank;               // kv_lora_rank: elements of the latent, also of an absorbed value
    int nope_dim, rope_dim; // of a query head, in this order
    int value_dim;          // of a head's output
    float norm_eps;         // of the norms of both latents
};

enum index_layout {
    INDEX_NONE,   // dense attention
    INDEX_FULL,   // this layer scores and selects
    INDEX_SHARED, // reuses the selection of the last layer before it that is INDEX_FULL
};
struct index_spec { // DeepSeek Sparse Attention's lightning indexer
    enum index_layout layout;
    int n_head, head_dim;
    int k;            // tokens selected for a query
    int rope;         // index into model_spec.ropes: the first ropes[rope].dim elements rotate
    bool from_latent; // queries come from the query latent (DeepSeek), else from the hidden state
    float scale;      // of the head weights: n_head^-0.5 head_dim^-0.5
    float norm_eps;   // of the key's LayerNorm
};

struct expert_spec {
    int n_expert, n_used, n_group, n_group_used;
    int n_feed_forward; // of one expert
    int n_shared;       // experts that every token passes, as one of n_shared times the width
    bool softmax;       // scores by softmax, else sigmoid
    bool bias;          // the choice (not the weight) adds a bias
    bool normalise;
    float scale;
};

struct layer_spec {
    enum attention_kind attention;
    enum feed_forward_kind feed_forward;
    enum norm_kind norm; // of the hidden state; those of query and key heads are RMS
    enum norm_place norm_place;
    bool norm_bias;
    bool attention_norm; // false: attention reads the state as it is (ModernBERT's first layer)
    enum activation activation;
    int n_head;
    int n_kv_head, head_dim; // FULL; of LATENT 1 and latent.rank + latent.rope_dim, as kept
    int value_dim;           // of what attention returns for a head: head_dim, or latent.rank
    int n_feed_forward;
    bool attention_bias;    // q, k, v (qwen2)
    bool output_bias;       // o_proj (llama with attention_bias)
    bool feed_forward_bias; // gate, up and down
    bool query_key_norm;    // RMS norm of each q and k head (qwen3)
    float attention_scale;  // head_dim^-0.5 unless the checkpoint says otherwise
    int rope;               // index into model_spec.ropes
    // 0: attention sees every token. Causal: a query at i sees keys j with i - window < j <= i, and
    // the first `sinks` tokens; an encoder's sees |i - j| <= window / 2.
    int64_t window, sinks;
    struct latent_spec latent; // ATTENTION_LATENT
    struct index_spec index;   // layout NONE: dense
    struct expert_spec
        experts; // FEED_FORWARD_EXPERTS; n_feed_forward is then the shared ones' width
};

// Attention in parts: keys at some distances are seen with queries, and maybe keys, rotated as if
// they were elsewhere. Together the parts show each key once; they merge by their lse.
struct attention_part {
    struct visibility visibility;
    int query_rope; // index into model_spec.ropes
    int key_set;    // index into model_spec.key_rope
};

struct model_spec {
    char architecture[32]; // "llama", "qwen2", "qwen3"
    bool causal;           // false: an encoder, which sees all and gives states, no next token
    int n_layer;
    struct layer_spec *layers; // [n_layer] owned
    int n_rope;
    struct rope_spec ropes[MODEL_MAX_ROPE];
    // How every layer attends where a method of extension.h says so; n_part 0: in one, by its rope.
    const char *part_method; // "self_extend", for reports
    int n_part, n_key_set;
    struct attention_part parts[MODEL_MAX_PART];
    int key_rope[2]; // [n_key_set] rotations as which keys are kept
    int64_t n_vocab;
    int n_hidden;
    float norm_eps;
    float norm_offset;     // of norm weights as stored: 1 where x is scaled by 1 + weight
    float embedding_scale; // 1 unless scaled
    bool embedding_norm;   // embeddings are normed as the layers are
    bool final_norm;       // false: the last layer ends with a norm of its own
    // Learned absolute positions (BERT): that of token i is row first_position + i of n_position.
    // Row 0 of n_token_type is added to every token.
    int64_t n_position, first_position, n_token_type; // n_position 0: there are none
    bool tied_head;                                   // output matrix is the embedding table
    int64_t context;                                  // positions the checkpoint was trained for
    int64_t reach; // positions that a method set by extension.h makes usable; 0: context
    int n_stop;
    int32_t stop[MODEL_MAX_STOP]; // end-of-sequence ids from config and generation_config
};

// Tokens that layers with an indexer select, 0 when none has one; and another number of them.
int model_spec_top_k(const struct model_spec *spec);
void model_spec_set_top_k(struct model_spec *spec, int k);

// Makes every layer of a dense causal network see `window` tokens and the first `sinks`; a layer
// with a smaller window of its own keeps it. ERR_CONFIG for encoders and for layers that select.
enum status model_spec_set_window(struct model_spec *spec, int64_t window, int64_t sinks);
// Whether some layer has a window; the largest one.
int64_t model_spec_window(const struct model_spec *spec);

void model_spec_close(struct model_spec *spec); // accepts a zeroed struct

// inv_freq[dim/2] in radians per position, and the factor on cos and sin. length: positions that
// the whole sequence will hold, by which dynamic and longrope choose once for all of them.
void rope_frequencies(const struct rope_spec *spec, int64_t length, double *inv_freq,
                      double *attention_factor);
bool rope_reads_length(const struct rope_spec *spec);
int64_t rope_position(const struct position_map *map, int64_t position);
const char *rope_method_name(enum rope_method method); // "yarn", as configurations call it
// ERR_INPUT unless the frequencies of any length are finite. `path` is for messages.
enum status rope_check(const struct rope_spec *spec, const char *path);
// Whether sequences of these lengths are rotated by the same frequencies.
bool rope_rotates_alike(const struct rope_spec *spec, int64_t length, int64_t other);
bool model_spec_reads_length(const struct model_spec *spec); // some rotation does
bool model_spec_rotates_alike(const struct model_spec *spec, int64_t length, int64_t other);

#endif
