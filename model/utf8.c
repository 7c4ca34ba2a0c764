#include "model/utf8.h"

#include <stdint.h>

bool utf8_is_valid(const char *text, size_t bytes) {
    const uint8_t *at = (const uint8_t *)text, *end = at + bytes;
    while (at < end) {
        uint8_t lead = *at++;
        if (lead < 0x80) continue;
        int n_more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
        if (lead < 0xc2 || lead > 0xf4 || end - at < n_more) return false;
        // The second byte's range excludes overlong forms, surrogates and what is past U+10FFFF.
        uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        if (*at < low || *at > high) return false;
        for (int i = 1; i < n_more; ++i)
            if ((at[i] & 0xc0) != 0x80) return false;
        at += n_more;
    }
    return true;
}
