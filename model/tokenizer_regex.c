// Patterns of checkpoints in PCRE2. They are written for Oniguruma's Ruby syntax: $ and ^ match at
// lines, \s is White_Space and \w includes marks; what PCRE2 reads differently is rewritten, and
// what cannot be rewritten is refused.
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

#define SPACE "\\t-\\r\\x{85}\\p{Z}"
#define WORD                                                                                       \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-"         \
    "\\x{1f169}\\x{1f170}-\\x{1f189}"

enum { MAX_PATTERN = 1 << 16, MAX_GROWTH = 128 }; // bytes; of one escape

static size_t put(char *out, const char *text) {
    size_t n = strlen(text);
    memcpy(out, text, n);
    return n;
}

// Rewrites the escape at source[0] == '\\'; *used is its length. 0 when it has no equal.
static size_t put_escape(const char *source, bool in_class, char *out, size_t *used) {
    char c = source[1];
    *used = c == 0 ? 1 : 2;
    if (c == 's') return put(out, in_class ? SPACE : "[" SPACE "]");
    if (c == 'S' && !in_class) return put(out, "[^" SPACE "]");
    if (c == 'w') return put(out, in_class ? WORD : "[" WORD "]");
    if (c == 'W' && !in_class) return put(out, "[^" WORD "]");
    if (c == 'W' || c == 'h' || c == 'H' || c == 'K' || c == 'G' || c == 'g') return 0;
    if ((c == 'p' || c == 'P' || c == 'x') && source[2] == '{') {
        const char *end = strchr(source, '}');
        if (!end || end - source > MAX_GROWTH) return 0;
        *used = (size_t)(end - source) + 1;
    }
    memcpy(out, source, *used);
    return *used;
}

static enum status translate(const char *source, char *out) {
    bool in_class = false, interval = false;
    size_t n = 0, class_start = 0;
    for (size_t i = 0, used = 1; source[i]; i += used) {
        char c = source[i];
        used = 1;
        if (c == '\\') {
            size_t put = put_escape(source + i, in_class, out + n, &used);
            if (put == 0)
                FAIL(ERR_INPUT, "escape \\%c in the pre-tokenizer pattern '%s' is not supported",
                     source[i + 1], source);
            n += put;
            interval = false;
            continue;
        }
        bool at_start =
            in_class && (i == class_start || (i == class_start + 1 && source[i - 1] == '^'));
        if (in_class && (c == '[' || (c == '&' && source[i + 1] == '&')))
            FAIL(ERR_INPUT, "set operations in the pre-tokenizer pattern '%s' are not supported",
                 source);
        if (!in_class && c == '+' && interval)
            FAIL(ERR_INPUT,
                 "a repeated interval in the pre-tokenizer pattern '%s' is not supported", source);
        if (!in_class && c == '[') {
            in_class = true;
            class_start = i + 1;
        } else if (in_class && c == ']' && !at_start) {
            in_class = false;
        }
        interval = !in_class && c == '}';
        out[n++] = c;
    }
    out[n] = 0;
    return OK;
}

enum status regex_open(const char *source, bool literal, struct regex *out) {
    enum status status = OK;
    pcre2_compile_context *context = NULL;
    size_t bytes = strlen(source);
    *out = (struct regex){.literal = literal};
    if (bytes > MAX_PATTERN) FAIL(ERR_INPUT, "a pre-tokenizer pattern has %zu bytes", bytes);
    if (bytes == 0) FAIL(ERR_INPUT, "a pre-tokenizer or normalizer pattern is empty");
    char *pattern = malloc(bytes * MAX_GROWTH + 1);
    out->source = strdup(source);
    context = pcre2_compile_context_create(NULL);
    if (!pattern || !context || !out->source)
        FAIL_OR(done, ERR_MEMORY, "no memory for a pre-tokenizer pattern");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    if (literal)
        memcpy(pattern, source, bytes + 1);
    else
        TRY_OR(done, translate(source, pattern));

    int error = 0;
    PCRE2_SIZE where = 0;
    uint32_t options = literal ? PCRE2_UTF | PCRE2_LITERAL
                               : PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    out->code =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, options, &error, &where, context);
    if (!out->code) {
        char text[128] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)text, sizeof(text));
        FAIL_OR(done, ERR_INPUT, "the pattern '%.200s' cannot be compiled: %s", source, text);
    }
    pcre2_jit_compile(out->code, PCRE2_JIT_COMPLETE); // without it, matching interprets
done:
    if (status != OK) regex_close(out);
    pcre2_compile_context_free(context);
    free(pattern);
    return status;
}

void regex_close(struct regex *regex) {
    free(regex->source);
    pcre2_code_free(regex->code);
    *regex = (struct regex){0};
}
