/* loop.h - one event loop on one thread, which server, client and timers share.
 *
 * Everything that lives on a loop is touched only by the thread that runs it. The two functions for
 * other threads are http_loop_post and http_loop_stop.
 */
#pragma once

#include <stdint.h>

#include "base/err.h"

struct http_loop;
struct http_timer;
struct uv_loop_s;

typedef void http_loop_fn(void *arg);

int http_loop_new(struct http_loop **out, struct err *e);

/* Closes what is left on the loop. Servers and timers are closed by their owners before. Posts that
 * nobody has run yet are run now, so each post runs exactly once. */
void http_loop_free(struct http_loop *l);

/* Serves events until http_loop_stop. The calling thread becomes the loop's thread; SIGPIPE is
 * blocked on it, since TLS writes to sockets whose peer may have gone. */
void http_loop_run(struct http_loop *l);

/* Makes http_loop_run return soon, at once if it has not been called yet. Any thread. */
void http_loop_stop(struct http_loop *l);

/* Runs fn(arg) on the loop's thread, in the order of the calls. Any thread, the loop's own included
 * (then it runs on a later turn, never inside this call). One system call only if nothing was
 * waiting: a producer with many events posts one function that takes them all. */
void http_loop_post(struct http_loop *l, http_loop_fn *fn, void *arg);

/* Milliseconds of the monotonic clock as the loop last read it. */
int64_t http_loop_now_ms(const struct http_loop *l);

/* The libuv loop, for what has to sit on it directly (libcurl's sockets). */
struct uv_loop_s *http_loop_uv(struct http_loop *l);

/* A timer is idle until started. Starting a running timer sets it anew; repeat_ms 0: once. fn may
 * start, stop or free its own timer. */
struct http_timer *http_timer_new(struct http_loop *l, http_loop_fn *fn, void *arg);
void http_timer_start(struct http_timer *t, int64_t delay_ms, int64_t repeat_ms);
void http_timer_stop(struct http_timer *t);
void http_timer_free(struct http_timer *t);
