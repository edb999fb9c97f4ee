#include "base/fault.h"

static _Thread_local int left[FAULT_KINDS];

void fault_set(enum fault_kind kind, int n)
{
    left[kind] = n;
}

bool fault(enum fault_kind kind)
{
    return left[kind] && --left[kind] == 0;
}
