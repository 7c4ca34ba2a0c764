// A device that is this host: a backend of MEMORY_DEVICE over a host backend. Its addresses cannot
// be dereferenced, every operation's pointers are checked against what was allocated, what download
// delivers appears at sync(), and the transports' copies happen as late as their tickets allow. So
// host code that a real device would fail crashes here, without one.
#ifndef HALKA_TESTS_COMMON_FAKE_DEVICE_H
#define HALKA_TESTS_COMMON_FAKE_DEVICE_H

#include "kernels/kernels.h"

// Takes `host` over: it is closed with the fake.
void fake_device_open(struct backend host, struct backend *out);

#endif
