// Well-formed UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
#ifndef HALKA_MODEL_UTF8_H
#define HALKA_MODEL_UTF8_H

#include <stdbool.h>
#include <stddef.h>

bool utf8_is_valid(const char *text, size_t bytes);

#endif
