// A saved context's insides: its folder's files (context_files.c), what the manifest says
// (context_manifest.c), the rows (context_pages.c) and which context begins like a document
// (context_search.c). context_save.c and context_store.c, which restores, put them together.
#ifndef HALKA_MODEL_CONTEXT_INTERNAL_H
#define HALKA_MODEL_CONTEXT_INTERNAL_H

#include "model/context_store.h"
#include "model/session_internal.h"

// What a folder is of: the document of the job, or one that begins like it.
struct context_source {
    const char *identity, *name; // name NULL: not known
    int64_t n_token;
    char token_digest[DIGEST_BYTES], key[DIGEST_BYTES];
};
void context_source_of(const struct context *context, struct context_source *out);
// Whether two keys are of documents of one identity with the same first page.
bool context_keys_begin_alike(const char *a, const char *b);

// Names the folder, or a file in it (NULL: itself); the caller frees it. NULL: no memory.
char *context_path(const char *dir, const char *key, const char *name);

// The files of a generation: "pages-3", "logprobs-3", and until they take their names "ids-3" (the
// tokens) and "manifest-3".
enum context_file { CONTEXT_PAGES, CONTEXT_LOGPROBS, CONTEXT_IDS, CONTEXT_PART, N_CONTEXT_FILE };
enum { CONTEXT_NAME_BYTES = 40 };
void context_name(enum context_file kind, int64_t generation, char out[CONTEXT_NAME_BYTES]);

// A descriptor of DIR/KEY/lock, which is made with its folder for writing, with a shared lock that
// goes with it: no file of any generation is removed meanwhile. *out -1: the folder is to be read
// and is not there.
enum status context_folder_open(const char *dir, const char *folder, bool write, int *out);
// Its new entries are on the disk then.
enum status context_folder_sync(const char *folder);
// Its lock is shared, whatever it was.
void context_folder_share(int lock);
// Makes the pages of the next generation, of that many bytes.
enum status context_generation_make(const char *folder, int64_t bytes, int64_t *generation);
// Removes the files of generations that are not among these.
void context_generations_keep(const char *folder, const int64_t *generation, int n);

// All of a file of at most `most` bytes, which the caller frees; a zero is behind them. *out NULL:
// there is none.
enum status context_file_read(const char *path, int64_t most, void **out, int64_t *bytes);
enum status context_read_at(int file, const char *path, void *data, int64_t bytes, int64_t offset);

// One save: the rows of positions [from, done) in the files of a generation, never changed again.
struct context_segment {
    int64_t generation;
    int64_t from, done;
    int64_t n_page;  // from that of position `from` on
    int64_t *digest; // [n_page] owned
    int64_t *begin;  // [n_layer] owned: of these positions, those that a layer held
    bool scored;     // there are log-probabilities, of this digest
    char logprobs_digest[DIGEST_BYTES];
};

enum { CONTEXT_MOST_SEGMENTS = 128 }; // the save behind them writes all anew
struct context_manifest {
    int64_t n_token, done; // of the document, and of those the ones that are saved
    int64_t page_bytes;
    int n_segment;
    struct context_segment *segment; // [n_segment] owned, one behind the other
    bool scored;                     // all are
    float *last_state;               // [n_hidden] owned; NULL: not known
    char name[CONTEXT_LIKE_BYTES];   // of the document, when parsed; "": it has none
};

// Without segments. To be closed after a failure, too, like all that follow.
void context_manifest_open(const struct session *session, int64_t n_token,
                           struct context_manifest *out);
// A segment more, up to `done`; its digests and positions are zeroes.
enum status context_manifest_add(struct context_manifest *manifest, const struct session *session,
                                 int64_t done);
void context_manifest_close(struct context_manifest *manifest); // accepts a zeroed struct
// Largest file of a manifest of so many tokens.
int64_t context_manifest_most(const struct session *session, int64_t n_token);
// As text, which the caller frees; NULL: no memory.
char *context_manifest_print(const struct context_manifest *manifest, const struct session *session,
                             const struct context_source *source);
