// What a checkpoint holds, for people: `halka inspect`.
#ifndef HALKA_MODEL_INSPECT_H
#define HALKA_MODEL_INSPECT_H

#include <stdio.h>

#include "model/checkpoint.h"

// Prints format, network, rotary scaling, what states become in vectors, parameters and bytes by
// format; with `all`, one line per tensor.
enum status checkpoint_describe(const struct checkpoint *checkpoint, bool all, FILE *out);

#endif
