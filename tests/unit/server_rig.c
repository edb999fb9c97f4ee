#define _GNU_SOURCE /* strcasestr */
#include "server_rig.h"

#include <arpa/inet.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/yaml_tree.h"
#include "gguf_build.h"

/* ---- the model ---- */

static void rule(int32_t last, float *logits)
{
    for (int i = 0; i < RIG_VOCAB; i++)
        logits[i] = -(float)(i % 7);
    int32_t next = RIG_A;
    if (last == RIG_BYTE0 + '!')
        logits[0] = NAN;
    else if (last == RIG_BYTE0 + '#')
        next = RIG_BYTE0 + '!';
    else if (last == RIG_A + 25)
        next = 2;
    else if (last >= RIG_A)
        next = last + 1;
    logits[next] = 20;
}

static void recite(struct rig_script *s, const struct batch_seq *q, float *logits)
{
    int last = q->pos + q->n_tokens - 1;
    if (q->pos != s->next)
        s->base = last;
    s->next = last + 1;
    int at = last - s->base;
    unsigned char c = at < (int)strlen(s->text) ? (unsigned char)s->text[at] : 0;
    for (int i = 0; i < RIG_VOCAB; i++)
        logits[i] = 0;
    logits[!c ? 2 : c >= 'a' && c <= 'z' ? RIG_A + c - 'a' : RIG_BYTE0 + c] = 20;
}

static void forward(void *ctx, const struct batch_seq *seqs, int n_seqs, float *logits)
{
    struct rig *r = ctx;
    for (int i = 0; r->script.text && i < n_seqs; i++)
        if (seqs[i].n_logits) {
            recite(&r->script, &seqs[i], logits);
            logits += RIG_VOCAB;
        }
    if (r->script.text)
        return;
    for (int i = 0; i < n_seqs; i++)
        for (int k = seqs[i].n_tokens - seqs[i].n_logits; k < seqs[i].n_tokens; k++) {
            rule(seqs[i].tokens[k], logits);
            logits += RIG_VOCAB;
        }
}

static void gated_forward(void *ctx, const struct batch_seq *seqs, int n_seqs, float *logits)
{
    struct rig_gate *g = ctx;
    struct rig none = {0};
    pthread_mutex_lock(&g->lock);
    while (g->closed)
        pthread_cond_wait(&g->opened, &g->lock);
    pthread_mutex_unlock(&g->lock);
    forward(&none, seqs, n_seqs, logits);
}

void rig_gate_set(struct rig_gate *g, bool closed)
{
    pthread_mutex_lock(&g->lock);
    g->closed = closed;
    pthread_cond_broadcast(&g->opened);
    pthread_mutex_unlock(&g->lock);
}

static void copy_block(void *ctx, int32_t to, int32_t from, int n_tokens)
{
}

/* The rule needs no KV; a block that comes back must be one that went out. */
static void read_block(void *ctx, int32_t block, void *out)
{
    memset(out, 0x5a, RIG_BLOCK_BYTES);
}

static void write_block(void *ctx, int32_t block, const void *in)
{
    char want[RIG_BLOCK_BYTES];
    read_block(ctx, block, want);
    assert_memory_equal(in, want, sizeof want);
}

static struct tokenizer *make_tokenizer(void)
{
    static char text[256][8];
    struct str pieces[RIG_VOCAB] = {STR("<unk>"), STR("<s>"), STR("</s>"), STR("<|im_start|>"),
                                    STR("<|im_end|>")};
    int32_t types[RIG_VOCAB] = {2, 3, 3, 3, 3}; /* unknown, control ... */
    float scores[RIG_VOCAB] = {0};
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz";
    for (int i = 0; i < 256; i++) {
        snprintf(text[i], sizeof text[i], "<0x%02X>", i);
        pieces[RIG_BYTE0 + i] = str_of(text[i]);
        types[RIG_BYTE0 + i] = 6; /* byte */
    }
    for (int i = 0; i < 26; i++) {
        pieces[RIG_A + i] = (struct str){letters + i, 1};
        types[RIG_A + i] = 1; /* normal */
    }
    struct gguf_build b = {0};
    struct err e = {0};
    struct tokenizer *t = NULL;
    gguf_build_str(&b, "general.architecture", "llama");
    gguf_build_str(&b, "tokenizer.ggml.model", "llama");
    gguf_build_strs(&b, "tokenizer.ggml.tokens", pieces, RIG_VOCAB);
    gguf_build_words(&b, "tokenizer.ggml.scores", GGUF_F32, scores, RIG_VOCAB);
    gguf_build_words(&b, "tokenizer.ggml.token_type", GGUF_I32, types, RIG_VOCAB);
    gguf_build_u32(&b, "tokenizer.ggml.unknown_token_id", 0);
    gguf_build_u32(&b, "tokenizer.ggml.bos_token_id", 1);
    gguf_build_u32(&b, "tokenizer.ggml.eos_token_id", 2);
    gguf_build_bool(&b, "tokenizer.ggml.add_space_prefix", false);
    struct gguf *g = gguf_build_open(&b, &e);
    if (!g || tokenizer_new(&t, g, &e))
        fail_msg("%s", e.msg);
    gguf_close(g);
    gguf_build_release(&b);
    return t;
}