// ERR_INPUT unless it is a manifest of this source, with rows such as the session keeps.
struct context_text {
    char *text; // owned by who read it, a zero behind its bytes
    int64_t bytes;
    const char *path;
};
enum status context_manifest_parse(const struct context_text *text, const struct session *session,
                                   const struct context_source *source,
                                   struct context_manifest *out);
// The position from which on the files have all rows of a layer, for a session of `n` tokens;
// before it, they have the sinks.
int64_t context_manifest_held(const struct context_manifest *manifest, int layer, int64_t n);
// Whether the layers' rows in the files are all that a token behind the first `n` sees.
bool context_manifest_reaches(const struct context_manifest *manifest,
                              const struct session *session, int64_t n);

// What a restore takes.
struct context_found {
    struct context_source source;
    int64_t n;                // tokens; 0: there is nothing
    struct context_text text; // the manifest
    int lock;                 // of the folder; -1: none
};
// On one rank; scored: log-probabilities must be there. To be closed after a failure, too.
enum status context_search(const struct session *session, const struct context *context,
                           bool scored, struct context_found *out);
void context_found_close(struct context_found *found);
// Says of the last failure, ERR_INPUT, which context it is of and what to do.
enum status context_refuse(const char *folder);

// The session's first n tokens are those of the context whose manifest has this text.
void context_stored_set(struct session *session, const char *manifest, int64_t n);

int64_t context_page_bytes(const struct kv_store *store);
int64_t context_last_bytes(const struct session *session); // of last_state

// The rows of a segment's positions, slab by slab. write fills in the digests, complete on every
// rank, and read, into a session that has the positions but no rows, compares them: the segment may
// have rows of more.
struct context_file_of {
    int file;
    const char *path;
};
enum status context_pages_write(struct session *session, struct context_file_of file,
                                struct context_segment *segment);
enum status context_pages_read(struct session *session, struct context_file_of file,
                               const struct context_segment *segment);

// Of one save or restore.
struct context_access {
    struct session *session;
    const struct context *context;
    struct comm *comm;            // the host's
    struct context_source source; // of the folder
    char *folder, *manifest_path; // owned
    char *path[N_CONTEXT_FILE];   // owned, of the generation in work
    int lock, file;               // of the folder on rank 0, and of the pages; -1: not open
    struct context_manifest manifest;
    float *logprob; // as restored, owned
    bool committed; // the manifest has its name
};
// To be closed after a failure, too. name: the folder; files: those of a generation, in place of
// another's; pages: opens them.
enum status context_access_open(struct session *session, const struct context *context,
                                struct context_access *out);
enum status context_access_name(struct context_access *access, const struct context_source *source);
enum status context_access_files(struct context_access *access, int64_t generation);
enum status context_access_pages(struct context_access *access,
                                 const struct context_segment *segment, bool write);
void context_access_close(struct context_access *access);
// Reads the first tokens of a context into the session, which is empty before and after; *out: how
// far their keys and values are from the file's, as a part of them, in the layer that is furthest.
// Collective. length: of these tokens, of a context of which n are of use; 0: it has none of them.
enum { CONTEXT_PROBE = 64 };
#define CONTEXT_PROBE_MOST 0.25
int64_t context_probe_length(const struct context_access *access, int64_t n);
enum status context_probe(struct context_access *access, int64_t n, double *out);
// Rank 0: removes what the manifest does not name, unless the folder is in use or the manifest's
// text is no longer this one (NULL: there is none). Its lock is then exclusive, or gone. certain:
// nor where the file system has no locks.
void context_access_clean(struct context_access *access, const char *text, bool certain);
static inline bool context_access_root(const struct context_access *access) {
    return access->comm->rank == 0;
}

#endif
