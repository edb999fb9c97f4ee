#include "server/service.h"

/* OpenAI's four members, and those that vLLM and llama-server add. */
static void write_model(struct jw *w, const struct served *m)
{
    const struct model_info *info = m->model.info;
    jw_obj(w);
    jw_kstr(w, "id", m->name);
    jw_kstr(w, "object", "model");
    jw_kint(w, "created", m->model.created_unix_s);
    jw_kstr(w, "owned_by", "terrace");
    jw_kstr(w, "root", m->name);
    jw_knull(w, "parent");
    jw_kint(w, "max_model_len", m->model.n_ctx);
    if (info) {
        jw_key(w, "meta");
        jw_obj(w);
        jw_kstr(w, "arch", info->arch);
        jw_kstr(w, "quantization", info->quant);
        jw_kint(w, "n_vocab", info->n_vocab);
        jw_kint(w, "n_ctx_train", info->n_ctx_train);
        jw_kint(w, "n_embd", info->n_embd);
        jw_kuint(w, "n_params", info->n_params);
        jw_kuint(w, "size", info->weight_bytes);
        jw_obj_end(w);
    }
    jw_obj_end(w);
}

void handle_models(struct exchange *x)
{
    struct buf body = {0};
    struct jw w;
    jw_init(&w, &body);
    jw_obj(&w);
    jw_kstr(&w, "object", "list");
    jw_key(&w, "data");
    jw_arr(&w);
    for (const struct served *m = served_first(x->server); m; m = atomic_load(&m->next))
        write_model(&w, m);
    jw_arr_end(&w);
    jw_obj_end(&w);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
}

void handle_model(struct exchange *x)
{
    const struct served *m = served_or_answer(x, x->path_rest ? x->path_rest : "");
    if (!m)
        return;
    struct buf body = {0};
    struct jw w;
    jw_init(&w, &body);
    write_model(&w, m);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
}
