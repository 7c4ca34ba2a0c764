// A tokenizer's life, look-ups, decoding and digest. Encoding: tokenizer_encode.c; what a
// checkpoint says: tokenizer_json.c and tokenizer_gguf.c.
#include "model/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "model/mapping.h"
#include "model/tokenizer_internal.h"
#include "model/unicode.h"

const char tokenizer_gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

void token_list_close(struct token_list *list) {
    free(list->id);
    free(list->byte_begin);
    free(list->byte_end);
    *list = (struct token_list){0};
}

enum status tokenizer_allocate(int64_t n_token, struct tokenizer **out) {
    *out = calloc(1, sizeof(**out));
    bool *special = calloc((size_t)n_token + 1, sizeof(bool));
    if (!*out || !special) {
        free(*out);
        free(special);
        *out = NULL;
        FAIL(ERR_MEMORY, "no memory for a tokenizer of %lld tokens", (long long)n_token);
    }
    (*out)->special = special;
    (*out)->eos = -1;
    return bpe_open(&(*out)->bpe, n_token);
}

void tokenizer_close(struct tokenizer **tokenizer) {
    struct tokenizer *t = *tokenizer;
    if (!t) return;
    bpe_close(&t->bpe);
    for (int64_t i = 0; i < t->n_added; i++) {
        free(t->added[i].content);
        if (t->normal_content) free(t->normal_content[i]);
    }
    for (int i = 0; i < t->n_normal; i++) {
        free(t->normal[i].text);
        charsmap_close(&t->normal[i].charsmap);
        regex_close(&t->normal[i].regex);
    }
    for (int i = 0; i < t->n_stage; i++) {
        free(t->stage[i].mark);
        regex_close(&t->stage[i].regex);
    }
    free(t->normal_content);
    free(t->added);
    free(t->raw.token);
    free(t->normalized.token);
    free(t->special);
    free(t->mark);
    free(t->join_mark);
    free(t->wordpiece.mark);
    unigram_close(&t->unigram);
    free(t->chat_template);
    free(t);
    *tokenizer = NULL;
}

enum status tokenizer_open(const char *folder, const struct gguf *gguf, struct tokenizer **out) {
    *out = NULL;
    if (gguf) return tokenizer_open_gguf(gguf, out);
    char *path = NULL;
    if (asprintf(&path, "%s/tokenizer.json", folder) < 0) FAIL(ERR_MEMORY, "no memory for a path");
    enum status status = mapping_exists(path) ? tokenizer_open_json(path, out) : OK;
    free(path);
    return status;
}

enum status tokenizer_add_stage(struct tokenizer *tokenizer, const char *pattern, bool literal,
                                enum split_behavior behavior, bool invert) {
    if (tokenizer->n_stage == MAX_STEP)
        FAIL(ERR_INPUT, "the pre-tokenizer has more than %d stages", MAX_STEP);
    struct stage *stage = &tokenizer->stage[tokenizer->n_stage];
    *stage = (struct stage){.kind = STAGE_SPLIT, .behavior = behavior, .invert = invert};
    TRY(regex_open(pattern, literal, &stage->regex));
    tokenizer->n_stage++;
    return OK;
}

enum status tokenizer_add_token(struct tokenizer *tokenizer, struct added_token token,
                                const char *content) {
    token.bytes = strlen(content);
    if (token.bytes == 0) FAIL(ERR_INPUT, "added token %d is empty", token.id);
    if (unicode_valid_prefix(content, token.bytes) < token.bytes)
        FAIL(ERR_INPUT, "added token %d is not UTF-8", token.id);
    size_t bytes = 0;
    const char *piece = bpe_piece_data(&tokenizer->bpe, token.id, &bytes);
    if (!piece || bytes != token.bytes || memcmp(piece, content, bytes) != 0)
        TRY(bpe_set_piece(&tokenizer->bpe, token.id, content, token.bytes, false));
    // Room doubles at powers of two.
    if ((tokenizer->n_added & (tokenizer->n_added - 1)) == 0) {
        size_t room = tokenizer->n_added ? 2 * (size_t)tokenizer->n_added : 1;
        struct added_token *added = realloc(tokenizer->added, room * sizeof(*added));
        if (!added) FAIL(ERR_MEMORY, "no memory for added tokens");
        tokenizer->added = added;
    }
    token.content = strdup(content);
    if (!token.content) FAIL(ERR_MEMORY, "no memory for added tokens");
    tokenizer->added[tokenizer->n_added++] = token;
    tokenizer->special[token.id] |= token.special;
    return OK;
}

