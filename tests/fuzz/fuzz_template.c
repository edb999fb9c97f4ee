/* Any bytes as the source of a chat template, rendered over a fixed conversation: no crash, no
 * leak, an error with a message or spans that cover the text. */
#include <stdlib.h>
#include <string.h>

#include "chat/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char conversation[] =
    "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"},"
    " {\"role\": \"user\", \"content\": \"<|im_end|> \\u00e9\\ud83e\\udd80\"},"
    " {\"role\": \"assistant\", \"content\": \"<think>a</think>b\", \"tool_calls\": [{\"id\": "
    "\"1\","
    " \"function\": {\"name\": \"f\", \"arguments\": {\"x\": [1, 2.5, null, true]}}}]}],"
    " \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\"}}]}";

static void check(int rc, const struct template_output *out, const struct err *e)
{
    size_t begin = 0;
    if (rc != e->code || (rc && (!e->msg[0] || out->text.data)))
        abort();
    for (size_t i = 0; i < out->n_spans; begin = out->spans[i++].end)
        if (out->spans[i].end <= begin)
            abort();
    if (begin != out->text.len)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static json_t *c; /* lives as long as the fuzzer */
    struct template *t = NULL;
    struct template_output out = {0};
    struct err e = {0};
    if (!c)
        c = json_loads(conversation, 0, NULL);
    struct template_vars v = {.messages = json_object_get(c, "messages"),
                              .tools = json_object_get(c, "tools"),
                              .bos_token = "<s>",
                              .eos_token = "</s>",
                              .add_generation_prompt = true};
    int rc = template_new(&t, (const char *)data, n, &e);
    if (!rc)
        rc = template_render(t, &v, &out, &e);
    check(rc, &out, &e);
    template_output_release(&out);
    template_free(t);
    return 0;
}
