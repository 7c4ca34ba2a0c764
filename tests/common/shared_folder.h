// An empty temporary folder that all ranks of a test use.
#ifndef HALKA_TESTS_COMMON_SHARED_FOLDER_H
#define HALKA_TESTS_COMMON_SHARED_FOLDER_H

#include <stdbool.h>

enum { SHARED_FOLDER_BYTES = 256 };
bool shared_folder_open(char out[SHARED_FOLDER_BYTES]);
// Removes it with all that is in it, once every rank is here.
void shared_folder_close(const char *folder);

#endif
