#include "model/utf8.h"

#include "model/unicode.h"

bool utf8_is_valid(const char *text, size_t bytes) {
    return unicode_valid_prefix(text, bytes) == bytes;
}
