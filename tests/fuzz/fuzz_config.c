// sources: model/config_json.c model/config_deepseek.c model/json_util.c model/architecture.c
// sources: model/spec.c model/rope.c model/config_rope.c model/config_layers.c model/mapping.c
// sources: kernels/status.c

// config.json and generation_config.json: whatever passes the checks must give finite frequencies.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "model/spec_draft.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct spec_draft draft;
    struct model_spec spec = {0};
    double inv_freq[ROPE_MAX_FACTORS], factor;
    spec_draft_init(&draft);
    spec_draft_read_generation((const char *)data, bytes, "fuzz.json", &draft);
    spec_draft_init(&draft);
    if (spec_draft_read_json((const char *)data, bytes, "fuzz.json", &draft) == OK &&
        spec_build(&draft, "fuzz.json", &spec) == OK) {
        for (int r = 0; r < spec.n_rope; ++r)
            for (int64_t length = 1; length < (int64_t)1 << 40; length <<= 13) {
                rope_frequencies(&spec.ropes[r], length, inv_freq, &factor);
                if (!isfinite(factor)) abort();
                for (int i = 0; i < spec.ropes[r].dim / 2; ++i)
                    if (!isfinite(inv_freq[i])) abort();
            }
    }
    model_spec_close(&spec);
    return 0;
}
