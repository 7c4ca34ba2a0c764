#include "model/digest.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "model/mapping.h"

void digest_add_text(XXH3_state_t *hash, const char *text) {
    if (!text) text = "";
    XXH3_128bits_update(hash, text, strlen(text) + 1);
}

void digest_print(XXH128_hash_t hash, char out[DIGEST_BYTES]) {
    snprintf(out, DIGEST_BYTES, "%016" PRIx64 "%016" PRIx64, (uint64_t)hash.high64,
             (uint64_t)hash.low64);
}

void digest_bytes(const void *data, size_t bytes, char out[DIGEST_BYTES]) {
    digest_print(XXH3_128bits(data, bytes), out);
}

enum status digest_file(const char *path, char out[DIGEST_BYTES]) {
    struct mapping mapping;
    TRY(mapping_open(path, &mapping));
    digest_bytes(mapping.data, mapping.bytes, out);
    mapping_close(&mapping);
    return OK;
}