static const char chat_template[] =
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no such role here') }}"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/* ---- the service ---- */

static void *serve(void *arg)
{
    server_run(arg);
    return NULL;
}

void rig_model_new(struct rig *r, const struct rig_opts *o, struct server_model *out)
{
    struct err e = {0};
    struct tokenizer *tokenizer = make_tokenizer();
    struct template *template = NULL;
    const char *source = o->chat_template ? o->chat_template : chat_template;
    if (template_new(&template, source, strlen(source), &e))
        fail_msg("%s", e.msg);
    struct engine_opts eo = {
        .model = {.ctx = o->gate ? (void *)o->gate : r,
                  .n_vocab = RIG_VOCAB,
                  .max_batch_tokens = 4096,
                  .n_blocks = 64 + 4 * r->n_ctx / KV_BLOCK_TOKENS,
                  .n_ctx = r->n_ctx,
                  .forward = o->gate ? gated_forward : forward,
                  .copy_block = copy_block,
                  .block_bytes = RIG_BLOCK_BYTES,
                  .read_block = read_block,
                  .write_block = write_block},
        .tokenizer = tokenizer,
        .max_queue = o->max_queue,
        .prefix_cache = true,
        .spec_tokens = 1, /* one event a token, whatever repeats */
        .max_pinned_blocks = o->max_pinned_blocks,
        .manual = o->manual,
        .sink = server_sink,
        .sink_arg = r->server,
    };
    *out = (struct server_model){.name = "alphabet",
                                 .tokenizer = tokenizer,
                                 .chat_template = template,
                                 .n_ctx = r->n_ctx,
                                 .weights = o->weights,
                                 .kv_key = "rig"};
    if (engine_new(&out->engine, &eo, &e))
        fail_msg("%s", e.msg);
}

void rig_model_free(struct server_model *m)
{
    template_free((struct template *)m->chat_template);
    tokenizer_free((struct tokenizer *)m->tokenizer);
}

void rig_open(struct rig *r, const struct rig_opts *o)
{
    struct err e = {0};
    *r = (struct rig){.script = {.text = o->script, .next = -1},
                      .stopped = o->not_running,
                      .n_ctx = o->n_ctx ? o->n_ctx : 2048};
    struct server_opts so = {.http = http_server_defaults(),
                             .version = "1.2.3",
                             .drain_ms = o->drain_ms,
                             .spill_bytes = o->spill_bytes,
                             .state_dir = o->state_dir,
                             .db = o->db,
                             .adapters = o->adapters,
                             .loader = o->loader,
                             .models = o->models,
                             .n_models = o->n_models,
                             .budget = o->budget,
                             .keep_alive_ms = o->keep_alive_ms,
                             .room_ms = o->room_ms,
                             .response_cache_bytes = o->response_cache};
    if (server_new(&r->server, &so, &e))
        fail_msg("%s", e.msg);
    if (o->config) {
        struct yaml_tree *config = yaml_tree_parse(o->config, strlen(o->config), "rig.yaml", &e);
        if (!config || server_configure(r->server, config, &e))
            fail_msg("%s", e.msg);
        yaml_tree_free(config);
    }
    r->port = server_port(r->server);
    rig_model_new(r, o, &r->model);
    r->engine = r->model.engine;
    if (!o->unattached)
        rig_attach(r);
    if (!o->not_running)
        assert_int_equal(pthread_create(&r->thread, NULL, serve, r->server), 0);
}

