// Encoding: text -> added tokens and gaps -> normaliser -> added tokens of normalised text ->
// pre-split stages -> BPE. Every step hands pieces to the next one as they are found, so nothing
// but the normalised copy of a gap grows with the text.
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"

struct encoder {
    const struct tokenizer *tokenizer;
    struct token_list *list;
    struct bpe_work work;
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    bool parse_specials;
    bool continues; // the text's first byte follows other text
};

enum { JIT_STACK_START = 32 << 10, JIT_STACK_MAX = 16 << 20, MATCH_LIMIT = 10000000 };

static enum status encoder_open(const struct tokenizer *tokenizer, struct token_list *list,
                                int flags, struct encoder *out) {
    *out = (struct encoder){
        .tokenizer = tokenizer,
        .list = list,
        .match = pcre2_match_data_create(1, NULL),
        .context = pcre2_match_context_create(NULL),
        .stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, NULL),
        .parse_specials = flags & ENCODE_PARSE_SPECIALS,
        .continues = flags & ENCODE_CONTINUE,
    };
    if (!out->match || !out->context || !out->stack) FAIL(ERR_MEMORY, "no memory to tokenise");
    pcre2_jit_stack_assign(out->context, NULL, out->stack);
    return OK;
}

static void encoder_close(struct encoder *encoder) {
    bpe_work_close(&encoder->work);
    pcre2_match_data_free(encoder->match);
    pcre2_match_context_free(encoder->context);
    pcre2_jit_stack_free(encoder->stack);
}

static enum status list_reserve(struct token_list *list, int64_t more) {
    if (list->n + more <= list->capacity) return OK;
    size_t capacity = (size_t)(list->n + more + list->n / 2 + 64);
    int32_t *id = realloc(list->id, capacity * sizeof(*id));
    if (id) list->id = id;
    int64_t *begin = realloc(list->byte_begin, capacity * sizeof(*begin));
    if (begin) list->byte_begin = begin;
    int64_t *end = realloc(list->byte_end, capacity * sizeof(*end));
    if (end) list->byte_end = end;
    if (!id || !begin || !end) FAIL(ERR_MEMORY, "no memory for %zu tokens", capacity);
    list->capacity = (int64_t)capacity;
    return OK;
}

static void list_add(struct token_list *list, int32_t id, int64_t begin, int64_t end) {
    list->id[list->n] = id;
    list->byte_begin[list->n] = begin;
    list->byte_end[list->n++] = end;
}

static enum status encode_piece(struct encoder *encoder, const struct text_view *piece) {
    const struct bpe *bpe = &encoder->tokenizer->bpe;
    size_t begin = 0;
    while (begin < piece->bytes) {
        size_t end = piece->bytes;
        // Exact where no token crosses such a cut, and it keeps SentencePiece's pieces short.
        for (size_t i = begin + 1; bpe->cuts_before_mark && i + 3 <= piece->bytes; i++)
            if (memcmp(piece->data + i, "▁", 3) == 0 &&
                (i < begin + 3 || memcmp(piece->data + i - 3, "▁", 3) != 0)) {
                end = i;
                break;
            }
        struct bpe_work *work = &encoder->work;
        if (encoder->tokenizer->wordpiece.mark)
            TRY(wordpiece_encode(bpe, &encoder->tokenizer->wordpiece, piece->data + begin,
                                 end - begin, work));
        else if (encoder->tokenizer->unigram.score)
            TRY(unigram_encode(bpe, &encoder->tokenizer->unigram, piece->data + begin, end - begin,
                               work));
        else
            TRY(bpe_encode(bpe, piece->data + begin, end - begin, work));
        TRY(list_reserve(encoder->list, work->n));
        for (int32_t i = 0; i < work->n; i++)
            list_add(encoder->list, work->symbol[i].id,
                     text_view_offset(piece, begin + work->symbol[i].begin),
                     text_view_offset(piece, begin + work->symbol[i].end));
        begin = end;
    }
    return OK;
}

// The next match at or after `from`; false when there is none. Empty matches are passed over.
static enum status find_match(pcre2_match_data *match, pcre2_match_context *context,
                              const struct regex *regex, const struct text_view *view, size_t from,
                              size_t *begin, size_t *end, bool *found) {
    *found = false;
    while (from < view->bytes) {
        int n = pcre2_match(regex->code, (PCRE2_SPTR)view->data, view->bytes, from,
                            PCRE2_NO_UTF_CHECK, match, context);
        if (n == PCRE2_ERROR_NOMATCH) return OK;
        if (n < 0)
            FAIL(ERR_INPUT,
                 "the tokenizer's pattern '%.80s' gives up on the text at byte %lld (PCRE2 error "
                 "%d)",
                 regex->source, (long long)text_view_offset(view, from), n);
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(match);
        *begin = span[0];
        *end = span[1];
        if (*begin < *end && *begin >= from) {
            *found = true;
            return OK;
        }
        from = (*end > from ? *end : from);
        if (from < view->bytes) from += unicode_length(view->data[from]);
    }
    return OK;
}

