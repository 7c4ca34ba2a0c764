#include "model/wordpiece.h"

#include <stdlib.h>
#include <string.h>

#include "model/unicode.h"

static int64_t count_characters(const char *word, size_t bytes) {
    int64_t n = 0;
    for (size_t i = 0; i < bytes; i += unicode_length(word[i])) n++;
    return n;
}

// The longest piece that begins at `begin`: its token and end; -1 when there is none. `marked` has
// room for the mark and the word, and begins with the mark.
static int32_t longest_piece(const struct bpe *vocabulary, size_t n_mark, char *marked,
                             const char *word, size_t bytes, size_t begin, size_t *end) {
    size_t n = begin > 0 ? n_mark : 0;
    memcpy(marked + n_mark, word + begin, bytes - begin);
    for (*end = bytes; *end > begin; --*end) {
        if (*end < bytes && ((unsigned char)word[*end] & 0xC0) == 0x80) continue;
        int32_t id = bpe_find(vocabulary, marked + n_mark - n, n + *end - begin);
        if (id >= 0) return id;
    }
    return -1;
}

enum status wordpiece_encode(const struct bpe *vocabulary, const struct wordpiece *rules,
                             const char *word, size_t bytes, struct bpe_work *work) {
    size_t n_mark = strlen(rules->mark);
    TRY(bpe_work_reserve(work, bytes));
    work->n = 0;
    bool known = count_characters(word, bytes) <= rules->max_character;
    char *marked = known ? malloc(n_mark + bytes + 1) : NULL;
    if (known && !marked) FAIL(ERR_MEMORY, "no memory for a word of %zu bytes", bytes);
    if (marked) memcpy(marked, rules->mark, n_mark);
    for (size_t begin = 0, end; known && begin < bytes; begin = end) {
        int32_t id = longest_piece(vocabulary, n_mark, marked, word, bytes, begin, &end);
        known = id >= 0;
        if (known) bpe_work_add(work, id, begin, end);
    }
    free(marked);
    if (known) return OK;
    work->n = 0;
    bpe_work_add(work, vocabulary->unknown, 0, bytes);
    return OK;
}

bool wordpiece_takes_space(const char *piece, size_t bytes) {
    static const char *const joined[] = {".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"};
    for (size_t i = 0; i < sizeof(joined) / sizeof(*joined); i++) {
        size_t n = strlen(joined[i]);
        if (bytes >= n && memcmp(piece, joined[i], n) == 0) return false;
    }
    return true;
}
