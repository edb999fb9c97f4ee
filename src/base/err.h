/* err.h - how a function says what went wrong.
 *
 * A function that can fail returns 0 or a negative ERR_*, and takes `struct err *e` as its last
 * parameter. The caller owns `e`; it is untouched on success and may be NULL when nobody will read
 * it. The message is one a user can act on: it names the thing, the value and the fix.
 *
 * Input (file, request, peer, disk) is answered with an err. A broken promise of our own code is
 * answered with BUG(), which logs the place and aborts.
 */
#pragma once

enum {
    ERR_NOMEM = -1,       /* an allocation whose size came from input did not fit */
    ERR_IO = -2,          /* the operating system refused: errno is in the message */
    ERR_FORMAT = -3,      /* a file or message is not what it claims to be */
    ERR_UNSUPPORTED = -4, /* well formed, but not something this program does */
    ERR_INVALID = -5,     /* a value from the user is out of range or of the wrong type */
    ERR_NOTFOUND = -6,
    ERR_EXISTS = -7,
    ERR_LIMIT = -8, /* a size, count or rate limit was reached */
    ERR_BUSY = -9,  /* try again later: the queue is full, the model is loading */
    ERR_TIMEOUT = -10,
    ERR_CANCELED = -11,
    ERR_DENIED = -12, /* the caller may not do this */
};

struct err {
    int code;       /* ERR_*, 0 while unset */
    char param[64]; /* the request field or option at fault, "" if none */
    char msg[440];  /* one sentence, no newline */
};

/* Sets code and message, clears param, returns code. `e` may be NULL. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The same, naming the field at fault. */
int err_param(struct err *e, int code, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts "prefix: " before the message, so that each layer can say what it was doing. Returns
 * e->code, or `code` when e is NULL. */
int err_prefix(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* "out of memory", "not found" ...: for logs and exit messages where no err was filled in. */
const char *err_name(int code);

/* A promise of our own code is broken: says where and aborts. Never for input. */
#define BUG(...) err_bug(__FILE__, __LINE__, __VA_ARGS__)
#define BUG_ON(cond)                                                                               \
    do {                                                                                           \
        if (__builtin_expect(!!(cond), 0))                                                         \
            BUG("%s", #cond);                                                                      \
    } while (0)
_Noreturn void err_bug(const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
