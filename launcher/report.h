// OUTPUT/report.txt and report.json: what each rank did, and where its time went.
#ifndef HALKA_LAUNCHER_REPORT_H
#define HALKA_LAUNCHER_REPORT_H

#include "launcher/job.h"

// Gathers the ranks' figures; rank 0 writes. Entered by all ranks.
enum status report_write(struct job *job);

#endif
