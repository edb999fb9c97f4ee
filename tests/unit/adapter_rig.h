/* adapter_rig.h - a tiny model of random weights and a folder of adapters for it that differ in one
 * number. */
#pragma once

#include "unit.h"

#include <limits.h>

#include "model/model.h"

struct adapter_rig {
    char folder[64]; /* gone with the rig, whatever is in it */
    char root[80];   /* a folder in it: a0, a1 ... are adapters */
    struct pool *pool;
    struct gguf *gguf;
    struct model *model;
};

void adapter_rig_open(struct adapter_rig *r, int n_adapters);
void adapter_rig_close(struct adapter_rig *r);

/* Writes or replaces the adapter at path; its last number is `content`. */
void adapter_rig_write(const char *path, float content);
