// Which files make up a checkpoint: each function maps them, lists their tensors and fills a draft.
#ifndef HALKA_MODEL_CHECKPOINT_FILES_H
#define HALKA_MODEL_CHECKPOINT_FILES_H

#include "model/checkpoint.h"
#include "model/mapping.h"
#include "model/spec_draft.h"

struct config_text { // what identifies the configuration, in a mapping
    const void *data;
    size_t bytes;
};

// Both leave what they opened in `out`, for checkpoint_close, also after a failure.
enum status checkpoint_read_folder(struct checkpoint *out, struct tensor_list *tensors,
                                   struct spec_draft *draft, struct config_text *config);
enum status checkpoint_read_gguf(struct checkpoint *out, struct tensor_list *tensors,
                                 struct spec_draft *draft, struct config_text *config);
// Maps one more file of the checkpoint; *mapping is valid until the next call.
enum status checkpoint_map(struct checkpoint *checkpoint, const char *path,
                           const struct mapping **mapping);
// Takes over a mapping and zeroes it: tensors of the checkpoint lie in it.
enum status checkpoint_keep_mapping(struct checkpoint *checkpoint, struct mapping *mapping);
// Demands every tensor that the spec needs.
enum status checkpoint_check_tensors(const struct checkpoint *checkpoint);
bool checkpoint_has_index(const char *folder);
// checkpoint_shapes.c. The names of a tensor index, without shapes; then, with the spec laid out,
// the shape of every tensor that it needs and the index names. No tensor has data.
enum status checkpoint_read_names(const char *path, struct tensor_list *tensors);
void checkpoint_fill_shapes(struct checkpoint *checkpoint);

#endif
