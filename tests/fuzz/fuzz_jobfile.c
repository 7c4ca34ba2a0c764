// sources: launcher/options.c launcher/option_table.c launcher/option_text.c kernels/status.c
// Job files: whatever the text, values or a message come out, and nothing is leaked.
#include <stdlib.h>
#include <string.h>

#include "launcher/options.h"

// libconfig 1.5 loses the buffer of a text that never ends.
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libconfig";
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1);
    struct options options;
    if (!text) return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    // An included file would be read from the disk.
    if (!strstr(text, "@include") && options_set_defaults(&options) == OK) {
        enum status status = options_read_job_text(&options, text, "job.cfg");
        if (status != OK && !*status_message()) abort();
        for (int i = 0; i < n_option; i++) {
            char value[64];
            option_format(&options, &option_table[i], value, sizeof value);
        }
        options_close(&options);
    }
    free(text);
    return 0;
}
