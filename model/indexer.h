// A lightning indexer trained for a dense model, kept in a safetensors file of its own: per layer
// model.layers.N.self_attn.indexer.{wq,wk,weights_proj}.weight and k_norm.{weight,bias}. Its
// metadata says how many heads there are, what rotates and which weights it was trained for.
#ifndef HALKA_MODEL_INDEXER_H
#define HALKA_MODEL_INDEXER_H

#include "model/checkpoint.h"

enum { INDEXER_TOP_K = 512 }; // until model_spec_set_top_k

// Gives every layer of a dense checkpoint this indexer, and the checkpoint its tensors. check_base:
// also compare the SHA-256 of the checkpoint's file, which reads it whole: one rank is enough.
// ERR_INPUT when the file does not fit the model, was trained for another one or is damaged.
enum status indexer_attach(const char *path, bool check_base, struct checkpoint *checkpoint);

#endif
