/* job.h - one generation: a parsed request, its prompts, its choices and the answer they become. */
#pragma once

#include "base/waiter.h"
#include "gateway/answer_whole.h"
#include "gateway/response_cache.h"
#include "model/model.h"
#include "server/adapters.h"
#include "server/service.h"

/* What a stage of the way into the engine (generate.c) says. */
enum job_step {
    JOB_GO,     /* the next stage, please */
    JOB_WAIT,   /* job->waiter is on somebody's list; once woken, the same stage runs again */
    JOB_FAILED, /* job->status, code and err say how to answer */
    JOB_TAKEN,  /* somebody else answers from now on; the stages are over */
};

struct choice {
    struct engine_user user;
    struct job *job;
    int index;
    int prompt;                  /* of job->prompts */
    uint64_t id;                 /* the engine's */
    bool running;                /* submitted, final event not seen */
    bool over;                   /* the client has, or does not need, the final event */
    bool role_sent;              /* stream: the first chunk went out */
    struct tool_parse tools;     /* the request has tools: finds calls in the answer */
    size_t n_calls;              /* of them that were sent, or are about to be */
    struct buf text;             /* not streaming: the answer so far */
    struct openai_token *tokens; /* logprobs asked, not streaming: rows so far */
    size_t n_tokens, cap_tokens; /* rows */
    size_t n_generated;
    size_t text_offset; /* characters sent so far (streamed completion logprobs) */
    enum finish_reason finish;
    char *stop_text;
    int32_t stop_id;
    struct engine_usage usage;
    int64_t last_ns; /* of the latest token, 0: none yet */
};

struct job {
    struct job *next, **link; /* server->jobs */
    struct server *server;
    struct exchange *x; /* NULL: answered, or the client has gone */
    struct served *model;
    enum openai_endpoint endpoint;
    struct chat_request req;
    struct token_list *prompts;
    int n_prompts;
    struct choice *choices;
    int n_choices;
    int n_running; /* in the engine; 1: a backend makes the answer */
    int n_open;    /* of which the client has not had the end */
    struct openai_head head;
    char id[48];
    struct job_route *route;
    bool proxied;               /* backends answer, not this process */
    struct proxy *proxy;        /* that asks them, NULL: not now */
    char backend[72];           /* that answers, "": this process */
    const char *type;           /* of its answer, once that has begun for the client; else NULL */
    struct answer_whole whole;  /* what has gone by of its answer */
    struct openai_usage remote; /* tokens of a backend's answer; a prompt of 0 is not known */
    struct bill *bill;          /* of the request, NULL: it has none */
    int64_t retry_ms;           /* failed with 429: when to come again, 0: not known */
    int stage;             /* the one that runs or waits; all are over at the end of the table */
    bool large;            /* the body is: heavy stages run on a pool thread */
    bool preparing;        /* on a pool thread, which owns req, prompts and the failure below */
    enum job_step outcome; /* of what ran there */
    struct waiter waiter;
    const char *named; /* what the request calls its model, if that is an adapter; else NULL */
    const char *named_adapter;   /* which one that is, for a pick */
    struct push_adapter *pushed; /* that backends are to load for it, NULL: none */
    struct adapter_lease lease;  /* holds the adapters */
    struct adapter_use adapters[MODEL_MAX_ADAPTERS];
    int n_adapters;
    struct job_cache {
        struct response_reader reader; /* of the answer, if it comes through the cache */
        struct response_terms terms;
        struct response_key bytes;   /* of the request as it came */
        struct response_key body;    /* of a request for backends, without its form */
        bool hashed;                 /* `bytes` is set: the answer may be kept as bytes too, */
        uint64_t generation;         /* if nothing has changed since */
        bool asked;                  /* it may share its answer: reader and terms are set */
        bool repeats;                /* the answer is made, or was, for another request */
        const char *said;            /* for the header x-terrace-cache, NULL: nothing */
        struct http_timer *deadline; /* of who follows another's run, NULL: none */
    } cache;
    bool begun;      /* stream: status and headers went out */
    bool blocked;    /* the client is slow */
    bool restarting; /* its choices end, then another tier takes it */
    bool failed;     /* answered with an error: what still comes is dropped */
    int64_t start_ns;
    const char *tenant, *salt; /* terms.h */
    int64_t deadline_ms;       /* 0: none */

