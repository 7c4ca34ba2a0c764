// LongRoPE's lists of factors as config.json has them.
#ifndef HALKA_MODEL_CONFIG_ROPE_H
#define HALKA_MODEL_CONFIG_ROPE_H

#include "model/json_util.h"
#include "model/spec.h"

// short_factor, long_factor and attention_factor of rope_scaling; rope_check looks at the values.
enum status config_read_longrope(struct json_object in, struct rope_spec *rope);
// The same from a file: such an object, or a config.json that holds one.
enum status config_read_longrope_file(const char *path, struct rope_spec *rope);

#endif
