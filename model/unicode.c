// UTF-8 and normal forms. A text is normalised by segments between characters that never combine
// with what precedes them, so that offsets stay exact wherever nothing changes. The canonical order
// of marks (Unicode Standard, section 3.11, D108-D109) is a stable sort of own: utf8proc's is
// quadratic in the length of a run, and the length is the document's choice.
#include "model/unicode.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static size_t sequence_length(const unsigned char *s, size_t left) {
    unsigned char c = s[0];
    if (c < 0x80) return 1;
    size_t n = c >= 0xC2 && c <= 0xDF ? 2 : c >= 0xE0 && c <= 0xEF ? 3 : 4;
    if (c < 0xC2 || c > 0xF4 || n > left) return 0;
    unsigned char low = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80;
    unsigned char high = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
    if (s[1] < low || s[1] > high) return 0;
    for (size_t i = 2; i < n; i++)
        if ((s[i] & 0xC0) != 0x80) return 0;
    return n;
}

static size_t ascii_run(const char *text, size_t begin, size_t bytes) {
    size_t i = begin;
    for (uint64_t word; i + 8 <= bytes; i += 8) {
        memcpy(&word, text + i, 8);
        if (word & UINT64_C(0x8080808080808080)) break;
    }
    while (i < bytes && (unsigned char)text[i] < 0x80) i++;
    return i;
}

size_t unicode_valid_prefix(const char *text, size_t bytes) {
    size_t i = 0;
    while ((i = ascii_run(text, i, bytes)) < bytes) {
        size_t n = sequence_length((const unsigned char *)text + i, bytes - i);
        if (n == 0) return i;
        i += n;
    }
    return bytes;
}

size_t unicode_length(char lead) {
    unsigned char c = (unsigned char)lead;
    return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

int32_t unicode_decode(const char *text, size_t *bytes) {
    const unsigned char *s = (const unsigned char *)text;
    *bytes = unicode_length(text[0]);
    if (*bytes == 1) return s[0];
    int32_t character = s[0] & (0x7F >> *bytes);
    for (size_t i = 1; i < *bytes; i++) character = character << 6 | (s[i] & 0x3F);
    return character;
}

bool unicode_is_space(int32_t c) {
    if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
    utf8proc_category_t category = utf8proc_category(c);
    return c == 0x85 || (category >= UTF8PROC_CATEGORY_ZS && category <= UTF8PROC_CATEGORY_ZP);
}

bool unicode_is_word(int32_t c) {
    utf8proc_category_t category = utf8proc_category(c);
    return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL) ||
           category == UTF8PROC_CATEGORY_PC;
}

bool unicode_is_other(int32_t c) {
    utf8proc_category_t category = utf8proc_category(c);
    return category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF ||
           category == UTF8PROC_CATEGORY_CO;
}

bool unicode_is_nonspacing(int32_t c) {
    return utf8proc_category(c) == UTF8PROC_CATEGORY_MN;
}

bool unicode_is_ideograph(int32_t c) {
    static const int32_t ranges[][2] = {
        {0x3400, 0x4DBF},   {0x4E00, 0x9FFF},   {0xF900, 0xFAFF},   {0x20000, 0x2A6DF},
        {0x2A700, 0x2B81F}, {0x2B920, 0x2CEAF}, {0x2F800, 0x2FA1F},
    };
    for (size_t i = 0; i < sizeof(ranges) / sizeof(*ranges); i++)
        if (c >= ranges[i][0] && c <= ranges[i][1]) return true;
    return false;
}

size_t unicode_grapheme(const char *text, size_t bytes) {
    size_t n, end;
    utf8proc_int32_t state = 0, before = unicode_decode(text, &end);
    while (end < bytes) {
        int32_t c = unicode_decode(text + end, &n);
        if (utf8proc_grapheme_break_stateful(before, c, &state)) break;
        before = c;
        end += n;
    }
    return end;
}

int unicode_lower(int32_t c, int32_t out[2]) {
    out[0] = c == 0x130 ? 'i' : utf8proc_tolower(c); // the one form of two characters
    out[1] = 0x307;
    return c == 0x130 ? 2 : 1;
}

size_t unicode_encode(int32_t c, char out[4]) {
    return (size_t)utf8proc_encode_char(c, (utf8proc_uint8_t *)out);
}

struct segment {
    int32_t *character; // [capacity]
    int32_t *spare;     // [capacity] for sorting
    size_t n, capacity;
    int options; // of utf8proc
};

static bool is_mark(int32_t c) {
    utf8proc_category_t category = utf8proc_category(c);
    return category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
}

