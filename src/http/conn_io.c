#include <errno.h>
#include <openssl/err.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"
#include "http/conn.h"

int io_open(struct http_conn *c)
{
    if (!c->server->tls)
        return 0;
    ERR_clear_error();
    c->ssl = SSL_new(c->server->tls);
    if (!c->ssl || !SSL_set_fd(c->ssl, c->fd)) {
        log_warn("http", "%s: no memory for TLS", c->peer);
        return ERR_NOMEM;
    }
    SSL_set_accept_state(c->ssl); /* the first read shakes hands */
    return 0;
}

void io_close(struct http_conn *c)
{
    SSL_free(c->ssl);
    c->ssl = NULL;
    close(c->fd);
    c->fd = -1;
    buf_release(&c->out);
    c->out_pos = 0;
}

/* What a TLS call that moved nothing means. `other` is the event that it waits for although its own
 * direction is the opposite one. */
static ssize_t ssl_result(struct http_conn *c, int rc, int other)
{
    int code = SSL_get_error(c->ssl, rc);
    c->ssl_wants_other = code == other;
    if (code == SSL_ERROR_WANT_READ || code == SSL_ERROR_WANT_WRITE)
        return IO_AGAIN;
    if (code == SSL_ERROR_ZERO_RETURN)
        return 0;
    unsigned long why = ERR_peek_error();
    log_debug("http", "%s: TLS: %s", c->peer, why ? ERR_reason_error_string(why) : "closed");
    if (why && ERR_GET_REASON(why) == SSL_R_HTTP_REQUEST) {
        static const char reply[] = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"
                                    "Content-Type: text/plain\r\nContent-Length: 32\r\n\r\n"
                                    "This port speaks HTTPS, not HTTP";
        (void)!send(c->fd, reply, sizeof reply - 1, MSG_NOSIGNAL);
    }
    return IO_GONE;
}

ssize_t io_read(struct http_conn *c, char *to, size_t n)
{
    if (fault(FAULT_READ))
        return IO_GONE;
    if (c->ssl) {
        ERR_clear_error();
        int rc = SSL_read(c->ssl, to, (int)n);
        if (rc > 0)
            c->ssl_wants_other = false;
        return rc > 0 ? rc : ssl_result(c, rc, SSL_ERROR_WANT_WRITE);
    }
    ssize_t rc;
    do
        rc = recv(c->fd, to, n, 0);
    while (rc < 0 && errno == EINTR);
    if (rc >= 0)
        return rc;
    return errno == EAGAIN || errno == EWOULDBLOCK ? IO_AGAIN : IO_GONE;
}

static ssize_t io_write(struct http_conn *c, const char *from, size_t n)
{
    if (fault(FAULT_WRITE))
        return IO_GONE;
    if (c->ssl) {
        ERR_clear_error();
        int rc = SSL_write(c->ssl, from, n > INT32_MAX ? INT32_MAX : (int)n);
        if (rc > 0)
            c->ssl_wants_other = false;
        return rc > 0 ? rc : ssl_result(c, rc, SSL_ERROR_WANT_READ);
    }
    ssize_t rc;
    do
        rc = send(c->fd, from, n, MSG_NOSIGNAL);
    while (rc < 0 && errno == EINTR);
    if (rc >= 0)
        return rc;
    return errno == EAGAIN || errno == EWOULDBLOCK ? IO_AGAIN : IO_GONE;
}

bool io_flush(struct http_conn *c)
{
    while (conn_queued(c)) {
        ssize_t n = io_write(c, c->out.data + c->out_pos, conn_queued(c));
        if (n == IO_AGAIN)
            break;
        if (n <= 0)
            return false;
        c->out_pos += (size_t)n;
        pace_progress(&c->out_pace, c, (size_t)n);
    }
    if (!conn_queued(c)) {
        buf_release(&c->out); /* an idle stream holds no buffer */
        c->out_pos = 0;
    } else if (c->out_pos > c->out.len / 2) {
        buf_consume(&c->out, c->out_pos);
        c->out_pos = 0;
    }
    return true;
}

void io_finish(struct http_conn *c)
{
    if (c->ssl && SSL_is_init_finished(c->ssl)) {
        ERR_clear_error();
        SSL_shutdown(c->ssl);
    }
    shutdown(c->fd, SHUT_WR);
}

bool io_unread(const struct http_conn *c)
{
    int n = 0;
    return ioctl(c->fd, FIONREAD, &n) == 0 && n > 0;
}

bool io_hung_up(const struct http_conn *c)
{
    struct pollfd p = {.fd = c->fd};
    return poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLERR));
}

/* libuv takes a descriptor out of epoll and puts it back for every uv_poll_start, so only changes
 * are told, and not for a connection that is about to be settled again. */
void io_watch(struct http_conn *c)
{
    if (!link_alone(&c->dirty))
        return;
    int events = 0;
    if (conn_reads(c) || c->state == CONN_LINGER)
        events = UV_READABLE;
    else /* a hang-up is reported with any event, so ask for one that never comes by itself */
        events = c->server->opts.allow_half_close ? UV_PRIORITIZED : UV_DISCONNECT;
    if (conn_queued(c))
        events |= UV_WRITABLE;
    if (c->ssl_wants_other)
        events |= UV_READABLE | UV_WRITABLE;
    if (events == c->waiting_for)
        return;
    c->waiting_for = events;
    if (uv_poll_start(&c->poll, events, conn_event) != 0) {
        c->aborted = true;
        conn_dirty(c);
    }
}
