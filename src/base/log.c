#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/json.h"
#include "base/mem.h"

enum { LOG_LINE_BYTES = 2048 };

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static enum log_level max_level = LOG_INFO;
static bool as_json;

void log_init(enum log_level level, bool json)
{
    max_level = level;
    as_json = json;
}

bool log_level_parse(const char *name, enum log_level *out)
{
    for (size_t i = 0; i < ARRAY_LEN(level_names); i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *out = (enum log_level)i;
            return true;
        }
    }
    return false;
}

bool log_on(enum log_level level)
{
    return level <= max_level;
}

static void put(const char *p, size_t n)
{
    while (n) {
        ssize_t w = write(STDERR_FILENO, p, n);
        if (w <= 0)
            return; /* nobody is listening: a log line is not worth a failure */
        p += w;
        n -= (size_t)w;
    }
}

void log_line(enum log_level level, const char *module, const char *fmt, ...)
{
    if (!log_on(level))
        return;
    char msg[LOG_LINE_BYTES], stamp[40];
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    size_t n = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(stamp + n, sizeof stamp - n, ".%03ldZ", ts.tv_nsec / 1000000);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);

    struct buf line = {0};
    if (as_json) {
        struct jw w;
        jw_init(&w, &line);
        jw_obj(&w);
        jw_kstr(&w, "time", stamp);
        jw_kstr(&w, "level", level_names[level]);
        jw_kstr(&w, "module", module);
        jw_kstr(&w, "msg", msg);
        jw_obj_end(&w);
    } else {
        for (char *p = msg; *p; p++) /* a log line is one line, whatever a peer sent */
            if ((unsigned char)*p < 0x20 || *p == 0x7f)
                *p = '?';
        buf_addf(&line, "%s %-5s %s: %s", stamp, level_names[level], module, msg);
    }
    buf_addc(&line, '\n');
    put(line.data, line.len);
    buf_release(&line);
}