    /* why a stage failed */
    int status; /* 0: fine, else the HTTP status */
    const char *code;
    struct err err;

    char *body; /* copy of a large body: the request's own goes when the client does */
    size_t n_body;
};

/* generate.c */
enum job_step job_refuse(struct job *j, int status, const char *code); /* JOB_FAILED; err is set */
struct str
job_body(const struct job *j);     /* as the client sent it; until the prompt stage is over */
void job_keep_body(struct job *j); /* until the job is over, whether the client is there or not */
void job_make_id(enum openai_endpoint endpoint, char *id, size_t room); /* of an answer */
void job_fail(struct job *j, int status, const char *code, const struct err *e);
void job_fill_request(const struct choice *c, struct engine_request *out, struct logit_bias *bias);
struct logit_bias *job_biases(struct job *j); /* room for what job_fill_request fills in */
void job_rerun(struct job *j);                /* again from the cache stage on */
/* Once no choice runs any more, the stages begin again with the route. Nothing was sent yet. */
void job_restart(struct job *j);
void job_stop(struct job *j);            /* every choice that still runs */
void job_hold(struct job *j, bool hold); /* the same: pause, or go on */
void job_settled(struct job *j);         /* a choice is over: goes on with a restart that waits */
void job_put(struct job *j);             /* frees it if nobody needs it any more */
void job_tick(struct job *j);            /* about once a second */
void job_closed(struct job *j);          /* its exchange is over */

/* adapter_pick.c: stages */
enum job_step job_find_adapter(struct job *j); /* a model that is an adapter's name */
/* The first adapter that the request chooses and no pattern of the list allows, or NULL. */
const char *job_forbidden_adapter(const struct job *j, const char *patterns);
enum job_step job_push_adapter(struct job *j); /* the one that backends are to load */
enum job_step job_take_adapters(struct job *j);
enum job_step job_get_adapters(struct job *j); /* waits until they are there */

/* admit.c: the stages that look at the key, and the bill when the job is over */
enum job_step job_permit(struct job *j);
enum job_step job_admit(struct job *j);
void job_bill(struct job *j);
struct openai_usage job_spent(const struct job *j); /* for the books; estimated if need be */
const char *job_tenant(const struct job *j);        /* of its key, "" without keys; any thread */

/* stream.c: events to the client */
struct openai_usage job_usage(const struct job *j); /* so far */
bool job_finds_calls(const struct job *j);
void job_event(struct engine_user *choice, const struct engine_event *ev);
void job_deliver(struct choice *c, const struct engine_event *ev); /* an event to the client */
void job_begin_stream(struct job *j);
void job_drain(struct http_req *r); /* http_req.on_drain */

/* answer_cache.c: answers that were given before, or are being given to somebody else */
bool cache_asks(const struct job *j);                                 /* as far as the body says */
void cache_hash_tenant(struct response_hash *h, const struct job *j); /* who may share answers */
enum job_step cache_stage(struct job *j);
void cache_explain(struct job *j); /* adds the header x-terrace-cache */
bool cache_answers(struct exchange *x, enum openai_endpoint endpoint, struct job_cache *out);
void cache_take(struct job *j, int choice, const struct engine_event *ev);
void cache_pause(struct job *j, bool paused); /* the client is slow, or no longer */
void cache_leave(struct job *j);              /* the client has the answer, or has left */
void cache_failed(struct job *j);             /* the job's own run is over without an answer */
void cache_release(struct job *j);

/* remote_answer.c: the answer of a backend, from the proxy to all who want it. First begin; then
 * text and end; or refuse. Or fail, at any time. n_running is 0 from end, refuse or
 * fail on, and after them the job may be gone. */
#define REMOTE_EVENTS "text/event-stream"
#define REMOTE_JSON   "application/json"
enum job_step remote_hash_body(struct job *j); /* stage: for the key in the response cache */
struct response_key remote_key(struct job *j); /* all of it */
void remote_begin(struct job *j, const char *type, const char *backend);
void remote_text(struct job *j, struct str text); /* whole events, or all of the JSON */
void remote_end(struct job *j, const struct engine_usage *u);
void remote_refuse(struct job *j, int status, struct str json, const struct engine_usage *u);
void remote_fail(struct job *j, int status, const char *code, const struct err *e);
void remote_deliver(struct job *j, const struct engine_event *ev); /* to the job's client */
