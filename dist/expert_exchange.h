// Experts sharded over the ranks that shard the sequence: rank r owns experts
// partition_piece(n_expert, size, r). Dispatch sends a row for each pair (token, chosen expert) to
// the expert's owner, where rows lie grouped by expert; combine takes the products home. An
// all-to-all of counts, one of rows, one of products. A rank may have no tokens or receive no rows.
#ifndef HALKA_DIST_EXPERT_EXCHANGE_H
#define HALKA_DIST_EXPERT_EXCHANGE_H

#include "dist/comm.h"
#include "dist/profile.h"
#include "partition/partition.h"

struct expert_exchange_shape {
    int n_expert, n_used;
    int64_t max_tokens; // of one rank in one dispatch
    int64_t row_bytes;  // of a row that travels, a multiple of 4
    int64_t n_col;      // floats of a product that comes home
};

struct expert_exchange {
    struct backend *backend;
    struct comm *comm;
    struct profile *profile;
    struct expert_exchange_shape shape;
    struct expert_room *room; // owned: buffers, tables and the dispatch in flight
    int64_t *first_row;       // [owned experts + 1] host: of the rows received last, by expert
    int64_t rows_received;    // since opening: the balance that reports show
};

// Bytes of backend memory, and of host tables, at most.
int64_t expert_exchange_bytes(const struct expert_exchange_shape *shape, int size);
enum status expert_exchange_open(struct expert_exchange *out, struct backend *backend,
                                 struct comm *comm, struct profile *profile,
                                 const struct expert_exchange_shape *shape);
void expert_exchange_close(struct expert_exchange *exchange); // accepts a zeroed struct

// rows [n_token, row_bytes] and expert [n_token, n_used] in backend memory; every rank calls it.
// Afterwards *out [first_row[owned], row_bytes] holds what this rank's experts are to multiply,
// grouped by expert, within a group by rank and token.
enum status expert_exchange_dispatch(struct expert_exchange *exchange, const void *rows,
                                     const int32_t *expert, int64_t n_token, const void **out);
// product [first_row[owned], n_col] in the order of the rows: out[t] += sum over j, ascending, of
// weight[t, j] * the product of pair (t, j). out [n_token, n_col], weight [n_token, n_used].
enum status expert_exchange_combine(struct expert_exchange *exchange, const float *product,
                                    const float *weight, float *out);

#endif
