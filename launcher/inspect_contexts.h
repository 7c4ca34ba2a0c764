// What store.dir holds, for people: `halka inspect`.
#ifndef HALKA_LAUNCHER_INSPECT_CONTEXTS_H
#define HALKA_LAUNCHER_INSPECT_CONTEXTS_H

#include "kernels/status.h"

// Prints a line for the context in this folder, or for each in its folders: *n of them, 0 where
// the path is something else. ERR_INPUT: a manifest is no JSON.
enum status inspect_contexts(const char *path, int *n);

#endif
