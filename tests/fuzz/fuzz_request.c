/* The OpenAI request parser over arbitrary bytes: the first one picks the endpoint. What is
 * accepted is within its ranges; what is refused has a message. */
#include <stdlib.h>

#include "api/openai.h"
#include "api/persona.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check(const struct chat_request *r, bool generates)
{
    const struct gen_params *g = &r->gen;
    if (generates &&
        (!(g->temperature >= 0 && g->temperature <= 2) || !(g->top_p > 0 && g->top_p <= 1) ||
         g->n_stop > API_MAX_STOPS || g->n_bias > API_MAX_BIAS || r->n_prompts > API_MAX_PROMPTS))
        abort();
    for (size_t i = 0; i < g->n_stop; i++)
        if (!g->stop[i][0])
            abort();
    for (size_t i = 0; i < json_array_size(r->messages); i++)
        if (!json_is_string(json_object_get(json_array_get(r->messages, i), "content")))
            abort();
}

static void parse_persona(const char *body, size_t n)
{
    struct persona_spec s = {0};
    struct err e = {0};
    int rc = persona_parse(&s, body, n, &e);
    if (rc != e.code || (rc && !e.msg[0]))
        abort();
    if (!rc && (!persona_name_ok(str_of(s.name)) || !json_array_size(s.messages)))
        abort();
    persona_spec_release(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const enum openai_endpoint endpoints[] = {OPENAI_CHAT, OPENAI_COMPLETION,
                                                     OPENAI_TOKENIZE};
    if (!n)
        return 0;
    if (data[0] == '3') {
        parse_persona((const char *)data + 1, n - 1);
        return 0;
    }
    struct chat_request r = {0};
    struct err e = {0};
    enum openai_endpoint endpoint = endpoints[data[0] % 3];
    int rc = openai_parse(&r, endpoint, (const char *)data + 1, n - 1, &e);
    if (rc != e.code || (rc && !e.msg[0]))
        abort();
    if (!rc)
        check(&r, endpoint != OPENAI_TOKENIZE);
    chat_request_release(&r);
    return 0;
}
