/* json.h - JSON in and out.
 *
 * Out: jw_* appends to a buffer, no tree. Commas and quoting are the writer's business; matching
 * begin and end calls are the caller's (checked by BUG in jw_done).
 *
 * In: jr_parse builds a jansson tree with limits; the jr_* getters answer with an err that names
 * the field. Bad UTF-8, duplicate keys, trailing bytes, NaN and numbers out of range are refused.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/str.h"

struct jw {
    struct buf *out;
    int depth;
    bool comma; /* the next value needs one before it */
};

void jw_init(struct jw *w, struct buf *out);
void jw_done(const struct jw *w); /* BUG if something is still open */

void jw_obj(struct jw *w);
void jw_obj_end(struct jw *w);
void jw_arr(struct jw *w);
void jw_arr_end(struct jw *w);
void jw_key(struct jw *w, const char *key);

/* Bytes that are no UTF-8 are written as U+FFFD, so the output is always valid JSON. */
void jw_strn(struct jw *w, const char *p, size_t n);
void jw_str(struct jw *w, const char *s); /* NULL writes null */
void jw_int(struct jw *w, int64_t v);
void jw_uint(struct jw *w, uint64_t v);
void jw_num(struct jw *w,
            double v); /* shortest form that reads back the same; null if not finite */
void jw_bool(struct jw *w, bool v);
void jw_null(struct jw *w);
void jw_raw(struct jw *w, const char *json, size_t n); /* a value that is JSON already */
void jw_tree(struct jw *w, const json_t *v); /* a parsed jansson value; NULL writes null */

/* key and value in one */
void jw_kstr(struct jw *w, const char *key, const char *s);
void jw_kstrn(struct jw *w, const char *key, const char *p, size_t n);
void jw_kint(struct jw *w, const char *key, int64_t v);
void jw_kuint(struct jw *w, const char *key, uint64_t v);
void jw_knum(struct jw *w, const char *key, double v);
void jw_kbool(struct jw *w, const char *key, bool v);
void jw_knull(struct jw *w, const char *key);

enum { JSON_MAX_DEPTH = 128 };

/* Parses text[0..n). NULL and ERR_INVALID with line and column on anything wrong. The caller
 * json_decref()s the result. Thread-safe. */
json_t *jr_parse(const char *text, size_t n, struct err *e);
