#include "launcher/retrieval.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/documents.h"
#include "model/sampler.h"

enum {
    N_NEEDLE = 4,     // of multi-key and multi-value
    N_VARIABLE = 5,   // in a chain: four hops
    N_CODED = 60,     // different coded words
    N_FREQUENT = 3,   // of them to be named
    MOST_NEEDLES = 5, // of any family
    LEAST_TEXT = 16,  // tokens around the needles
};

const char *const retrieval_family_name[N_RETRIEVAL] = {
    [RETRIEVAL_PASSKEY] = "passkey",   [RETRIEVAL_SINGLE] = "single",
    [RETRIEVAL_MULTIKEY] = "multikey", [RETRIEVAL_MULTIVALUE] = "multivalue",
    [RETRIEVAL_TRACKING] = "tracking", [RETRIEVAL_WORDS] = "words"};

// @ stands for the key, or for the number of a chain.
static const struct wording {
    const char *intro, *question, *answer; // answer: how the model's answer begins
    int64_t max_tokens;
} wordings[N_RETRIEVAL] = {
    [RETRIEVAL_PASSKEY] = {"There is an important pass key hidden inside a lot of irrelevant text. "
                           "Find it and memorize it.\n\n",
                           "What is the pass key?", "The pass key is", 24},
    [RETRIEVAL_SINGLE] = {"A special magic number is hidden within the following text. Make sure "
                          "to memorize it.\n\n",
                          "What is the special magic number for @ mentioned in the provided text?",
                          "The special magic number for @ mentioned in the provided text is", 24},
    [RETRIEVAL_MULTIKEY] = {"Some special magic numbers are hidden within the following text. Make "
                            "sure to memorize them.\n\n",
                            "What is the special magic number for @ mentioned in the provided "
                            "text?",
                            "The special magic number for @ mentioned in the provided text is", 24},
    [RETRIEVAL_MULTIVALUE] = {"Some special magic numbers are hidden within the following text. "
                              "Make sure to memorize them.\n\n",
                              "What are all the special magic numbers for @ mentioned in the "
                              "provided text?",
                              "The special magic numbers for @ mentioned in the provided text are",
                              64},
    [RETRIEVAL_TRACKING] = {"Memorize and track the chain of variable assignments hidden in the "
                            "following text.\n\n",
                            "Find all variables that are assigned the value @ in the text above.",
                            "The variables that are assigned the value @ are", 64},
    [RETRIEVAL_WORDS] = {"Read the following coded text and track the frequency of each coded "
                         "word.\n\n",
                         "What are the three most frequently appeared words in the above coded "
                         "text?",
                         "The three most frequently appeared words are", 48},
};

static const char *const keys[] = {
    "copper",  "violet", "harbour", "lantern",  "meadow", "orchid", "pepper", "quartz",
    "ribbon",  "saddle", "thunder", "umbrella", "velvet", "walnut", "zephyr", "anchor",
    "basket",  "candle", "dolphin", "ember",    "falcon", "garden", "hammer", "island",
    "jasmine", "kettle", "lemon",   "marble",   "needle", "oyster", "pillow", "rocket"};
enum { N_KEY = sizeof keys / sizeof *keys };

// Draws of one cell, in order.
struct draws {
    const struct retrieval_cell *cell;
    uint64_t step;
};

static double uniform(struct draws *d) {
    const struct retrieval_cell *c = d->cell;
    uint64_t place = (uint64_t)c->length * 128 + (uint64_t)c->depth;
    return sampler_uniform(c->seed, (uint64_t)c->sample * N_RETRIEVAL + c->family, place,
                           d->step++);
}

static int64_t below(struct draws *d, int64_t n) {
    int64_t x = (int64_t)(uniform(d) * (double)n);
    return x < n ? x : n - 1;
}

struct needle {
    char text[160];
    double depth; // share of the text before it
};

struct puzzle {
    struct needle needles[MOST_NEEDLES];
    int n_needle;
    char subject[RETRIEVAL_WORD_BYTES]; // what @ stands for in question and answer
};

