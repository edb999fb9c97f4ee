/* fault.h - makes the n-th call of a kind fail, so that tests can walk every error path.
 * Off unless a test calls fault_set; then it counts calls of that kind on this thread only. */
#pragma once

#include <stdbool.h>

enum fault_kind { FAULT_ALLOC, FAULT_READ, FAULT_WRITE, FAULT_ACCEPT, FAULT_KINDS };

/* The n-th call (from 1) of fault(kind) on this thread returns true, once. 0 switches it off. */
void fault_set(enum fault_kind kind, int n);

/* True when this call is the one that must fail. */
bool fault(enum fault_kind kind);
