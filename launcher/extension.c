#include "launcher/extension.h"

#include <string.h>

#define METHOD(name) (1u << EXTENSION_##name)

// The methods that read a parameter.
static const struct {
    const char *path;
    unsigned methods;
} readers[] = {
    {"extension.factor", METHOD(LINEAR) | METHOD(NTK) | METHOD(DYNAMIC) | METHOD(YARN) |
                             METHOD(LLAMA3) | METHOD(LONGROPE)},
    {"extension.original_context", ~METHOD(AUTO)},
    {"extension.beta_fast", METHOD(YARN)},
    {"extension.beta_slow", METHOD(YARN)},
    {"extension.attention_factor", METHOD(YARN) | METHOD(LONGROPE)},
    {"extension.low_freq_factor", METHOD(LLAMA3)},
    {"extension.high_freq_factor", METHOD(LLAMA3)},
    {"extension.factors", METHOD(LONGROPE)},
    {"extension.group", METHOD(SELF_EXTEND)},
    {"extension.neighbours", METHOD(SELF_EXTEND)},
    {"extension.chunk", METHOD(DCA)},
    {"extension.sinks", METHOD(STREAMING)},
    {"extension.window", METHOD(STREAMING)},
};

static void name_methods(unsigned methods, const char *choices, char *out, size_t bytes) {
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < N_EXTENSION; i++) {
        size_t n = strcspn(choices, "|");
        if (methods >> i & 1 && used < bytes)
            used += (size_t)snprintf(out + used, bytes - used, "%s%.*s", used ? ", " : "", (int)n,
                                     choices);
        choices += n + (choices[n] == '|');
    }
}

static enum status check_readers(const struct options *o) {
    const struct option *method = option_find("extension.method");
    for (size_t i = 0; i < sizeof readers / sizeof *readers; i++) {
        const struct option *parameter = option_find(readers[i].path);
        char value[64], chosen[32], names[160];
        option_format(o, parameter, value, sizeof value);
        bool given = strcmp(value, parameter->initial ? parameter->initial : "") != 0;
        if (!given || readers[i].methods >> o->extension & 1) continue;
        option_format(o, method, chosen, sizeof chosen);
        name_methods(readers[i].methods, method->choices, names, sizeof names);
        FAIL(ERR_CONFIG, "%s = %s is for extension.method = %s, and it is %s", parameter->path,
             value, names, chosen);
    }
    return OK;
}

enum status extension_check(const struct options *o) {
    TRY(check_readers(o));
    if (o->extension_factor > 0 && o->extension_factor < 1)
        FAIL(ERR_CONFIG, "extension.factor = %g would shrink the context: it must be at least 1",
             o->extension_factor);
    double fast = o->beta_fast > 0 ? o->beta_fast : 32;
    double slow = o->beta_slow > 0 ? o->beta_slow : 1;
    if (fast < slow)
        FAIL(ERR_CONFIG, "extension.beta_fast (%g) must not be below extension.beta_slow (%g)",
             fast, slow);
    double low = o->low_freq_factor > 0 ? o->low_freq_factor : 1;
    double high = o->high_freq_factor > 0 ? o->high_freq_factor : 4;
    if (high <= low)
        FAIL(ERR_CONFIG,
             "extension.high_freq_factor (%g) must exceed extension.low_freq_factor (%g)", high,
             low);
    return OK;
}

struct extension extension_from_options(const struct options *o) {
    return (struct extension){.method = (enum extension_method)o->extension,
                              .factor = o->extension_factor,
                              .original_context = o->original_context,
                              .context = o->model_context,
                              .beta_fast = o->beta_fast,
                              .beta_slow = o->beta_slow,
                              .attention_factor = o->attention_factor,
                              .low_freq_factor = o->low_freq_factor,
                              .high_freq_factor = o->high_freq_factor,
                              .group = o->extension_group,
                              .neighbours = o->extension_neighbours,
                              .chunk = o->extension_chunk,
                              .sinks = o->extension_sinks,
                              .window = o->extension_window,
                              .factor_path = o->extension_factors};
}
