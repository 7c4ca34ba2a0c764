// The parts of config.json in which layers differ: windows, and the rotation of each kind of layer.
// Both dialects, of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters).
#ifndef HALKA_MODEL_CONFIG_LAYERS_H
#define HALKA_MODEL_CONFIG_LAYERS_H

#include "model/json_util.h"
#include "model/spec_draft.h"

// After sizes were read, in this order.
enum status config_read_windows(struct json_object in, struct spec_draft *draft);
enum status config_read_ropes(struct json_object in, struct spec_draft *draft);

#endif
