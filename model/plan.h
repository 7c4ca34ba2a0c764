// The sizes of a session, derived from the specification and the options in one place: session_open
// allocates them and session_plan reports them, so that plan and run cannot disagree.
#ifndef HALKA_MODEL_PLAN_H
#define HALKA_MODEL_PLAN_H

#include "model/forward.h"
#include "model/session.h"

struct session_sizes {
    enum precision precision, kv_precision; // resolved: FP32 or BF16
    bool tf32;                              // see struct backend
    struct layout_choice layout;            // of chunks
    int64_t chunk;                          // tokens of one prefill chunk
    int64_t tile;                           // tokens of one product
    struct forward_shape forward;
    struct attention_shape attention; // of the widest layer
    struct index_shape index;         // likewise; n_head 0: no layer selects
    struct kv_shape kv;
    struct expert_exchange_shape experts; // n_expert 0: no layer has experts
    struct study_shape study;
    bool sharded;     // weights, over more than one rank
    bool encode_only; // as options say, or the network
    int64_t buffer_bytes, kv_bytes, room_bytes, ring_bytes, expert_bytes, study_bytes; // 0: none
};

// Most queries of all ranks that travel, in pass-Q and in exchange SCORES: partials and candidates
// of theirs are not O(T/N), so only short chunks do that. docs/performance.md compares the times.
enum { PASS_Q_MAX_QUERIES = 2048, SCORES_MAX_QUERIES = 512 };
int64_t session_most_sent(bool indexed);

enum status session_measure(const struct checkpoint *checkpoint, const struct backend *backend,
                            int size, const struct session_options *options,
                            struct session_sizes *out);

#endif
