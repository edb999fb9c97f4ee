/* terms.c - for whom a request runs, and until when. */
#include "server/terms.h"

#include <stdio.h>

#include "base/clock.h"

enum { MAX_TENANT_BYTES = 128 };

static bool is_local(const char *peer)
{
    return strncmp(peer, "127.", 4) == 0 || strcmp(peer, "::1") == 0 ||
           strncmp(peer, "::ffff:127.", 11) == 0;
}

const char *request_tenant(struct http_req *http, struct chat_request *r, const char *key_tenant)
{
    if (key_tenant)
        return arena_printf(&r->arena, "key:%s", key_tenant);
    struct str header = http_header(http, "x-terrace-tenant");
    const char *kind = "peer", *name = http->peer;
    size_t n = strlen(http->peer);
    if (header.n && is_local(http->peer)) {
        kind = "tenant";
        name = header.p;
        n = header.n;
    } else if (r->user) {
        kind = "user";
        name = r->user;
        n = strlen(r->user);
    }
    if (n > MAX_TENANT_BYTES)
        n = MAX_TENANT_BYTES;
    return arena_printf(&r->arena, "%s:%.*s", kind, (int)n, name);
}

const char *tenant_user(struct arena *a, const char *user, const char *key_tenant)
{
    return key_tenant ? arena_printf(a, "@%s/%s", key_tenant, user) : user; /* no '/' in tenants */
}

const char *tenant_user_name(const char *user)
{
    const char *slash = *user == '@' ? strchr(user, '/') : NULL;
    return slash ? slash + 1 : user;
}

const char *request_salt(struct chat_request *r, const char *key_tenant)
{
    const char *own = r->gen.cache_salt;
    if (!key_tenant)
        return own;
    return arena_printf(&r->arena, "@%s@%s", key_tenant,
                        own ? own : ""); /* no salt may hold an @ */
}

int request_deadline(struct http_req *http, const struct chat_request *r, int64_t start_ns,
                     int64_t *out_ms, struct err *e)
{
    struct str header = http_header(http, "x-request-timeout");
    double limit_s = r->timeout_s, v;
    *out_ms = 0;
    if (header.p) {
        if (!str_to_double(header, &v) || !(v > 0) || v > API_MAX_TIMEOUT_S)
            return err_param(e, ERR_INVALID, "x-request-timeout",
                             "the header x-request-timeout must be a number of seconds above 0 to "
                             "%d, got %.*s",
                             API_MAX_TIMEOUT_S, (int)(header.n < 32 ? header.n : 32), header.p);
        if (!limit_s || v < limit_s)
            limit_s = v;
    }
    if (limit_s)
        *out_ms = start_ns / 1000000 + (int64_t)(limit_s * 1e3) + 1;
    return 0;
}
