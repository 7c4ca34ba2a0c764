// A block's keys by position: run i holds `count` keys at start, start + stride, ... in the block's
// rows from first_row on. Runs ascend and do not overlap; rows follow each other from 0.
#ifndef HALKA_KERNELS_KEY_RUN_H
#define HALKA_KERNELS_KEY_RUN_H

#include <stdint.h>

#include "kernels/host_device.h"

struct key_run {
    int64_t start, stride, count, first_row;
};

// How many runs begin at or before a position.
HOST_DEVICE int key_run_begun(const struct key_run *run, int n_run, int64_t position) {
    int begin = 0, end = n_run;
    while (begin < end) {
        int middle = begin + (end - begin) / 2;
        if (run[middle].start <= position)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

// The row that holds a position, or -1: only the last run that begins at or before it can.
HOST_DEVICE int64_t key_run_row(const struct key_run *run, int n_run, int64_t position) {
    int begun = key_run_begun(run, n_run, position);
    if (begun == 0) return -1;
    run += begun - 1;
    int64_t step = position - run->start;
    if (run->stride > 1) {
        if (step % run->stride != 0) return -1;
        step /= run->stride;
    }
    return step < run->count ? run->first_row + step : -1;
}

// How many rows are at or before a position.
HOST_DEVICE int64_t key_run_visible(const struct key_run *run, int n_run, int64_t position) {
    int begun = key_run_begun(run, n_run, position);
    if (begun == 0) return 0;
    run += begun - 1;
    int64_t n = (position - run->start) / run->stride + 1;
    return run->first_row + (n < run->count ? n : run->count);
}

// The position of a row that the runs hold.
HOST_DEVICE int64_t key_run_position(const struct key_run *run, int n_run, int64_t row) {
    int begin = 1, end = n_run; // the last run that begins at or before the row
    while (begin < end) {
        int middle = begin + (end - begin) / 2;
        if (run[middle].first_row <= row)
            begin = middle + 1;
        else
            end = middle;
    }
    run += begin - 1;
    return run->start + (row - run->first_row) * run->stride;
}

#endif