static void expect_word(struct retrieval_prompt *prompt, const char *word) {
    size_t n = strnlen(word, RETRIEVAL_WORD_BYTES - 1);
    memcpy(prompt->expected[prompt->n_expected++], word, n); // zeroed before
}

// Numbers of 7 digits; keys that are not taken yet.
static void draw_number(struct draws *d, char out[RETRIEVAL_WORD_BYTES]) {
    snprintf(out, RETRIEVAL_WORD_BYTES, "%lld", 1000000 + (long long)below(d, 9000000));
}

static const char *draw_key(struct draws *d, uint64_t *taken) {
    int64_t i = below(d, N_KEY);
    while (*taken >> i & 1) i = (i + 1) % N_KEY;
    *taken |= UINT64_C(1) << i;
    return keys[i];
}

static void add_needle(struct puzzle *p, double depth, const char *format, const char *a,
                       const char *b) {
    struct needle *needle = &p->needles[p->n_needle++];
    snprintf(needle->text, sizeof needle->text, format, a, b);
    needle->depth = depth;
}

static void draw_keys(struct draws *d, struct puzzle *p, struct retrieval_prompt *prompt) {
    enum retrieval_family family = d->cell->family;
    int n = family == RETRIEVAL_SINGLE ? 1 : N_NEEDLE;
    uint64_t taken = 0;
    const char *key = draw_key(d, &taken);
    snprintf(p->subject, sizeof p->subject, "%s", key);
    for (int i = 0; i < n; i++) {
        char number[RETRIEVAL_WORD_BYTES];
        double depth = i == 0 ? d->cell->depth / 100.0 : uniform(d);
        if (i > 0 && family == RETRIEVAL_MULTIKEY) key = draw_key(d, &taken);
        draw_number(d, number);
        add_needle(p, depth, " One of the special magic numbers for %s is: %s.", key, number);
        if (i == 0 || family == RETRIEVAL_MULTIVALUE) expect_word(prompt, number);
    }
}

