#include "launcher/estimate.h"

// Pairs of a query and a key that it sees, of one sequence of n tokens.
static double visible(const struct model_spec *spec, int64_t window, double n) {
    double reach = spec->causal ? (double)window - 1 : (double)(window / 2);
    if (window == 0 || reach > n - 1) reach = n - 1;
    double behind = n * reach - reach * (reach + 1) / 2; // of keys before the query
    return n + (spec->causal ? behind : 2 * behind);
}

// Of one token.
static double product_flop(const struct model_spec *spec, const struct layer_spec *l) {
    double n_matrix = l->feed_forward == FEED_FORWARD_PLAIN ? 2 : 3;
    double width = (double)(2 * l->n_head + 2 * l->n_kv_head) * l->head_dim;
    double experts = l->feed_forward == FEED_FORWARD_EXPERTS
                         ? (double)l->experts.n_used * l->experts.n_feed_forward
                         : 0;
    return 2.0 * spec->n_hidden * (width + n_matrix * ((double)l->n_feed_forward + experts));
}

static double attention_flop(const struct estimate_case *of, const struct layer_spec *l, double n) {
    const struct index_spec *index = &l->index;
    double pairs = visible(of->spec, l->window, n), scores = 0;
    if (!of->dense && index->layout != INDEX_NONE) {
        if (index->layout == INDEX_FULL) scores = 2.0 * pairs * index->n_head * index->head_dim;
        pairs = visible(of->spec, index->k, n);
    }
    return scores + 4.0 * pairs * l->n_head * l->head_dim;
}

struct cost estimate_cost(const struct estimate_case *of, int64_t n) {
    const struct model_spec *spec = of->spec;
    struct cost cost = {0};
    for (int i = 0; i < spec->n_layer; i++) {
        cost.product_flop += (double)n * product_flop(spec, &spec->layers[i]);
        cost.attention_flop += attention_flop(of, &spec->layers[i], (double)n);
    }
    if (of->scored) cost.product_flop += 2.0 * (double)n * (double)spec->n_vocab * spec->n_hidden;
    cost.product_flop /= of->size;
    cost.attention_flop /= of->size;
    return cost;
}

static double flop(const struct estimate_case *of, int64_t n) {
    struct cost cost = estimate_cost(of, n);
    return cost.product_flop + cost.attention_flop;
}

int64_t estimate_chunk(const struct estimate_case *of, int64_t n, double flop_per_s,
                       int64_t least) {
    double most = flop_per_s * STOP_SECONDS;
    int64_t chunk = 1;
    while (chunk < n) chunk *= 2;
    while (chunk > least && flop(of, n) - flop(of, n > chunk ? n - chunk : 0) > most) chunk /= 2;
    return chunk < n ? chunk : 0;
}
