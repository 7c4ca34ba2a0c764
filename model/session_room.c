#include "model/session_internal.h"

// The sequence as far as `length`, extent by extent. false: no memory.
static bool copy_beginning(const struct sequence *from, int64_t length, struct sequence *out) {
    for (int i = 0; i < from->n_extent && from->extents[i].start < length; i++) {
        const struct extent *extent = &from->extents[i];
        int64_t end = extent->start + extent->kept;
        if (!sequence_append(out, extent->layout, extent->length)) return false;
        sequence_truncate(out, end < length ? end : length);
    }
    return true;
}

// As session_append will cut n more tokens.
static bool append_chunks(const struct session *s, int64_t n, struct sequence *trial) {
    const int64_t chunk = s->sizes.chunk;
    for (int64_t left = n; left > 0; left -= chunk) {
        int64_t count = left < chunk ? left : chunk;
        enum layout layout = count == 1 ? LAYOUT_ROUND_ROBIN : s->sizes.layout.layout;
        if (!sequence_append(trial, layout, count)) return false;
    }
    return true;
}

bool session_has_room(const struct session *s, int64_t length, const int64_t *append, int n_append,
                      int64_t n_single) {
    struct sequence trial;
    if (!kv_store_holds(&s->forward.kv, length)) return false;
    sequence_open(&trial, s->sequence.size);
    bool fits = copy_beginning(&s->sequence, length, &trial);
    for (int i = 0; fits && i < n_append; i++) fits = append_chunks(s, append[i], &trial);
    fits = fits && sequence_append(&trial, LAYOUT_ROUND_ROBIN, n_single) &&
           trial.length <= s->sizes.forward.n_all;
    for (int rank = 0; fits && rank < trial.size; rank++)
        fits = sequence_count(&trial, rank, 0, trial.length) <= s->sizes.forward.n_row;
    sequence_close(&trial);
    return fits;
}