// True when nothing before the character can change with it: a starter that is no mark and no
// second half of a Hangul syllable, judged after decomposition.
static bool starts_segment(int32_t c, int options) {
    int32_t parts[32];
    int boundary = 0;
    if (c < 0x80) return true;
    utf8proc_ssize_t n = utf8proc_decompose_char(c, parts, 32, options, &boundary);
    int32_t first = n > 0 ? parts[0] : c;
    return utf8proc_get_property(first)->combining_class == 0 && !is_mark(first) &&
           !(first >= 0x1160 && first <= 0x11FF);
}

static enum status segment_add(struct segment *segment, int32_t c) {
    int boundary = 0;
    if (segment->n + 32 > segment->capacity) {
        size_t capacity = segment->capacity * 2 + 256;
        int32_t *character = realloc(segment->character, capacity * sizeof(int32_t));
        if (character) segment->character = character;
        int32_t *spare = realloc(segment->spare, capacity * sizeof(int32_t));
        if (spare) segment->spare = spare;
        if (!character || !spare) FAIL(ERR_MEMORY, "no memory for %zu characters", capacity);
        segment->capacity = capacity;
    }
    utf8proc_ssize_t n = utf8proc_decompose_char(c, segment->character + segment->n, 32,
                                                 segment->options, &boundary);
    if (n < 0 || n > 32) FAIL(ERR_INTERNAL, "utf8proc cannot decompose U+%04X", (unsigned)c);
    segment->n += (size_t)n;
    return OK;
}

static int mark_class(int32_t c) {
    return utf8proc_get_property(c)->combining_class;
}

// Stable counting sort of one run of marks by combining class (1 .. 254).
static void sort_marks(int32_t *mark, int32_t *spare, size_t n) {
    size_t start[257] = {0};
    for (size_t i = 0; i < n; i++) start[mark_class(mark[i]) + 1]++;
    for (int c = 0; c < 256; c++) start[c + 1] += start[c];
    for (size_t i = 0; i < n; i++) spare[start[mark_class(mark[i])]++] = mark[i];
    memcpy(mark, spare, n * sizeof(*mark));
}

static void segment_order(struct segment *segment) {
    for (size_t i = 0, end; i < segment->n; i = end) {
        bool sorted = true;
        end = i + 1;
        if (mark_class(segment->character[i]) == 0) continue;
        for (; end < segment->n && mark_class(segment->character[end]) != 0; end++)
            sorted &=
                mark_class(segment->character[end - 1]) <= mark_class(segment->character[end]);
        if (!sorted) sort_marks(segment->character + i, segment->spare, end - i);
    }
}

// Writes the segment begin .. end - 1 of `in`: a copy when its normal form is itself.
static enum status segment_write(struct segment *segment, const struct text_view *in, size_t begin,
                                 size_t end, struct mapped_text *out) {
    segment_order(segment);
    if (segment->options & UTF8PROC_COMPOSE) {
        utf8proc_ssize_t n = utf8proc_normalize_utf32(
            segment->character, (utf8proc_ssize_t)segment->n, segment->options);
        if (n < 0) FAIL(ERR_INTERNAL, "utf8proc: %s", utf8proc_errmsg(n));
        segment->n = (size_t)n;
    }
    unsigned char *bytes = (unsigned char *)segment->spare; // 4 bytes per character at most
    size_t n_byte = 0;
    for (size_t i = 0; i < segment->n; i++)
        n_byte += (size_t)utf8proc_encode_char(segment->character[i], bytes + n_byte);
    if (n_byte == end - begin && memcmp(bytes, in->data + begin, n_byte) == 0)
        return mapped_text_copy(out, in, begin, end);
    return mapped_text_write(out, (const char *)bytes, n_byte, text_view_offset(in, begin),
                             text_view_offset(in, end));
}

enum status unicode_normalize(enum unicode_form form, const struct text_view *in,
                              struct mapped_text *out) {
    bool compose = form == UNICODE_NFC || form == UNICODE_NFKC;
    bool compat = form == UNICODE_NFKC || form == UNICODE_NFKD;
    struct segment segment = {.options = UTF8PROC_STABLE |
                                         (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                                         (compat ? UTF8PROC_COMPAT : 0)};
    enum status status = OK;
    for (size_t i = 0; i < in->bytes;) {
        // The last ASCII character before others may take a mark: it belongs to their segment.
        size_t plain = ascii_run(in->data, i, in->bytes);
        if (plain < in->bytes && plain > i) plain--;
        TRY_OR(done, mapped_text_copy(out, in, i, plain));
        if ((i = plain) == in->bytes) break;

        size_t begin = i, n = 0;
        segment.n = 0;
        do {
            TRY_OR(done, segment_add(&segment, unicode_decode(in->data + i, &n)));
            i += n;
        } while (i < in->bytes &&
                 !starts_segment(unicode_decode(in->data + i, &n), segment.options));
        TRY_OR(done, segment_write(&segment, in, begin, i, out));
    }
done:
    free(segment.character);
    free(segment.spare);
    return status;
}
