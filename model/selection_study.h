// What sparse attention leaves out, for research: of each layer that selects, the share of dense
// attention's mass that the selected tokens hold (recall), and how many of them the layer that
// selected before it had chosen too (overlap). Queries that see no more than k tokens do not count.
// Costs one dense attention a layer, and a copy of the selection on the host.
#ifndef HALKA_MODEL_SELECTION_STUDY_H
#define HALKA_MODEL_SELECTION_STUDY_H

#include "dist/sparse_attention.h"

struct layer_study {
    double recall; // sum over queries and heads of exp(lse of the selection - lse of all)
    double overlap;
    int64_t n_recall, n_overlap; // terms of the sums: (query, head); (query, selected token)
};

struct selection_study {
    struct ring_attention *ring;
    int n_layer, k;
    struct layer_study *layers; // [n_layer] owned
    float *out, *lse;           // dense attention of one chunk, backend memory, owned
    float *host_lse;            // [2, n_token * n_head] owned
    uint64_t
        *candidate; // [2, n_token, k] host: positions that this layer and the one before selected
    int32_t *n_candidate; // [2, n_token]
    int64_t *position;    // [n_token]
    int current;          // which half of candidate is the last layer's
};

struct study_shape {
    int n_layer, n_head, value_dim, k;
    int64_t n_token;
};
// The ring outlives the study. close accepts a zeroed struct.
enum status selection_study_open(struct selection_study *out, struct ring_attention *ring,
                                 const struct study_shape *shape);
void selection_study_close(struct selection_study *study);
int64_t selection_study_bytes(const struct study_shape *shape); // backend and host together

// After a layer's sparse attention in prefill, on every rank. A chunk's first layer must pass
// `first`: there is no selection before it.
enum status selection_study_add(struct selection_study *study, int layer,
                                const struct sparse_ring_args *args, bool first);
// Sums over ranks: mean recall and overlap of each layer, NaN where nothing was counted.
enum status selection_study_take(struct selection_study *study, double *recall, double *overlap);

#endif
