#define _GNU_SOURCE /* memmem */
#include "gateway/origin.h"

#include <arpa/inet.h>
#include <stdio.h>

#include "base/mem.h"

/* "host" of "host:port" and "[v6]:port". */
static struct str without_port(struct str host)
{
    if (host.n && host.p[0] == '[') {
        const char *end = memchr(host.p, ']', host.n);
        return end ? (struct str){host.p + 1, (size_t)(end - host.p - 1)} : STR("");
    }
    const char *colon = memchr(host.p, ':', host.n);
    return colon ? (struct str){host.p, (size_t)(colon - host.p)} : host;
}

static bool is_address(struct str host)
{
    char text[64];
    unsigned char room[16];
    if (host.n >= sizeof text)
        return false;
    snprintf(text, sizeof text, "%.*s", (int)host.n, host.p);
    return inet_pton(AF_INET, text, room) == 1 || inet_pton(AF_INET6, text, room) == 1;
}

static bool ends_with(struct str s, const char *end)
{
    size_t n = strlen(end);
    return s.n >= n && str_case_eq((struct str){s.p + s.n - n, n}, end);
}

bool origin_host_is_local(struct str host)
{
    static const char *const suffixes[] = {".localhost", ".local", ".internal"};
    host = without_port(host);
    if (is_address(host) || !memchr(host.p, '.', host.n))
        return true;
    for (size_t i = 0; i < ARRAY_LEN(suffixes); i++)
        if (ends_with(host, suffixes[i]))
            return true;
    return false;
}

static bool is_loopback(struct str host)
{
    return str_case_eq(host, "localhost") || ends_with(host, ".localhost") ||
           str_eqs(host, "::1") || (str_starts(host, "127.") && is_address(host));
}

bool origin_allowed(const char *allowed, struct str origin, bool local)
{
    for (const char *p = allowed ? allowed : ""; *p; p += *p == ',') {
        size_t n = strcspn(p, ",");
        char one[256];
        snprintf(one, sizeof one, "%.*s", (int)n, p);
        if (n < sizeof one && (strcmp(one, "*") == 0 || str_case_eq(origin, one)))
            return true;
        p += n;
    }
    if (!local)
        return false;
    const char *slashes = memmem(origin.p, origin.n, "://", 3);
    if (!slashes)
        return false;
    size_t skip = (size_t)(slashes - origin.p) + 3;
    return is_loopback(without_port((struct str){origin.p + skip, origin.n - skip}));
}
