/* yaml_tree.h - a YAML file as a JSON tree, so that one set of checks reads both.
 *
 * Plain scalars are null, booleans, integers and numbers by the YAML 1.2 core schema (so "no" and
 * "on" are strings), quoted ones are strings. Mapping keys are strings and must differ. Anchors
 * work; a document that unfolds to more than YAML_MAX_NODES values or 64 levels is refused. */
#pragma once

#include <jansson.h>
#include <stddef.h>

#include "base/err.h"

enum { YAML_MAX_NODES = 100000 };

/* The caller json_decref()s the result; an empty document is an empty object. NULL with ERR_IO, or
 * ERR_INVALID naming file, line and column. */
json_t *yaml_tree_read(const char *path, struct err *e);

/* The same for text[0..n); `name` leads the messages. */
json_t *yaml_tree_parse(const char *text, size_t n, const char *name, struct err *e);
