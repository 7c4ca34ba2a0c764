// sources: launcher/span_file.c model/digest.c model/mapping.c kernels/status.c
// Files of spans: whatever the text, spans that are in order or a message come out, and nothing is
// leaked.
#include <stdlib.h>

#include "launcher/span_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct span_file file = {0};
    enum status status = span_file_parse((const char *)data, size, "spans", &file);
    if (status != OK && !*status_message()) abort();
    for (int64_t i = 0; status == OK && i < file.n; i++)
        if (file.lines[i].begin < 0 || file.lines[i].end <= file.lines[i].begin) abort();
    span_file_close(&file);
    return 0;
}
