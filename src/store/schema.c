#include "store/schema.h"

#include <stddef.h>

/* registry.c. Times are Unix seconds. A version is one content of an adapter; `current` is the one
 * that its name stands for, `newest` the last number given out. An alias without a version follows
 * the current one. */
static const char adapters[] =
    "create table adapters (name text primary key, base text not null, current integer not null,"
    " newest integer not null, owner text not null, labels text not null, pinned integer not null,"
    " created integer not null, last_used integer not null, uses integer not null) strict;"

    "create table adapter_versions (name text not null references adapters on delete cascade,"
    " version integer not null, digest blob not null, format text not null,"
    " trained_on text not null, rank integer not null, bytes integer not null,"
    " source text not null, created integer not null, primary key (name, version)) strict;"

    "create table adapter_aliases (alias text primary key,"
    " name text not null references adapters on delete cascade, version integer not null,"
    " created integer not null) strict;"

    "create table adapter_users (user text not null, base text not null,"
    " name text not null references adapters on delete cascade, created integer not null,"
    " primary key (user, base)) strict;";

const char *const db_schema[] = {
    adapters,
    NULL,
};