static enum status encode_stages(struct encoder *encoder, int stage, const struct text_view *view);

static bool joins(enum split_behavior behavior, bool previous, bool current) {
    switch (behavior) {
    case SPLIT_WITH_PREVIOUS:
        return current && !previous;
    case SPLIT_WITH_NEXT:
        return previous && !current;
    case SPLIT_CONTIGUOUS:
        return previous == current;
    default:
        return false;
    }
}

// A piece being put together from matches and the text between them.
struct held_piece {
    size_t begin, end;
    bool full, is_match;
};

static enum status hold(struct encoder *encoder, int stage, const struct text_view *view,
                        struct held_piece *held, size_t begin, size_t end, bool is_match) {
    const struct stage *split = &encoder->tokenizer->stage[stage];
    bool match = is_match != split->invert;
    if (begin == end || (split->behavior == SPLIT_REMOVED && match)) return OK;
    if (held->full && joins(split->behavior, held->is_match, match)) {
        held->end = end;
        held->is_match = match;
        return OK;
    }
    if (held->full) {
        struct text_view part = text_view_part(view, held->begin, held->end);
        TRY(encode_stages(encoder, stage + 1, &part));
    }
    *held = (struct held_piece){.begin = begin, .end = end, .full = true, .is_match = match};
    return OK;
}

