// Digests by which files, prompts and jobs are told apart: XXH3-128, as hex text.
#ifndef HALKA_MODEL_DIGEST_H
#define HALKA_MODEL_DIGEST_H

#include <stddef.h>
#include <xxhash.h>

#include "kernels/status.h"

enum { DIGEST_BYTES = 33 }; // with its terminator

// Adds a text and its end, so that "ab", "c" is not "a", "bc". NULL: an empty one.
void digest_add_text(XXH3_state_t *hash, const char *text);
void digest_print(XXH128_hash_t hash, char out[DIGEST_BYTES]);
void digest_bytes(const void *data, size_t bytes, char out[DIGEST_BYTES]);
// Of what the file holds. ERR_NO_INPUT when it cannot be read.
enum status digest_file(const char *path, char out[DIGEST_BYTES]);

#endif
