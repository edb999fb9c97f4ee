/* request.h - what a client asked for, whatever dialect it spoke.
 *
 * A parser of one dialect fills a struct chat_request from the body; the server turns it into
 * prompts and engine requests and never looks at the JSON again. Every value has been checked for
 * type and range, so what remains is what only the model can tell (length, token ids, context).
 *
 * Pointers live in the request's arena or in its JSON trees: both as long as the request. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/keep_alive.h"
#include "base/arena.h"
#include "base/err.h"
#include "base/str.h"

enum {
    API_MAX_CHOICES = 16, /* n */
    API_MAX_PROMPTS = 64, /* prompts in one completion request */
    API_MAX_STOPS = 16,
    API_MAX_STOP_BYTES = 1024,
    API_MAX_STOP_IDS = 64,
    API_MAX_BIAS = 1024,
    API_MAX_MESSAGES = 16384,
    API_MAX_LOGPROBS = 20,
    API_MAX_TOOLS = 128,
    API_MAX_FUNCTION_NAME = 128,
    API_MAX_USER_BYTES = 512,
    API_MAX_DOCUMENTS = 1024,
    API_MAX_TEMPLATE_VARIABLES = 64,
    API_MAX_ADAPTERS = 4, /* of one request */
    API_MAX_SCALE = 100,  /* of an adapter, either sign */
    API_MAX_TIMEOUT_S = 86400,
    API_MAX_UNKNOWN = 8, /* names of unknown fields that are kept for the log */
};

struct gen_bias {
    int32_t id;
    float bias;
};

/* How to generate. A parser sets every member, from the body or from the table's default, unless
 * the request only asks for tokens. */
struct gen_params {
    double temperature;        /* 0 .. 2, 0 is greedy */
    double top_p;              /* (0, 1], 1: off */
    double min_p;              /* 0 .. 1, 0: off */
    double typical_p;          /* (0, 1], 1: off */
    double repetition_penalty; /* (0, 10], 1: off */
    double frequency_penalty;  /* -2 .. 2 */
    double presence_penalty;   /* -2 .. 2 */
    int64_t top_k;             /* 0: off */
    int64_t repeat_last_n;     /* -1: the whole text */
    bool has_seed;
    int64_t seed;
    int64_t max_tokens; /* 0: what the context leaves */
    int64_t min_tokens;
    int64_t n;          /* choices for each prompt */
    int64_t n_logprobs; /* -1: none; else alternatives beside the chosen token */
    int64_t priority;   /* lower runs earlier */
    bool ignore_eos;
    bool speculate; /* guess tokens that repeat earlier text and verify several at once */
    bool include_stop;
    bool skip_special; /* control tokens stay out of the text */
    const char **stop;
    size_t n_stop;
    int32_t *stop_ids;
    size_t n_stop_ids;
    struct gen_bias *bias;
    size_t n_bias;
    const char *cache_salt; /* NULL: none */
};

/* Text or token ids. */
struct gen_prompt {
    struct str text;
    const int32_t *ids; /* NULL: text */
    size_t n_ids;
};

/* An adapter that a request wants, and how much of it. */
struct adapter_choice {
    const char *name; /* or alias; NULL: by id */
    int64_t id;       /* as /lora-adapters lists it */
    double scale;     /* not 0 in a request */
};

/* `cache`: what the client wants of answers that were given before, under LiteLLM's names. */
struct cache_wish {
    bool opt_in;       /* keep and reuse the answer although it is drawn at random */
    bool no_cache;     /* a fresh answer, please */
    bool no_store;     /* do not keep this one */
    double ttl_s;      /* keep it so long, 0: as long as others */
    double max_age_s;  /* none older than this, 0: any */
    const char *space; /* `namespace`: apart from other answers, NULL: among them */
};

struct chat_request {
    struct arena arena;
    json_t *root; /* the body */

    const char *model; /* NULL: the default model */
    struct gen_params gen;
    const char *persona; /* whose messages come before these, NULL: none */
    struct adapter_choice adapters[API_MAX_ADAPTERS];
    size_t n_adapters;
    bool picks_adapters;     /* the fields above are to be obeyed, also when there are none: */
    const char *adapters_of; /* NULL: the client said so; else its persona has them, on this model,
                                and the body does not name them */
    const char *user;        /* whom the client asks for, NULL: did not say */
    double timeout_s;        /* 0: none */
    struct keep_alive keep_alive;
    struct cache_wish cache;
    bool stream;
    bool include_usage;    /* a usage chunk at the end of the stream */
    bool continuous_usage; /* usage in every chunk */

    /* chat: owned references, in the form that chat templates expect (content is a string,
     * arguments of tool calls are objects) */
    json_t *messages;    /* NULL: this is a completion of raw prompts */
    json_t *tools;       /* NULL: none, and then no calls are looked for in the answer */
    bool parallel_calls; /* the answer may hold more than one call */
    json_t *documents;   /* NULL: none */
    json_t *kwargs;      /* more template variables, NULL: none */
    bool add_generation_prompt;
    bool continue_final; /* the last message is the beginning of the answer */

    /* completion */
    struct gen_prompt *prompts;
    size_t n_prompts;
    bool echo; /* the prompt comes before the answer */

    bool add_special;       /* BOS and EOS as the tokenizer asks */
    bool parse_special;     /* control tokens are recognised in raw prompts */
    bool return_token_strs; /* tokenize only: the vocabulary's spelling too */
    bool with_pieces;       /* tokenize only: the bytes of each token */
    bool content_form;      /* tokenize only: llama-server's form (`content`), not vLLM's */

    struct err refused; /* the first thing asked for that this process does not do, though another
                           engine may; code 0: none. Messages hold what could be read. */
    const char *unknown[API_MAX_UNKNOWN]; /* names of fields that nobody knows, as sent */
    size_t n_unknown;                     /* all of them, may be more than the array holds */
};

void chat_request_release(struct chat_request *r); /* accepts {0} */