static void draw_pass_key(struct draws *d, struct puzzle *p, struct retrieval_prompt *prompt) {
    char number[RETRIEVAL_WORD_BYTES];
    draw_number(d, number);
    add_needle(p, d->cell->depth / 100.0, " The pass key is %s. Remember it. %s is the pass key.",
               number, number);
    expect_word(prompt, number);
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// X1 = number, X2 = X1, ...: in this order, from the cell's depth on.
static void draw_chain(struct draws *d, struct puzzle *p, struct retrieval_prompt *prompt) {
    double depth[N_VARIABLE];
    char name[N_VARIABLE][RETRIEVAL_WORD_BYTES];
    depth[0] = d->cell->depth / 100.0;
    for (int i = 1; i < N_VARIABLE; i++) depth[i] = depth[0] + (1 - depth[0]) * uniform(d);
    qsort(depth, N_VARIABLE, sizeof *depth, compare_doubles);
    draw_number(d, p->subject);
    for (int i = 0; i < N_VARIABLE; i++) {
        for (int c = 0; c < 4; c++) name[i][c] = (char)('A' + below(d, 26));
        snprintf(name[i] + 4, RETRIEVAL_WORD_BYTES - 4, "%d", i + 1); // none is another's beginning
        add_needle(p, depth[i], i ? " VAR %s = VAR %s." : " VAR %s = %s.", name[i],
                   i ? name[i - 1] : p->subject);
        expect_word(prompt, name[i]);
    }
}

static enum status append_text(const struct retrieval_source *source, const char *text, int flags,
                               struct token_list *out) {
    struct token_list list = {0};
    enum status status = tokenizer_encode(source->tokenizer, text, strlen(text), flags, &list);
    if (status == OK) status = document_add_ids(out, list.id, list.n);
    token_list_close(&list);
    return status;
}

// The wording with @ replaced.
static void fill_in(const char *wording, const char *subject, char *out, size_t bytes) {
    const char *at = strchr(wording, '@');
    if (at)
        snprintf(out, bytes, "%.*s%s%s", (int)(at - wording), wording, subject, at + 1);
    else
        snprintf(out, bytes, "%s", wording);
}

static enum status append_before(const struct retrieval_source *source,
                                 const struct retrieval_cell *cell, struct token_list *out) {
    const struct chat_template *chat = source->chat;
    TRY(append_text(source, chat->head,
                    ENCODE_PARSE_SPECIALS | (chat->add_bos ? ENCODE_ADD_SPECIALS : 0), out));
    return append_text(source, wordings[cell->family].intro, ENCODE_CONTINUE, out);
}

static enum status append_after(const struct retrieval_source *source,
                                const struct retrieval_cell *cell, const char *subject,
                                struct token_list *out) {
    const struct chat_template *chat = source->chat;
    const int piece = ENCODE_CONTINUE | ENCODE_PARSE_SPECIALS;
    char text[256];
    size_t n = strlen(chat->tail);
    TRY(append_text(source, chat->middle, piece, out));
    fill_in(wordings[cell->family].question, subject, text, sizeof text);
    TRY(append_text(source, text, ENCODE_CONTINUE, out));
    TRY(append_text(source, chat->tail, piece, out));
    text[0] = ' '; // between a tail that ends in a word and the answer
    bool spaced = n > 0 && isspace((unsigned char)chat->tail[n - 1]);
    fill_in(wordings[cell->family].answer, subject, text + 1, sizeof text - 1);
    return append_text(source, spaced ? text + 1 : text, ENCODE_CONTINUE, out);
}

// Where a needle goes among n tokens of the source from `first` on: behind the last sentence that
// ends before its depth, if that is not far; otherwise at its depth.
static int64_t place_needle(const struct retrieval_source *source, double depth, int64_t first,
                            int64_t n) {
    enum { FAR_TOKENS = 256 };
    int64_t place = (int64_t)(depth * (double)n);
    for (int64_t at = place; at >= 0 && at >= place - FAR_TOKENS; at--)
        if (at == 0 || source->is_boundary[(first + at - 1) % source->n_text]) return at;
    return place;
}

// n tokens of the source from `first` on, read again from the start where they do not suffice.
static enum status append_source(const struct retrieval_source *source, int64_t first, int64_t n,
                                 struct token_list *out) {
    while (n > 0) {
        int64_t at = first % source->n_text, count = source->n_text - at;
        if (count > n) count = n;
        TRY(document_add_ids(out, source->text + at, count));
        first += count;
        n -= count;
    }
    return OK;
}

static enum status append_haystack(const struct retrieval_source *source, const struct puzzle *p,
                                   int64_t first, int64_t n, struct token_list *out) {
    int64_t place[MOST_NEEDLES], done = 0;
    int order[MOST_NEEDLES]; // needles by place; those of one place in their own order
    for (int i = 0; i < p->n_needle; i++) {
        int at = i;
        place[i] = place_needle(source, p->needles[i].depth, first, n);
        for (; at > 0 && place[order[at - 1]] > place[i]; at--) order[at] = order[at - 1];
        order[at] = i;
    }
    for (int i = 0; i < p->n_needle; i++) {
        TRY(append_source(source, first + done, place[order[i]] - done, out));
        TRY(append_text(source, p->needles[order[i]].text, ENCODE_CONTINUE, out));
        done = place[order[i]];
    }
    return append_source(source, first + done, n - done, out);
}

// Coded words by Zipf's law with exponent 2, as in RULER: the three most frequent stand out.
static enum status append_coded_words(const struct retrieval_source *source, struct draws *d,
                                      int64_t n, struct token_list *out,
                                      struct retrieval_prompt *prompt) {
    char words[N_CODED][RETRIEVAL_WORD_BYTES];
    double total = 0, bound[N_CODED];
    int64_t count[N_CODED] = {0}, end = out->n + n;
    for (int i = 0; i < N_CODED; i++) {
        words[i][0] = ' ';
        for (int c = 1; c < 7; c++) words[i][c] = (char)('a' + below(d, 26));
        words[i][7] = '\0';
        bound[i] = total += 1 / ((double)(i + 1) * (i + 1));
    }
    while (true) {
        double x = uniform(d) * total;
        int i = 0;
        int64_t before = out->n;
        while (i < N_CODED - 1 && bound[i] <= x) i++;
        TRY(append_text(source, words[i], ENCODE_CONTINUE, out));
        if (out->n > end) {
            out->n = before;
            break;
        }
        count[i]++;
    }
    for (int k = 0; k < N_FREQUENT; k++) {
        int most = 0;
        for (int i = 1; i < N_CODED; i++)
            if (count[i] > count[most]) most = i;
        expect_word(prompt, words[most] + 1);
        count[most] = -1;
    }
    return OK;
}

static void digest_prompt(struct retrieval_prompt *prompt) {
    XXH3_state_t *hash = XXH3_createState();
    XXH3_128bits_reset(hash);
    XXH3_128bits_update(hash, prompt->token, (size_t)prompt->n * sizeof *prompt->token);
    for (int i = 0; i < prompt->n_expected; i++) digest_add_text(hash, prompt->expected[i]);
    digest_print(XXH3_128bits_digest(hash), prompt->digest);
    XXH3_freeState(hash);
}

static enum status build(const struct retrieval_source *source, const struct retrieval_cell *cell,
                         struct token_list *after, struct token_list *list,
                         struct retrieval_prompt *prompt) {
    struct draws draws = {.cell = cell};
    struct puzzle puzzle = {0};
    struct token_list needles = {0};
    prompt->max_tokens = wordings[cell->family].max_tokens;
    if (cell->family == RETRIEVAL_PASSKEY) draw_pass_key(&draws, &puzzle, prompt);
    if (cell->family == RETRIEVAL_TRACKING) draw_chain(&draws, &puzzle, prompt);
    if (cell->family > RETRIEVAL_PASSKEY && cell->family < RETRIEVAL_TRACKING)
        draw_keys(&draws, &puzzle, prompt);
    enum status status = OK;
    for (int i = 0; status == OK && i < puzzle.n_needle; i++)
        status = append_text(source, puzzle.needles[i].text, ENCODE_CONTINUE, &needles);
    int64_t n_needle = needles.n;
    token_list_close(&needles);
    TRY(status);
    TRY(append_before(source, cell, list));
    TRY(append_after(source, cell, puzzle.subject, after));
    int64_t room = cell->length - prompt->max_tokens - list->n - after->n - n_needle;
    if (room < LEAST_TEXT)
        FAIL(ERR_CONFIG,
             "a length of %lld tokens has no room for a question of family %s: evaluate.lengths "
             "must be at least %lld",
             (long long)cell->length, retrieval_family_name[cell->family],
             (long long)(cell->length - room + LEAST_TEXT));
    if (cell->family == RETRIEVAL_WORDS)
        TRY(append_coded_words(source, &draws, room, list, prompt));
    else
        TRY(append_haystack(source, &puzzle, below(&draws, source->n_text), room, list));
    return document_add_ids(list, after->id, after->n);
}

enum status retrieval_build(const struct retrieval_source *source,
                            const struct retrieval_cell *cell, struct retrieval_prompt *out) {
    struct token_list after = {0}, list = {0};
    *out = (struct retrieval_prompt){0};
    enum status status = build(source, cell, &after, &list, out);
    token_list_close(&after);
    out->token = list.id;
    out->n = list.n;
    if (status == OK) digest_prompt(out);
    if (status != OK) retrieval_prompt_close(out);
    return status;
}

void retrieval_prompt_close(struct retrieval_prompt *prompt) {
    free(prompt->token);
    *prompt = (struct retrieval_prompt){0};
}

double retrieval_score(const struct retrieval_prompt *prompt, const char *answer) {
    int n = 0;
    for (int i = 0; i < prompt->n_expected; i++) n += strcasestr(answer, prompt->expected[i]) != 0;
    return (double)n / prompt->n_expected;
}

int64_t retrieval_max_tokens(enum retrieval_family family) {
    return wordings[family].max_tokens;
}

void retrieval_mark_boundaries(const char *text, size_t bytes, const int64_t *byte_end, int64_t n,
                               bool *is_boundary) {
    for (int64_t i = 0; i < n; i++) {
        size_t end = (size_t)byte_end[i];
        bool stop = end > 0 && end <= bytes && strchr(".!?", text[end - 1]) && text[end - 1];
        is_boundary[i] = stop && (end == bytes || isspace((unsigned char)text[end]));
    }
}
