/* proxy_http.c - what operators see of the backends. */
#include "server/proxy.h"

/* GET /v1/backends */
void handle_backends(struct exchange *x)
{
    struct buf body = {0};
    struct jw w;
    jw_init(&w, &body);
    jw_obj(&w);
    jw_kstr(&w, "object", "list");
    jw_key(&w, "data");
    backends_write(x->server->backends, &w, true);
    jw_obj_end(&w);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
}
