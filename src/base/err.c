#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int err_set(struct err *e, int code, const char *fmt, ...)
{
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(e->msg, sizeof e->msg, fmt, ap);
        va_end(ap);
        e->code = code;
        e->param[0] = 0;
    }
    return code;
}

int err_param(struct err *e, int code, const char *param, const char *fmt, ...)
{
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(e->msg, sizeof e->msg, fmt, ap);
        va_end(ap);
        e->code = code;
        snprintf(e->param, sizeof e->param, "%s", param);
    }
    return code;
}

int err_prefix(struct err *e, int code, const char *fmt, ...)
{
    if (!e)
        return code;
    char head[sizeof e->msg], tail[sizeof e->msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(head, sizeof head, fmt, ap);
    va_end(ap);
    memcpy(tail, e->msg, sizeof tail);
    size_t n = strlen(head);
    if (n > sizeof e->msg / 2)
        n = sizeof e->msg / 2;
    memcpy(e->msg, head, n);
    snprintf(e->msg + n, sizeof e->msg - n, ": %s", tail);
    return e->code ? e->code : code;
}

const char *err_name(int code)
{
    static const char *const names[] = {
        "no error",      "out of memory", "input/output error", "malformed input", "unsupported",
        "invalid value", "not found",     "already exists",     "limit reached",   "busy",
        "timed out",     "canceled",      "not allowed",
    };
    int i = -code;
    return i >= 0 && i < (int)(sizeof names / sizeof *names) ? names[i] : "unknown error";
}

void err_bug(const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "terrace: BUG at %s:%d: ", file, line);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    abort();
}
