/* The bodies of adapter management over arbitrary bytes: the first one picks which. What is
 * accepted is within its limits; what is refused has a message. */
#include <stdlib.h>
#include <string.h>

#include "api/adapter.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void require(bool holds)
{
    if (!holds)
        abort();
}

static int load(const char *body, size_t n, struct err *e)
{
    struct adapter_load l;
    int rc = adapter_parse_load(&l, body, n, e);
    require(rc || (strlen(l.name) <= ADAPTER_NAME_BYTES && strlen(l.path) <= ADAPTER_PATH_BYTES));
    adapter_load_release(&l);
    return rc;
}

static int spec(bool change, const char *body, size_t n, struct err *e)
{
    struct adapter_spec s;
    int rc = adapter_parse_spec(&s, change, body, n, e);
    require(rc || (change ? !s.name && !s.path : *s.name && *s.path));
    require(rc || json_object_size(s.labels) <= ADAPTER_MAX_LABELS);
    adapter_spec_release(&s);
    return rc;
}

static int target(bool named, const char *body, size_t n, struct err *e)
{
    struct adapter_target t;
    int rc = adapter_parse_target(&t, named, body, n, e);
    require(rc || (t.version >= 0 && !t.adapter == !named));
    adapter_target_release(&t);
    return rc;
}

static int scales(const char *body, size_t n, struct err *e)
{
    struct adapter_scales s;
    int rc = adapter_parse_scales(&s, body, n, e);
    for (size_t i = 0; i < s.n; i++)
        require(s.all[i].id >= 0 && s.all[i].scale >= -API_MAX_SCALE &&
                s.all[i].scale <= API_MAX_SCALE);
    adapter_scales_release(&s);
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct err e = {0};
    const char *body = (const char *)data + 1;
    if (!n--)
        return 0;
    int rc = data[0] % 6 == 0   ? load(body, n, &e)
             : data[0] % 6 == 1 ? spec(false, body, n, &e)
             : data[0] % 6 == 2 ? spec(true, body, n, &e)
             : data[0] % 6 == 3 ? target(true, body, n, &e)
             : data[0] % 6 == 4 ? target(false, body, n, &e)
                                : scales(body, n, &e);
    require(rc == e.code && (!rc || e.msg[0]));
    return 0;
}