void rig_attach(struct rig *r)
{
    server_attach(r->server, &r->model);
}

void rig_stop(struct rig *r)
{
    if (r->stopped)
        return;
    r->stopped = true;
    server_stop(r->server);
    pthread_join(r->thread, NULL);
}

void rig_close(struct rig *r)
{
    rig_stop(r);
    engine_free(r->engine);
    server_free(r->server);
    rig_model_free(&r->model);
}

struct engine_stats rig_stats(struct rig *r)
{
    struct engine_stats s;
    engine_get_stats(r->engine, &s);
    return s;
}

void rig_wait_running(struct rig *r, int running_and_waiting)
{
    int64_t until = clock_ms() + 60000;
    for (struct engine_stats s = rig_stats(r); s.running + s.waiting != running_and_waiting;
         s = rig_stats(r)) {
        assert_true(clock_ms() < until);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}

/* ---- the client ---- */

int client_open(const struct rig *r)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)r->port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct timeval patience = {60, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&a, sizeof a)) {
        close(fd);
        return -1;
    }
    return fd;
}

static void send_all(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);
        if (sent <= 0)
            return; /* answered before the body was read: the reader will see it */
        p += sent;
        n -= (size_t)sent;
    }
}

void client_send(int fd, const char *method, const char *path, const char *headers,
                 const char *body, size_t n)
{
    struct buf b = {0};
    buf_addf(&b, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%sContent-Length: %zu\r\n\r\n",
             method, path, headers, n);
    if (n)
        buf_add(&b, body, n);
    send_all(fd, b.data, b.len);
    buf_release(&b);
}

/* Takes the chunk framing away; false if the last chunk is missing. */
static bool unchunk(struct buf *b)
{
    struct buf out = {0};
    const char *p = buf_str(b), *end = p + b->len;
    bool last = false;
    while (p < end) {
        char *rest;
        size_t n = strtoul(p, &rest, 16);
        last = n == 0;
        if (last || rest + 2 + n + 2 > end)
            break;
        buf_add(&out, rest + 2, n);
        p = rest + 2 + n + 2;
    }
    buf_release(b);
    *b = out;
    return last;
}

void client_read(int fd, struct response *out)
{
    struct buf all = {0};
    *out = (struct response){0};
    for (ssize_t n; (n = recv(fd, buf_reserve(&all, 65536), 65536, 0)) > 0;) {
        all.len += (size_t)n;
        all.data[all.len] = 0;
    }
    close(fd);
    char *blank = all.len ? strstr(all.data, "\r\n\r\n") : NULL;
    if (blank) {
        buf_add(&out->head, all.data, (size_t)(blank - all.data) + 2);
        buf_add(&out->body, blank + 4, all.len - (size_t)(blank + 4 - all.data));
        out->status = atoi(all.data + strlen("HTTP/1.1 "));
        char *length = strcasestr(out->head.data, "content-length: ");
        if (strcasestr(out->head.data, "transfer-encoding: chunked"))
            out->complete = unchunk(&out->body);
        else
            out->complete = length && strtoul(length + 16, NULL, 10) == out->body.len;
    }
    buf_release(&all);
}

void response_release(struct response *r)
{
    buf_release(&r->head);
    buf_release(&r->body);
}

void request(const struct rig *r, const char *method, const char *path, const char *body,
             struct response *out)
{
    int fd = client_open(r);
    assert_true(fd >= 0);
    client_send(fd, method, path, "", body, body ? strlen(body) : 0);
    client_read(fd, out);
}

/* Replaces the run of `set` after each occurrence of `key`. */
static void mask_after(struct buf *b, const char *key, const char *set)
{
    struct buf out = {0};
    const char *p = buf_str(b);
    for (const char *hit; (hit = strstr(p, key)); p = hit + strlen(key)) {
        buf_add(&out, p, (size_t)(hit - p) + strlen(key));
        buf_addc(&out, '*');
        hit += strspn(hit + strlen(key), set);
    }
    buf_adds(&out, p);
    buf_release(b);
    *b = out;
}

void mask(struct buf *body)
{
    mask_after(body, "cmpl-", "0123456789abcdef");
    mask_after(body, "\"call_", "0123456789abcdefghijklmnopqrstuvwxyz");
    mask_after(body, "\"created\":", "0123456789");
    mask_after(body, "\"fp_", "0123456789abcdef");
}
