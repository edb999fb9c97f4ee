/* log.h - one line per event on standard error, as text or JSON. Any thread.
 *
 * A line is made on the stack and written with one write(2), so lines never mix. Never log prompts,
 * keys or answers. */
#pragma once

#include <stdbool.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* The level and form are set once at start, before other threads exist. Default: info, text. */
void log_init(enum log_level level, bool json);
bool log_level_parse(const char *name, enum log_level *out); /* "error" "warn" "info" "debug" */
bool log_on(enum log_level level);

/* `module` is the file or folder that speaks: "http", "engine". */
void log_line(enum log_level level, const char *module, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(module, ...) log_line(LOG_ERROR, module, __VA_ARGS__)
#define log_warn(module, ...)  log_line(LOG_WARN, module, __VA_ARGS__)
#define log_info(module, ...)  log_line(LOG_INFO, module, __VA_ARGS__)
#define log_debug(module, ...)                                                                     \
    do {                                                                                           \
        if (log_on(LOG_DEBUG))                                                                     \
            log_line(LOG_DEBUG, module, __VA_ARGS__);                                              \
    } while (0)