bool tokenizer_undo_alphabet(const char *literal, size_t bytes, char *out, size_t *n_out) {
    size_t n = 0;
    for (size_t i = 0, length; i < bytes; i += length) {
        int32_t c = unicode_decode(literal + i, &length);
        // Printable Latin-1 stands for itself; the other 68 bytes, in order, for U+0100 and on.
        if ((c >= '!' && c <= '~') || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF))
            out[n++] = (char)c;
        else if (c >= 0x100 && c <= 0x120)
            out[n++] = (char)(c - 0x100);
        else if (c >= 0x121 && c <= 0x142)
            out[n++] = (char)(0x7F + c - 0x121);
        else if (c == 0x143)
            out[n++] = (char)0xAD;
        else
            return false;
    }
    *n_out = n;
    return true;
}

int tokenizer_byte_literal(const char *literal, size_t bytes) {
    static const char digits[] = "0123456789ABCDEF";
    if (bytes != 6 || memcmp(literal, "<0x", 3) != 0 || literal[5] != '>') return -1;
    const char *high = memchr(digits, literal[3], 16), *low = memchr(digits, literal[4], 16);
    return high && low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

static int by_content(const void *a, const void *b) {
    const struct added_token *x = a, *y = b;
    size_t n = x->bytes < y->bytes ? x->bytes : y->bytes;
    int order = memcmp(x->content, y->content, n);
    return order ? order : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static void set_add(struct added_set *set, struct added_token token, char *content, size_t bytes) {
    token.content = content;
    token.bytes = bytes;
    set->first[(unsigned char)content[0]] = true;
    set->token[set->n++] = token;
}

// Tokens marked as normalised are looked for in normalised text, in their own normal form.
static enum status fill_sets(struct tokenizer *t) {
    size_t room = (size_t)t->n_added + 1;
    t->raw.token = calloc(room, sizeof(struct added_token));
    t->normalized.token = calloc(room, sizeof(struct added_token));
    t->normal_content = calloc(room, sizeof(char *));
    if (!t->raw.token || !t->normalized.token || !t->normal_content)
        FAIL(ERR_MEMORY, "no memory for %lld added tokens", (long long)t->n_added);
    for (int64_t i = 0; i < t->n_added; i++) {
        struct added_token *token = &t->added[i];
        if (!token->normalized || t->n_normal == 0) {
            set_add(&t->raw, *token, token->content, token->bytes);
            continue;
        }
        struct text_view in = {.data = token->content, .bytes = token->bytes}, view;
        struct mapped_text scratch = {0};
        enum status status = tokenizer_normalize(t, &in, false, &scratch, &view);
        if (status == OK && view.bytes > 0) {
            t->normal_content[i] = strndup(view.data, view.bytes);
            if (t->normal_content[i])
                set_add(&t->normalized, *token, t->normal_content[i], view.bytes);
            else
                status = status_fail(ERR_MEMORY, __FILE__, "no memory for added tokens");
        }
        mapped_text_close(&scratch);
        TRY(status);
    }
    qsort(t->raw.token, (size_t)t->raw.n, sizeof(struct added_token), by_content);
    qsort(t->normalized.token, (size_t)t->normalized.n, sizeof(struct added_token), by_content);
    return OK;
}

static void hash_int(XXH3_state_t *state, int64_t value) {
    unsigned char byte[8]; // little-endian on every host
    for (int i = 0; i < 8; i++) byte[i] = (unsigned char)((uint64_t)value >> 8 * i);
    XXH3_128bits_update(state, byte, sizeof(byte));
}

static void hash_vocabulary(XXH3_state_t *state, const struct tokenizer *t) {
    const struct bpe *bpe = &t->bpe;
    hash_int(state, bpe->n_token);
    for (int64_t id = 0; id < bpe->n_token; id++) {
        hash_int(state,
                 (int64_t)bpe->piece[id].bytes << 2 | t->special[id] << 1 | bpe->piece[id].defined);
        if (bpe->piece[id].bytes > 0)
            XXH3_128bits_update(state, bpe->text + bpe->piece[id].begin, bpe->piece[id].bytes);
    }
    // Table order depends on the table's size and the order of insertion: a sum does not.
    uint64_t merges = 0;
    for (uint64_t i = 0; i < bpe->n_merge_slot; i++)
        if (bpe->merge[i].rank != UINT32_MAX)
            merges += XXH3_64bits(&bpe->merge[i], sizeof(bpe->merge[i]));
    hash_int(state, (int64_t)bpe->n_merge);
    hash_int(state, (int64_t)merges);
    hash_int(state, bpe->unknown);
    hash_int(state, bpe->by_bytes | bpe->byte_fallback << 1 | bpe->fuse_unknown << 2 |
                        bpe->whole_pieces << 3);
}

static enum status fill_digest(struct tokenizer *t) {
    XXH3_state_t *state = XXH3_createState();
    if (!state) FAIL(ERR_MEMORY, "no memory for a digest");
    XXH3_128bits_reset(state);
    hash_vocabulary(state, t);
    for (int64_t i = 0; i < t->n_added; i++) {
        const struct added_token *token = &t->added[i];
        hash_int(state, (int64_t)token->id << 8 | token->special | token->normalized << 1 |
                            token->left_strip << 2 | token->right_strip << 3 |
                            token->single_word << 4);
        digest_add_text(state, token->content);
    }
    for (int i = 0; i < t->n_normal; i++) {
        hash_int(state, (int64_t)t->normal[i].kind << 8 | t->normal[i].form);
        digest_add_text(state, t->normal[i].text);
        digest_add_text(state, t->normal[i].regex.source);
        XXH3_128bits_update(state, t->normal[i].charsmap.data, t->normal[i].charsmap.bytes);
    }
    for (int i = 0; i < t->n_stage; i++) {
        const struct stage *stage = &t->stage[i];
        hash_int(state, stage->kind | stage->behavior << 4 | stage->invert << 8 |
                            stage->prefix << 12 | stage->regex.literal << 16);
        digest_add_text(state, stage->regex.source);
        digest_add_text(state, stage->mark);
    }
    for (int i = 0; i < t->n_prefix; i++) hash_int(state, t->prefix[i]);
    for (int i = 0; i < t->n_suffix; i++) hash_int(state, -1 - (int64_t)t->suffix[i]);
    digest_add_text(state, t->mark);
    hash_int(state, t->strip_spaces << 1 | t->drop_first_marks);
    if (t->wordpiece.mark) {
        digest_add_text(state, t->wordpiece.mark);
        hash_int(state, t->wordpiece.max_character);
    }
    if (t->unigram.score)
        XXH3_128bits_update(state, t->unigram.score,
                            (size_t)t->unigram.n * sizeof(*t->unigram.score));
    if (t->join_mark) {
        digest_add_text(state, t->join_mark);
        hash_int(state, t->tidies);
    }
    XXH128_hash_t hash = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    digest_print(hash, t->digest);
    return OK;
}

// A vocabulary may have holes.
static enum status check_specials(const struct tokenizer *t) {
    for (int i = 0; i < t->n_prefix + t->n_suffix; i++) {
        size_t bytes;
        int32_t id = i < t->n_prefix ? t->prefix[i] : t->suffix[i - t->n_prefix];
        if (!bpe_piece_data(&t->bpe, id, &bytes))
            FAIL(ERR_INPUT, "token %d goes around each text, but is not in the vocabulary", id);
    }
    return OK;
}

enum status tokenizer_finish(struct tokenizer *tokenizer) {
    TRY(check_specials(tokenizer));
    TRY(fill_sets(tokenizer));
    return fill_digest(tokenizer);
}

// Bytes that a token adds to the text; `out` has room for the piece and a space.
static size_t decode_piece(const struct tokenizer *t, const char *piece, size_t bytes, bool first,
                           char *out) {
    size_t n_mark = t->mark ? strlen(t->mark) : 0, n = 0;
    size_t n_join = t->join_mark && !first ? strlen(t->join_mark) : 0;
    bool joins = n_join > 0 && bytes >= n_join && memcmp(piece, t->join_mark, n_join) == 0;
    if (t->join_mark && !first && !joins && !(t->tidies && !wordpiece_takes_space(piece, bytes)))
        out[n++] = ' ';
    if (joins) {
        piece += n_join;
        bytes -= n_join;
    }
    int byte = t->bpe.byte_fallback ? tokenizer_byte_literal(piece, bytes) : -1;
    if (byte >= 0) {
        out[0] = (char)byte;
        return 1;
    }
    for (size_t i = 0; i < bytes;) {
        if (n_mark > 0 && i + n_mark <= bytes && memcmp(piece + i, t->mark, n_mark) == 0) {
            if (!(first && t->drop_first_marks)) out[n++] = ' ';
            i += n_mark;
        } else {
            out[n++] = piece[i++];
        }
    }
    return n;
}

enum status tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *id, int64_t n,
                             bool keep_specials, char **text, size_t *bytes) {
    size_t room = 1, used = 0, length = 0, spaces = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!bpe_piece_data(&tokenizer->bpe, id[i], &length))
            FAIL(ERR_INPUT, "token %lld has id %d, which is not in the vocabulary of %lld",
                 (long long)i, id[i], (long long)tokenizer->bpe.n_token);
        room += length + 1;
    }
    char *out = malloc(room);
    if (!out) FAIL(ERR_MEMORY, "no memory for %zu bytes of text", room);
    bool first = true;
    for (int64_t i = 0; i < n; i++) {
        if (!keep_specials && tokenizer->special[id[i]]) continue;
        const char *piece = bpe_piece_data(&tokenizer->bpe, id[i], &length);
        used += decode_piece(tokenizer, piece, length, first, out + used);
        first = false;
    }
    while (spaces < used && spaces < (size_t)tokenizer->strip_spaces && out[spaces] == ' ')
        spaces++;
    memmove(out, out + spaces, used - spaces);
    out[used - spaces] = 0;
    *text = out;
    *bytes = used - spaces;
    return OK;
}

int64_t tokenizer_size(const struct tokenizer *tokenizer) {
    return tokenizer->bpe.n_token;
}

int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *token) {
    size_t bytes = strlen(token);
    for (int64_t i = 0; i < tokenizer->n_added; i++)
        if (strcmp(tokenizer->added[i].content, token) == 0) return tokenizer->added[i].id;
    if (!tokenizer->bpe.by_bytes) return bpe_find(&tokenizer->bpe, token, bytes);
    char *undone = malloc(bytes + 1);
    if (!undone) return -1;
    int32_t id = -1;
    if (unicode_valid_prefix(token, bytes) == bytes &&
        tokenizer_undo_alphabet(token, bytes, undone, &bytes))
        id = bpe_find(&tokenizer->bpe, undone, bytes);
    free(undone);
    return id;
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id) {
    return id >= 0 && id < tokenizer->bpe.n_token && tokenizer->special[id];
}

const char *tokenizer_digest(const struct tokenizer *tokenizer) {
    return tokenizer->digest;
}

int32_t tokenizer_eos(const struct tokenizer *tokenizer) {
    return tokenizer->eos;
}

const char *tokenizer_chat_template(const struct tokenizer *tokenizer) {
    return tokenizer->chat_template;
}
