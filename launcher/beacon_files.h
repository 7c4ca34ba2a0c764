// OUTPUT/status/rank-R: the beacon of each rank (dist/beacon.h), which a thread writes 20 times a
// second: there for the next start and `halka inspect OUTPUT` however the job
// ends. A job does without where it cannot be kept.
#ifndef HALKA_LAUNCHER_BEACON_FILES_H
#define HALKA_LAUNCHER_BEACON_FILES_H

#include <dirent.h>

#include "launcher/job.h"

#define BEACON_FOLDER "status"
enum { BEACON_MAX_RANKS = 1 << 16 };

// Tells of the job before where it did not end, removes its beacons and lights this job's: in
// job->profile. On every rank, once rank 0 holds the lock of results.jsonl. ERR_RANK alone is a
// failure; what else goes wrong is one warning.
enum status beacon_files_open(struct job *job);
// With how the rank ends. Accepts a job without beacon.
void beacon_files_close(struct job *job, enum status status);

// The rank of a file's name, rank-R; -1: it is none.
int beacon_file_rank(const char *name);
// The files with such names, as scandir lists them: *names and each of them are the caller's to
// free. -1: the folder cannot be read.
int beacon_file_list(const char *folder, struct dirent ***names);

#endif
