// The page's text lies in the program: the assembler takes it from the file beside this one.
#include "launcher/service_page.h"

__asm__(".section .rodata\n"
        ".globl service_page\n"
        "service_page:\n"
        ".incbin \"launcher/service_page.html\"\n"
        ".byte 0\n"
        ".previous\n");
