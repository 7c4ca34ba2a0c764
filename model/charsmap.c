#include "model/charsmap.h"

#include <stdlib.h>
#include <string.h>

#include "model/unicode.h"

enum { HEAD = 4, LONGEST = 5 }; // bytes: the trie's size; of a grapheme that is looked up whole

static int digit_value(char c) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

static uint32_t read_u32(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

enum status charsmap_open(const char *base64, struct charsmap *out) {
    size_t n = strlen(base64);
    uint32_t bits = 0;
    int n_bit = 0;
    *out = (struct charsmap){.data = malloc(n / 4 * 3 + 4)};
    if (!out->data) FAIL(ERR_MEMORY, "no memory for a normaliser");
    for (size_t i = 0; i < n && base64[i] != '='; i++) {
        int value = digit_value(base64[i]);
        if (value < 0) FAIL(ERR_INPUT, "tokenizer.json: precompiled_charsmap is not base64");
        bits = bits << 6 | (uint32_t)value;
        n_bit += 6;
        if (n_bit < 8) continue;
        n_bit -= 8;
        out->data[out->bytes++] = (unsigned char)(bits >> n_bit);
    }
    size_t trie = out->bytes >= HEAD ? read_u32(out->data) : 0;
    if (trie == 0 || trie % 4 || trie > out->bytes - HEAD)
        FAIL(ERR_INPUT, "tokenizer.json: precompiled_charsmap holds no table");
    out->n_unit = trie / 4;
    return OK;
}

void charsmap_close(struct charsmap *map) {
    free(map->data);
    *map = (struct charsmap){0};
}

static bool read_unit(const struct charsmap *map, uint64_t at, uint32_t *unit) {
    if (at >= map->n_unit) return false;
    *unit = read_u32(map->data + HEAD + 4 * at);
    return true;
}

static uint64_t unit_offset(uint32_t unit) {
    return (uint64_t)(unit >> 10) << ((unit & 1u << 9) >> 6);
}

// What stands for the first entry that the key begins with, or NULL.
static const char *look_up(const struct charsmap *map, const char *key, size_t bytes, size_t *n) {
    uint32_t unit;
    if (!read_unit(map, 0, &unit)) return NULL;
    uint64_t at = unit_offset(unit);
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)key[i];
        at ^= c;
        if (c == 0 || !read_unit(map, at, &unit) || (unit & (1u << 31 | 0xFF)) != c) return NULL;
        at ^= unit_offset(unit);
        if (!(unit >> 8 & 1)) continue;
        if (!read_unit(map, at, &unit)) return NULL;
        size_t begin = HEAD + 4 * map->n_unit + (unit & ~(1u << 31));
        if (begin >= map->bytes) return NULL;
        const char *text = (const char *)map->data + begin;
        *n = strnlen(text, map->bytes - begin);
        return unicode_valid_prefix(text, *n) == *n ? text : NULL;
    }
    return NULL;
}

enum status charsmap_normalize(const struct charsmap *map, const struct text_view *in,
                               struct mapped_text *out) {
    for (size_t i = 0, end; i < in->bytes; i = end) {
        size_t n, character;
        end = i + unicode_grapheme(in->data + i, in->bytes - i);
        const char *by = end - i <= LONGEST ? look_up(map, in->data + i, end - i, &n) : NULL;
        if (by) {
            TRY(mapped_text_write(out, by, n, text_view_offset(in, i), text_view_offset(in, end)));
            continue;
        }
        for (size_t c = i; c < end; c += character) {
            character = unicode_length(in->data[c]);
            by = look_up(map, in->data + c, character, &n);
            if (by)
                TRY(mapped_text_write(out, by, n, text_view_offset(in, c),
                                      text_view_offset(in, c + character)));
            else
                TRY(mapped_text_copy(out, in, c, c + character));
        }
    }
    return OK;
}
