// The options extension.*: which belong together, and as model/extension.h takes them.
#ifndef HALKA_LAUNCHER_EXTENSION_H
#define HALKA_LAUNCHER_EXTENSION_H

#include "launcher/options.h"
#include "model/extension.h"

// ERR_CONFIG when a parameter is set that the method does not read, or contradicts another.
enum status extension_check(const struct options *options);
struct extension extension_from_options(const struct options *options);

#endif
