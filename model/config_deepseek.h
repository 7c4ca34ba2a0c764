// The parts of config.json that DeepSeek V3, V3.2 and GLM with DSA have and dense networks do not:
// latent attention, mixture of experts, lightning indexer.
#ifndef HALKA_MODEL_CONFIG_DEEPSEEK_H
#define HALKA_MODEL_CONFIG_DEEPSEEK_H

#include "model/json_util.h"
#include "model/spec_draft.h"

// After sizes and rope were read.
enum status config_read_deepseek(struct json_object in, struct spec_draft *draft);
// quantization_config: fp8 with 128 x 128 blocks, or an error.
enum status config_check_fp8(struct json_object in, const json_t *quantization);

#endif
