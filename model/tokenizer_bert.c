// The steps of BERT's normaliser, which change characters one by one.
#include "model/tokenizer_internal.h"
#include "model/unicode.h"

enum { MOST = 3 }; // characters in place of one

// What stands for a character; returns how many.
static int rewrite_character(enum normal_kind kind, int32_t c, int32_t out[MOST]) {
    bool line = c == '\t' || c == '\n' || c == '\r';
    out[0] = c;
    switch (kind) {
    case NORMAL_CLEAN:
        if (!line && (c == 0 || c == 0xFFFD || unicode_is_other(c))) return 0;
        if (line || unicode_is_space(c)) out[0] = ' ';
        return 1;
    case NORMAL_IDEOGRAPHS:
        if (!unicode_is_ideograph(c)) return 1;
        out[0] = out[2] = ' ';
        out[1] = c;
        return 3;
    case NORMAL_MARKS:
        return unicode_is_nonspacing(c) ? 0 : 1;
    case NORMAL_LOWER:
        return unicode_lower(c, out);
    default:
        return 1;
    }
}

enum status tokenizer_rewrite(enum normal_kind kind, const struct text_view *in,
                              struct mapped_text *out) {
    size_t kept = 0; // from here on nothing has changed
    for (size_t i = 0, n; i < in->bytes; i += n) {
        int32_t c = unicode_decode(in->data + i, &n), stands[MOST];
        int n_stand = rewrite_character(kind, c, stands);
        if (n_stand == 1 && stands[0] == c) continue;
        TRY(mapped_text_copy(out, in, kept, i));
        kept = i + n;
        char bytes[4 * MOST];
        size_t n_byte = 0;
        for (int k = 0; k < n_stand; k++) n_byte += unicode_encode(stands[k], bytes + n_byte);
        if (n_byte > 0)
            TRY(mapped_text_write(out, bytes, n_byte, text_view_offset(in, i),
                                  text_view_offset(in, i + n)));
    }
    return mapped_text_copy(out, in, kept, in->bytes);
}