static enum status encode_split(struct encoder *encoder, int stage, const struct text_view *view) {
    const struct regex *regex = &encoder->tokenizer->stage[stage].regex;
    struct held_piece held = {0};
    size_t done = 0, begin = 0, end = 0;
    // A search that starts at each of n pieces must not cost more than a constant per byte.
    uint64_t limit = MATCH_LIMIT + 16 * (uint64_t)view->bytes;
    pcre2_set_match_limit(encoder->context, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
    while (done < view->bytes) {
        bool found = false;
        TRY(find_match(encoder->match, encoder->context, regex, view, done, &begin, &end, &found));
        if (!found) begin = end = view->bytes;
        TRY(hold(encoder, stage, view, &held, done, begin, false));
        TRY(hold(encoder, stage, view, &held, begin, end, true));
        done = end;
    }
    if (!held.full) return OK;
    struct text_view part = text_view_part(view, held.begin, held.end);
    return encode_stages(encoder, stage + 1, &part);
}

static enum status replace_literal(const struct text_view *in, const char *what, const char *by,
                                   struct mapped_text *out) {
    size_t n = strlen(what), done = 0;
    for (const char *hit; (hit = memmem(in->data + done, in->bytes - done, what, n));) {
        size_t at = (size_t)(hit - in->data);
        TRY(mapped_text_copy(out, in, done, at));
        TRY(mapped_text_write(out, by, strlen(by), text_view_offset(in, at),
                              text_view_offset(in, at + n)));
        done = at + n;
    }
    return mapped_text_copy(out, in, done, in->bytes);
}

static bool starts_with(const struct text_view *view, const char *text) {
    size_t n = strlen(text);
    return view->bytes >= n && memcmp(view->data, text, n) == 0;
}

// Stages that rewrite: a space before the piece, or SentencePiece's mark for every space.
static enum status encode_rewrite(struct encoder *encoder, int index,
                                  const struct text_view *view) {
    const struct stage *stage = &encoder->tokenizer->stage[index];
    bool metaspace = stage->kind == STAGE_METASPACE;
    int64_t from = text_view_offset(view, 0), to = text_view_offset(view, view->bytes);
    bool prefix = !metaspace || stage->prefix == PREFIX_ALWAYS ||
                  (stage->prefix == PREFIX_FIRST && from == 0);
    if (encoder->continues && from == 0) prefix = false;
    if (starts_with(view, " ") || (metaspace && starts_with(view, stage->mark))) prefix = false;
    if (!prefix && !metaspace) return encode_stages(encoder, index + 1, view);

    const char *space = metaspace ? stage->mark : " ";
    struct mapped_text text = {0};
    struct text_view out;
    enum status status = OK;
    if (prefix) TRY_OR(done, mapped_text_write(&text, space, strlen(space), from, from));
    TRY_OR(done, metaspace ? replace_literal(view, " ", space, &text)
                           : mapped_text_copy(&text, view, 0, view->bytes));
    TRY_OR(done, mapped_text_finish(&text, to, &out));
    status = encode_stages(encoder, index + 1, &out);
done:
    mapped_text_close(&text);
    return status;
}

static enum status encode_stages(struct encoder *encoder, int stage, const struct text_view *view) {
    if (stage == encoder->tokenizer->n_stage) return encode_piece(encoder, view);
    if (encoder->tokenizer->stage[stage].kind == STAGE_SPLIT)
        return encode_split(encoder, stage, view);
    return encode_rewrite(encoder, stage, view);
}

static enum status replace_regex(const struct text_view *in, const struct normal_step *step,
                                 struct mapped_text *out) {
    enum status status = OK;
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    size_t done = 0, begin = 0, end = 0;
    if (!match) FAIL(ERR_MEMORY, "no memory to normalise");
    for (bool found = true; found;) {
        TRY_OR(done, find_match(match, NULL, &step->regex, in, done, &begin, &end, &found));
        if (!found) begin = end = in->bytes;
        TRY_OR(done, mapped_text_copy(out, in, done, begin));
        if (found)
            TRY_OR(done, mapped_text_write(out, step->text, strlen(step->text),
                                           text_view_offset(in, begin), text_view_offset(in, end)));
        done = end;
    }
done:
    pcre2_match_data_free(match);
    return status;
}

static enum status strip_spaces(const struct text_view *in, int sides, struct mapped_text *out) {
    size_t begin = 0, end = in->bytes, n;
    while (sides & 1 && begin < end && unicode_is_space(unicode_decode(in->data + begin, &n)))
        begin += n;
    while (sides & 2 && end > begin) {
        size_t at = end - 1;
        while (at > begin && ((unsigned char)in->data[at] & 0xC0) == 0x80) at--;
        if (!unicode_is_space(unicode_decode(in->data + at, &n))) break;
        end = at;
    }
    return mapped_text_copy(out, in, begin, end);
}

static enum status normal_step(const struct normal_step *step, const struct text_view *in,
                               struct mapped_text *out) {
    int64_t from = text_view_offset(in, 0);
    switch (step->kind) {
    case NORMAL_FORM:
        return unicode_normalize((enum unicode_form)step->form, in, out);
    case NORMAL_PREPEND:
        TRY(mapped_text_write(out, step->text, strlen(step->text), from, from));
        return mapped_text_copy(out, in, 0, in->bytes);
    case NORMAL_REPLACE:
        if (step->regex.literal) return replace_literal(in, step->regex.source, step->text, out);
        return replace_regex(in, step, out);
    case NORMAL_CHARSMAP:
        return charsmap_normalize(&step->charsmap, in, out);
    case NORMAL_STRIP:
        return strip_spaces(in, step->form, out);
    case NORMAL_CLEAN:
    case NORMAL_IDEOGRAPHS:
    case NORMAL_MARKS:
    case NORMAL_LOWER:
        return tokenizer_rewrite(step->kind, in, out);
    }
    return OK;
}

enum status tokenizer_normalize(const struct tokenizer *tokenizer, const struct text_view *in,
                                bool skip_prefix, struct mapped_text *scratch,
                                struct text_view *out) {
    int64_t to = text_view_offset(in, in->bytes);
    *out = *in;
    for (int i = 0; i < tokenizer->n_normal && in->bytes > 0; i++) {
        if (tokenizer->normal[i].kind == NORMAL_PREPEND && (skip_prefix || out->bytes == 0))
            continue;
        struct mapped_text next = {0};
        struct text_view view;
        enum status status = normal_step(&tokenizer->normal[i], out, &next);
        if (status == OK) status = mapped_text_finish(&next, to, &view);
        mapped_text_close(scratch);
        *scratch = next;
        if (status != OK) return status;
        *out = view;
    }
    return OK;
}

// Entries lo .. hi - 1 of the set share `depth` bytes; narrows them to those that go on with `c`.
static void narrow(const struct added_set *set, int64_t *lo, int64_t *hi, size_t depth,
                   unsigned char c) {
    int64_t bound[2];
    for (int upper = 0; upper < 2; upper++) {
        int64_t a = *lo, b = *hi;
        while (a < b) {
            int64_t middle = a + (b - a) / 2;
            const struct added_token *token = &set->token[middle];
            int at = token->bytes > depth ? (unsigned char)token->content[depth] : -1;
            if (at < c || (upper && at == c))
                a = middle + 1;
            else
                b = middle;
        }
        bound[upper] = a;
    }
    *lo = bound[0];
    *hi = bound[1];
}

// The longest added token that starts at data[0], or NULL.
static const struct added_token *longest_token(const struct added_set *set, bool specials,
                                               const char *data, size_t bytes) {
    const struct added_token *best = NULL;
    int64_t lo = 0, hi = set->n;
    for (size_t depth = 0; depth < bytes; depth++) {
        narrow(set, &lo, &hi, depth, (unsigned char)data[depth]);
        if (lo == hi) break;
        // The shortest comes first; of equal contents the first named wins.
        const struct added_token *token = &set->token[lo];
        if (token->bytes == depth + 1 && (specials || !token->special)) best = token;
    }
    return best;
}

static bool stands_alone(const struct text_view *view, size_t begin, size_t end) {
    size_t n;
    if (end < view->bytes && unicode_is_word(unicode_decode(view->data + end, &n))) return false;
    if (begin == 0) return true;
    do begin--;
    while (begin > 0 && ((unsigned char)view->data[begin] & 0xC0) == 0x80);
    return !unicode_is_word(unicode_decode(view->data + begin, &n));
}

// Widens a token's span over the white space that it takes with it.
static void strip_around(const struct added_token *token, const struct text_view *view, size_t done,
                         size_t *begin, size_t *end) {
    size_t n;
    while (token->left_strip && *begin > done) {
        size_t at = *begin - 1;
        while (at > done && ((unsigned char)view->data[at] & 0xC0) == 0x80) at--;
        if (!unicode_is_space(unicode_decode(view->data + at, &n))) break;
        *begin = at;
    }
    while (token->right_strip && *end < view->bytes &&
           unicode_is_space(unicode_decode(view->data + *end, &n)))
        *end += n;
}

typedef enum status gap_function(struct encoder *encoder, const struct text_view *gap);

static enum status encode_added(struct encoder *encoder, const struct added_set *set,
                                const struct text_view *view, gap_function *encode_gap) {
    size_t done = 0;
    for (size_t i = 0; set->n > 0 && i < view->bytes;) {
        const struct added_token *token = NULL;
        if (set->first[(unsigned char)view->data[i]])
            token = longest_token(set, encoder->parse_specials, view->data + i, view->bytes - i);
        if (!token || (token->single_word && !stands_alone(view, i, i + token->bytes))) {
            i++;
            continue;
        }
        size_t begin = i, end = i + token->bytes;
        strip_around(token, view, done, &begin, &end);
        struct text_view gap = text_view_part(view, done, begin);
        if (gap.bytes > 0) TRY(encode_gap(encoder, &gap));
        TRY(list_reserve(encoder->list, 1));
        list_add(encoder->list, token->id, text_view_offset(view, begin),
                 text_view_offset(view, end));
        i = done = end;
    }
    struct text_view gap = text_view_part(view, done, view->bytes);
    return gap.bytes > 0 ? encode_gap(encoder, &gap) : OK;
}

static enum status encode_normalized_gap(struct encoder *encoder, const struct text_view *gap) {
    return encode_stages(encoder, 0, gap);
}

static enum status encode_raw_gap(struct encoder *encoder, const struct text_view *gap) {
    struct mapped_text scratch = {0};
    struct text_view view;
    bool continues = encoder->continues && text_view_offset(gap, 0) == 0;
    enum status status = tokenizer_normalize(encoder->tokenizer, gap, continues, &scratch, &view);
    if (status == OK)
        status =
            encode_added(encoder, &encoder->tokenizer->normalized, &view, encode_normalized_gap);
    mapped_text_close(&scratch);
    return status;
}

enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                             int flags, struct token_list *list) {
    size_t valid = unicode_valid_prefix(text, bytes);
    if (valid < bytes) FAIL(ERR_INPUT, "the text is not UTF-8 at byte %zu", valid);
    struct encoder encoder;
    struct text_view view = {.data = text, .bytes = bytes};
    int64_t n = list->n;
    enum status status = encoder_open(tokenizer, list, flags, &encoder);
    if (status == OK) status = list_reserve(list, MAX_SPECIAL);
    for (int i = 0; status == OK && (flags & ENCODE_ADD_SPECIALS) && i < tokenizer->n_prefix; i++)
        list_add(list, tokenizer->prefix[i], 0, 0);
    if (status == OK) status = encode_added(&encoder, &tokenizer->raw, &view, encode_raw_gap);
    if (status == OK) status = list_reserve(list, MAX_SPECIAL);
    for (int i = 0; status == OK && (flags & ENCODE_ADD_SPECIALS) && i < tokenizer->n_suffix; i++)
        list_add(list, tokenizer->suffix[i], (int64_t)bytes, (int64_t)bytes);
    if (status != OK) list->n = n;
    encoder_close(&encoder);
    return status;
}
