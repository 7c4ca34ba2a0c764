// Experts sharded over the ranks that shard the sequence: rank r owns experts
// partition_piece(n_expert, size, r). Dispatch sends each token's row once to every rank that owns
// one of its experts' choices, a row per (token, expert) pair, grouped by expert on arrival;
// combine takes the products home. Two all-to-alls and one of counts. A rank may have no tokens or
// no rows.
#ifndef HALKA_DIST_EXPERT_EXCHANGE_H
#define HALKA_DIST_EXPERT_EXCHANGE_H

#include "dist/comm.h"
#include "dist/profile.h"
#include "partition/partition.h"

struct expert_exchange {
    struct backend *backend;
    struct comm *comm;
    struct profile *profile;
    int n_expert, n_used;
    int64_t max_tokens; // of one rank in one dispatch
    int64_t row_bytes;  // of a dispatched row
    int64_t n_col;      // floats of a row that comes back
    int64_t max_rows;   // that one rank can receive
    void *workspace;    // backend memory, owned
    void *host;         // owned
    // The dispatch in flight, for combine:
    int64_t n_sent, n_received;
    int64_t *first_row; // host [owned experts + 1]: received rows by expert, for grouped_matmul
    int64_t *sent_bytes, *received_bytes; // host [size]
    int64_t rows_processed;               // received since opening: the balance that reports show
};

// Bytes of backend memory for these sizes; for plans.
int64_t expert_exchange_bytes(int size, int n_expert, int n_used, int64_t max_tokens,
                              int64_t row_bytes, int64_t n_col);
enum status expert_exchange_open(struct expert_exchange *out, struct backend *backend,
                                 struct comm *comm, struct profile *profile, int n_expert,
                                 int n_used, int64_t max_tokens, int64_t row_bytes, int64_t n_col);
void expert_exchange_close(struct expert_exchange *exchange); // accepts a zeroed struct

// x [n_token, row_bytes] and expert [n_token, n_used] in backend memory. Afterwards *rows
// [first_row[n_owned], row_bytes] hold the rows for this rank's experts, grouped by expert, within
// a group by (rank, token): the same order on any transport.
enum status expert_exchange_dispatch(struct expert_exchange *exchange, const void *x,
                                     const int32_t *expert, int64_t n_token, const void **rows);
// products [n_received, n_col] in the order of *rows; out[t] += sum of weight[t, j] * product of
// (t, j), j ascending. out [n_token, n_col], weight [n_token, n_used].
enum status expert_exchange_combine(struct expert_exchange *exchange, const float *products,
                                    const float *weight, float *out);

#endif
