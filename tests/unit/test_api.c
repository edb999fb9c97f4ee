#include "unit.h"

#include <stdlib.h>
#include <string.h>

#include "api/openai.h"
#include "base/json.h"
#include "base/mem.h"

static int parse(struct chat_request *r, enum openai_endpoint endpoint, const char *body,
                 struct err *e)
{
    *r = (struct chat_request){0};
    *e = (struct err){0};
    return openai_parse(r, endpoint, body, strlen(body), e);
}

/* ---- what must be refused, and which field the answer names ---- */

struct bad {
    enum openai_endpoint endpoint;
    const char *field; /* e->param */
    const char *body;  /* one that begins with ',' is the rest of a valid request */
};

#define CHAT OPENAI_CHAT
#define TEXT OPENAI_COMPLETION
#define TOK  OPENAI_TOKENIZE

static const struct bad bad[] = {
    {CHAT, "", ""},
    {CHAT, "", "{"},
    {CHAT, "", "[]"},
    {CHAT, "", "null"},
    {CHAT, "", "{\"messages\":[]} x"},
    {CHAT, "", "{\"model\":\"a\",\"model\":\"b\"}"},
    {CHAT, "", ",\"seed\":123456789012345678901234567890"},
    {CHAT, "", ",\"temperature\":1e999"},
    {CHAT, "messages", "{}"},
    {CHAT, "messages", "{\"messages\":null}"},
    {CHAT, "messages", "{\"messages\":[]}"},
    {CHAT, "messages", "{\"messages\":\"hi\"}"},
    {CHAT, "messages[0]", "{\"messages\":[\"hi\"]}"},
    {CHAT, "messages[0].role", "{\"messages\":[{\"content\":\"x\"}]}"},
    {CHAT, "messages[0].role", "{\"messages\":[{\"role\":\"robot\",\"content\":\"x\"}]}"},
    {CHAT, "messages[0].role", "{\"messages\":[{\"role\":7,\"content\":\"x\"}]}"},
    {CHAT, "messages[0].content", "{\"messages\":[{\"role\":\"user\"}]}"},
    {CHAT, "messages[0].content", "{\"messages\":[{\"role\":\"user\",\"content\":null}]}"},
    {CHAT, "messages[0].content", "{\"messages\":[{\"role\":\"user\",\"content\":5}]}"},
    {CHAT, "messages[0].content", "{\"messages\":[{\"role\":\"assistant\",\"content\":null}]}"},
    {CHAT, "messages[1].content[0].type",
     "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"user\",\"content\":[{}]}]}"},
    {CHAT, "messages[0].content[1]",
     "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
     "{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:\"}}]}]}"},
    {CHAT, "messages[0].content[0].text",
     "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}"},
    {CHAT, "messages[0].name", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"name\":1}]}"},
    {CHAT, "messages[0].tool_calls",
     "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{}}]}]}"},
    {CHAT, "messages[0].tool_calls", "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":{}}]}"},
    {CHAT, "messages[0].tool_calls",
     "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\","
     "\"arguments\":\"[1]\"}}]}]}"},
    {CHAT, "model", ",\"model\":3"},
    {CHAT, "model", ",\"model\":\"\""},
    {CHAT, "stream", ",\"stream\":1"},
    {CHAT, "stream", ",\"stream\":\"true\""},
    {CHAT, "stream_options", ",\"stream_options\":{\"include_usage\":true}"},
    {CHAT, "stream_options", ",\"stream\":true,\"stream_options\":1"},
    {CHAT, "stream_options.include_usage",
     ",\"stream\":true,\"stream_options\":{\"include_usage\":1}"},
    {CHAT, "n", ",\"n\":0"},
    {CHAT, "n", ",\"n\":17"},
    {CHAT, "n", ",\"n\":1.5"},
    {CHAT, "n", ",\"n\":true"},
    {CHAT, "max_tokens", ",\"max_tokens\":0"},
    {CHAT, "max_tokens", ",\"max_tokens\":-1"},
    {CHAT, "max_tokens", ",\"max_tokens\":\"7\""},
    {CHAT, "max_tokens", ",\"max_tokens\":1e30"},
    {CHAT, "max_tokens", ",\"max_tokens\":9223372036854775807"},
    {CHAT, "max_completion_tokens", ",\"max_completion_tokens\":0"},
    {CHAT, "min_tokens", ",\"min_tokens\":-1"},
    {CHAT, "min_tokens", ",\"min_tokens\":9,\"max_tokens\":8"},
    {CHAT, "stop", ",\"stop\":1"},
    {CHAT, "stop", ",\"stop\":\"\""},
    {CHAT, "stop", ",\"stop\":[\"a\",2]"},
    {CHAT, "stop",
     ",\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\","
     "\"12\",\"13\",\"14\",\"15\",\"16\",\"17\"]"},
    {CHAT, "stop_token_ids", ",\"stop_token_ids\":5"},
    {CHAT, "stop_token_ids", ",\"stop_token_ids\":[-1]"},
    {CHAT, "stop_token_ids", ",\"stop_token_ids\":[4294967296]"},
    {CHAT, "include_stop_str_in_output", ",\"include_stop_str_in_output\":0"},
    {CHAT, "ignore_eos", ",\"ignore_eos\":\"no\""},
    {CHAT, "skip_special_tokens", ",\"skip_special_tokens\":1"},
    {CHAT, "temperature", ",\"temperature\":2.01"},
    {CHAT, "temperature", ",\"temperature\":-0.1"},
    {CHAT, "temperature", ",\"temperature\":\"hot\""},
    {CHAT, "temperature", ",\"temperature\":1e300"},
    {CHAT, "top_p", ",\"top_p\":0"},
    {CHAT, "top_p", ",\"top_p\":1.1"},
    {CHAT, "top_k", ",\"top_k\":-2"},
    {CHAT, "top_k", ",\"top_k\":2.5"},
    {CHAT, "min_p", ",\"min_p\":-1"},
    {CHAT, "typical_p", ",\"typical_p\":0"},
    {CHAT, "repetition_penalty", ",\"repetition_penalty\":0"},
    {CHAT, "repeat_penalty", ",\"repeat_penalty\":0"},
    {CHAT, "repeat_last_n", ",\"repeat_last_n\":-2"},
    {CHAT, "frequency_penalty", ",\"frequency_penalty\":2.5"},
    {CHAT, "presence_penalty", ",\"presence_penalty\":-2.5"},
    {CHAT, "seed", ",\"seed\":1.5"},
    {CHAT, "seed", ",\"seed\":\"1\""},
    {CHAT, "logit_bias", ",\"logit_bias\":[]"},
    {CHAT, "logit_bias", ",\"logit_bias\":{\"a\":1}"},
    {CHAT, "logit_bias", ",\"logit_bias\":{\"-1\":1}"},
    {CHAT, "logit_bias", ",\"logit_bias\":{\"1\":101}"},
    {CHAT, "logit_bias", ",\"logit_bias\":{\"1\":\"x\"}"},
    {CHAT, "logprobs", ",\"logprobs\":5"},
    {CHAT, "top_logprobs", ",\"top_logprobs\":5"},
    {CHAT, "top_logprobs", ",\"logprobs\":true,\"top_logprobs\":21"},
    {CHAT, "top_logprobs", ",\"logprobs\":false,\"top_logprobs\":1"},
    {CHAT, "priority", ",\"priority\":\"high\""},
    {CHAT, "cache_salt", ",\"cache_salt\":\"a/b\""},
    {CHAT, "cache_salt", ",\"cache_salt\":\"\""},
    {CHAT, "cache_salt", ",\"cache_salt\":1"},
    {CHAT, "user", ",\"user\":1"},
    {CHAT, "safety_identifier", ",\"safety_identifier\":{}"},
    {CHAT, "timeout", ",\"timeout\":0"},
    {CHAT, "timeout", ",\"timeout\":86401"},
    {CHAT, "tools", ",\"tools\":{}"},
    {CHAT, "tools[0].type", ",\"tools\":[{\"type\":\"code\"}]"},
    {CHAT, "tools[0].function.name", ",\"tools\":[{\"type\":\"function\",\"function\":{}}]"},
    {CHAT, "tools[0].function.name",
     ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a b\"}}]"},
    {CHAT, "tools[0].function.parameters",
     ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\",\"parameters\":[]}}]"},
    {CHAT, "tools[0].function.description",
     ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\",\"description\":1}}]"},
    {CHAT, "tools[1].function.strict",
     ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\"}},"
     "{\"type\":\"function\",\"function\":{\"name\":\"b\",\"strict\":1}}]"},
    {CHAT, "tool_choice", ",\"tool_choice\":\"required\""},
    {CHAT, "tool_choice", ",\"tool_choice\":{\"type\":\"function\"}"},
    {CHAT, "tool_choice", ",\"tool_choice\":\"yes\""},
    {CHAT, "documents", ",\"documents\":[1]"},
    {CHAT, "chat_template_kwargs", ",\"chat_template_kwargs\":[]"},
    {CHAT, "chat_template_kwargs", ",\"chat_template_kwargs\":{\"messages\":[]}"},
    {CHAT, "reasoning_effort", ",\"reasoning_effort\":\"huge\""},
    {CHAT, "add_generation_prompt", ",\"add_generation_prompt\":1"},
    {CHAT, "continue_final_message",
     ",\"add_generation_prompt\":true,\"continue_final_message\":true"},
    {CHAT, "response_format", ",\"response_format\":{\"type\":\"json_object\"}"},
    {CHAT, "response_format", ",\"response_format\":{\"type\":\"json_schema\"}"},
    {CHAT, "structured_outputs", ",\"structured_outputs\":{\"regex\":\"a\"}"},
    {CHAT, "functions", ",\"functions\":[{}]"},
    {CHAT, "function_call", ",\"function_call\":{\"name\":\"f\"}"},
    {CHAT, "modalities", ",\"modalities\":[\"text\",\"audio\"]"},
    {CHAT, "audio", ",\"audio\":{}"},
    {CHAT, "prediction", ",\"prediction\":{}"},
    {CHAT, "store", ",\"store\":true"},
    {CHAT, "service_tier", ",\"service_tier\":\"flex\""},
    {CHAT, "chat_template", ",\"chat_template\":\"x\""},
    {CHAT, "echo", ",\"echo\":true"},
    {CHAT, "use_beam_search", ",\"use_beam_search\":true"},
    {CHAT, "length_penalty", ",\"length_penalty\":0.5"},
    {CHAT, "truncate_prompt_tokens", ",\"truncate_prompt_tokens\":5"},
    {CHAT, "prompt_logprobs", ",\"prompt_logprobs\":1"},
    {CHAT, "allowed_token_ids", ",\"allowed_token_ids\":[1]"},
    {CHAT, "bad_words", ",\"bad_words\":[\"x\"]"},
    {CHAT, "mirostat", ",\"mirostat\":2"},
    {TEXT, "prompt", "{}"},
    {TEXT, "prompt", "{\"prompt\":7}"},
    {TEXT, "prompt", "{\"prompt\":[]}"},
    {TEXT, "prompt", "{\"prompt\":[\"a\",1]}"},
    {TEXT, "prompt", "{\"prompt\":[1,\"a\"]}"},
    {TEXT, "prompt", "{\"prompt\":[1,-1]}"},
    {TEXT, "prompt", "{\"prompt\":[[1],[2.5]]}"},
    {TEXT, "logprobs", "{\"prompt\":\"a\",\"logprobs\":true}"},
    {TEXT, "logprobs", "{\"prompt\":\"a\",\"logprobs\":21}"},
    {TEXT, "logprobs", "{\"prompt\":\"a\",\"logprobs\":1,\"echo\":true}"},
    {TEXT, "suffix", "{\"prompt\":\"a\",\"suffix\":\"b\"}"},
    {TEXT, "best_of", "{\"prompt\":\"a\",\"best_of\":2}"},
    {TEXT, "echo", "{\"prompt\":\"a\",\"echo\":1}"},
    {TOK, "prompt", "{}"},
    {TOK, "prompt", "{\"prompt\":\"a\",\"content\":\"b\"}"},
    {TOK, "prompt", "{\"prompt\":[\"a\",\"b\"]}"},
    {TOK, "prompt", "{\"prompt\":[1]}"},
    {TOK, "content", "{\"content\":1}"},
    {TOK, "with_pieces", "{\"content\":\"a\",\"with_pieces\":1}"},
};

static char *whole(const char *body)
{
    struct buf b = {0};
    if (body[0] == ',')
        buf_addf(&b, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]%s}", body);
    else
        buf_adds(&b, body);
    return buf_take(&b);
}

static void test_refused(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct chat_request r;
        struct err e;
        char *body = whole(bad[i].body);
        if (!parse(&r, bad[i].endpoint, body, &e))
            fail_msg("accepted: %s", body);
        if (strcmp(e.param, bad[i].field) != 0)
            fail_msg("'%s' named instead of '%s' for %s", e.param, bad[i].field, body);
        if (!e.msg[0] || (bad[i].field[0] && !strstr(e.msg, bad[i].field)))
            fail_msg("the message does not name the field: %s", e.msg);
        chat_request_release(&r);
        free(body);
    }
}

/* Every refused field has a value that asks for nothing, and null is one everywhere. */
static void each_field(void *arg, const char *name, unsigned endpoints, bool refused)
{
    (*(int *)arg)++;
    struct chat_request r;
    struct err e;
    struct buf b = {0};
    bool chat = endpoints & OPENAI_CHAT, text = endpoints & OPENAI_COMPLETION;
    buf_addf(&b, "{\"%s\":null", name);
    if (chat && strcmp(name, "messages") != 0)
        buf_adds(&b, ",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]");
    else if (!chat && strcmp(name, "prompt") != 0 && strcmp(name, "content") != 0)
        buf_adds(&b, ",\"prompt\":\"a\"");
    buf_adds(&b, "}");
    enum openai_endpoint endpoint = chat ? OPENAI_CHAT : text ? OPENAI_COMPLETION : OPENAI_TOKENIZE;
    int rc = parse(&r, endpoint, b.data, &e);
    bool required =
        !strcmp(name, "messages") || !strcmp(name, "prompt") || !strcmp(name, "content");
    if ((rc == 0) == required)
        fail_msg("%s: %s", b.data, e.msg);
    assert_int_equal(r.n_unknown, 0);
    chat_request_release(&r);
    buf_release(&b);
}

/* Another engine may serve what this one does not. */
static void test_refused_here_only(void **state)
{
    static const struct {
        const char *field, *body;
    } cases[] = {
        {"response_format", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"
                            "\"response_format\":{\"type\":\"json_object\"},\"store\":true}"},
        {"messages[0].content[0]",
         "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":"
         "{\"url\":\"data:\"}},{\"type\":\"text\",\"text\":\"a\"}]}]}"},
        {"tool_choice", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"
                        "\"tool_choice\":\"required\"}"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct chat_request r = {0};
        struct err e = {0};
        const char *body = cases[i].body;
        assert_int_equal(openai_parse_any(&r, OPENAI_CHAT, body, strlen(body), &e), 0);
        assert_int_equal(openai_served_here(&r, &e), ERR_UNSUPPORTED);
        assert_string_equal(e.param, cases[i].field);
        assert_int_equal(json_array_size(r.messages), 1);
        chat_request_release(&r);
        assert_int_equal(parse(&r, OPENAI_CHAT, body, &e), ERR_UNSUPPORTED);
        chat_request_release(&r);
        assert_int_equal(parse(&r, OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\"}]}", &e),
                         ERR_INVALID);
        chat_request_release(&r);
    }
}

static void test_null_is_default(void **state)
{
    int n = 0;
    openai_each_field(each_field, &n);
    assert_true(n > 80);
}

static void test_harmless_values(void **state)
{
    static const char *const fine[] = {
        ",\"response_format\":{\"type\":\"text\"}",
        ",\"tools\":[]",
        ",\"tool_choice\":\"auto\"",
        ",\"modalities\":[\"text\"]",
        ",\"store\":false",
        ",\"service_tier\":\"auto\"",
        ",\"length_penalty\":1.0",
        ",\"length_penalty\":1",
        ",\"use_beam_search\":false",
        ",\"logit_bias\":{}",
        ",\"stop\":[]",
        ",\"top_logprobs\":0",
        ",\"user\":\"me\",\"metadata\":{\"a\":\"b\"},\"parallel_tool_calls\":true",
    };
    for (size_t i = 0; i < ARRAY_LEN(fine); i++) {
        struct chat_request r;
        struct err e;
        char *body = whole(fine[i]);
        if (parse(&r, OPENAI_CHAT, body, &e))
            fail_msg("%s: %s", body, e.msg);
        assert_int_equal(r.n_unknown, 0);
        chat_request_release(&r);
        free(body);
    }
}

/* ---- where values go ---- */

static void test_defaults(void **state)
{
    struct chat_request r;
    struct err e;
    char *body = whole(",");
    body[strlen(body) - 2] = ' ';
    assert_int_equal(parse(&r, OPENAI_CHAT, body, &e), 0);
    assert_null(r.model);
    assert_false(r.stream);
    assert_true(r.add_generation_prompt && !r.add_special && r.gen.skip_special);
    assert_true(r.gen.temperature == 1 && r.gen.top_p == 1 && r.gen.typical_p == 1);
    assert_true(r.gen.repetition_penalty == 1 && r.gen.repeat_last_n == -1);
    assert_true(r.gen.n == 1 && r.gen.max_tokens == 0 && r.gen.n_logprobs == -1);
    assert_false(r.gen.has_seed);
    chat_request_release(&r);
    free(body);
    assert_int_equal(parse(&r, OPENAI_COMPLETION, "{\"prompt\":\"x\"}", &e), 0);
    assert_true(r.gen.max_tokens == 16 && r.add_special && r.parse_special && !r.echo);
    chat_request_release(&r);
}

static void test_every_value(void **state)
{
    struct chat_request r;
    struct err e;
    char *body = whole(
        ",\"model\":\"m\",\"stream\":true,\"stream_options\":{\"include_usage\":true,"
        "\"continuous_usage_stats\":true,\"include_obfuscation\":false},\"n\":3,\"max_tokens\":5,"
        "\"max_completion_tokens\":7,\"min_tokens\":2,\"stop\":[\"a\",\"bc\"],"
        "\"stop_token_ids\":[4,5.0],\"include_stop_str_in_output\":true,\"ignore_eos\":true,"
        "\"skip_special_tokens\":false,\"temperature\":0.5,\"top_p\":0.9,\"top_k\":40,"
        "\"min_p\":0.05,\"typical_p\":0.8,\"repetition_penalty\":1.1,\"frequency_penalty\":-1,"
        "\"presence_penalty\":2,\"seed\":-7,\"logit_bias\":{\"12\":-100,\"3\":1.5},"
        "\"logprobs\":true,\"top_logprobs\":4,\"priority\":-3,\"cache_salt\":\"tenant\","
        "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],"
        "\"documents\":[{\"title\":\"t\"}],\"chat_template_kwargs\":{\"enable_thinking\":false},"
        "\"reasoning_effort\":\"low\",\"continue_final_message\":true,\"add_special_tokens\":true,"
        "\"zork\":1,\"blorb\":{}");
    assert_int_equal(parse(&r, OPENAI_CHAT, body, &e), 0);
    const struct gen_params *g = &r.gen;
    assert_string_equal(r.model, "m");
    assert_true(r.stream && r.include_usage && r.continuous_usage);
    assert_true(g->n == 3 && g->max_tokens == 7 && g->min_tokens == 2);
    assert_true(g->n_stop == 2 && !strcmp(g->stop[1], "bc"));
    assert_true(g->n_stop_ids == 2 && g->stop_ids[1] == 5);
    assert_true(g->include_stop && g->ignore_eos && !g->skip_special);
    assert_true(g->temperature == 0.5 && g->top_p == 0.9 && g->top_k == 40 && g->min_p == 0.05);
    assert_true(g->typical_p == 0.8 && g->repetition_penalty == 1.1);
    assert_true(g->frequency_penalty == -1 && g->presence_penalty == 2);
    assert_true(g->has_seed && g->seed == -7);
    assert_int_equal(g->n_bias, 2);
    assert_true(g->n_logprobs == 4 && g->priority == -3);
    assert_string_equal(g->cache_salt, "tenant");
    assert_int_equal(json_array_size(r.tools), 1);
    assert_int_equal(json_array_size(r.documents), 1);
    assert_true(json_is_false(json_object_get(r.kwargs, "enable_thinking")));
    assert_string_equal(json_string_value(json_object_get(r.kwargs, "reasoning_effort")), "low");
    assert_true(r.continue_final && !r.add_generation_prompt && r.add_special);
    assert_int_equal(r.n_unknown, 2);
    assert_string_equal(r.unknown[0], "zork");
    chat_request_release(&r);
    free(body);
}

static void test_tool_choice_none(void **state)
{
    struct chat_request r;
    struct err e;
    char *body = whole(",\"tool_choice\":\"none\","
                       "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]");
    assert_int_equal(parse(&r, OPENAI_CHAT, body, &e), 0);
    assert_null(r.tools);
    chat_request_release(&r);
    free(body);
}

/* Messages in the form of templates: developer is system, parts are joined, arguments are values.
 */
static void test_messages(void **state)
{
    struct chat_request r;
    struct err e;
    const char *body =
        "{\"messages\":["
        "{\"role\":\"developer\",\"content\":\"be\"},"
        "{\"role\":\"user\",\"name\":\"ann\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
        "{\"type\":\"text\",\"text\":\"b\"}]},"
        "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"c1\",\"type\":"
        "\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"x\\\":1}\"}}]},"
        "{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"42\"},"
        "{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null}]}";
    const char *want =
        "[{\"role\":\"system\",\"content\":\"be\"},"
        "{\"role\":\"user\",\"content\":\"a\\nb\",\"name\":\"ann\"},"
        "{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"type\":\"function\","
        "\"function\":{\"name\":\"f\",\"arguments\":{\"x\":1}},\"id\":\"c1\"}]},"
        "{\"role\":\"tool\",\"content\":\"42\",\"tool_call_id\":\"c1\"},"
        "{\"role\":\"assistant\",\"content\":\"\"}]";
    assert_int_equal(parse(&r, OPENAI_CHAT, body, &e), 0);
    struct buf out = {0};
    struct jw w;
    jw_init(&w, &out);
    jw_tree(&w, r.messages);
    assert_string_equal(buf_str(&out), want);
    buf_release(&out);
    chat_request_release(&r);
}

static void test_prompts(void **state)
{
    static const struct {
        const char *prompt;
        size_t n;
        size_t first_ids; /* 0: text */
    } cases[] = {
        {"\"abc\"", 1, 0},     {"[\"abc\",\"\"]", 2, 0}, {"[1,2,3]", 1, 3},
        {"[[1,2],[3]]", 2, 2}, {"[\"abc\",[4]]", 2, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct chat_request r;
        struct err e;
        struct buf b = {0};
        buf_addf(&b, "{\"prompt\":%s}", cases[i].prompt);
        assert_int_equal(parse(&r, OPENAI_COMPLETION, b.data, &e), 0);
        assert_int_equal(r.n_prompts, cases[i].n);
        assert_int_equal(r.prompts[0].n_ids, cases[i].first_ids);
        if (!cases[i].first_ids)
            assert_true(str_eqs(r.prompts[0].text, "abc"));
        chat_request_release(&r);
        buf_release(&b);
    }
}

static void test_tokenize_forms(void **state)
{
    struct chat_request r;
    struct err e;
    assert_int_equal(parse(&r, OPENAI_TOKENIZE, "{\"prompt\":\"a\"}", &e), 0);
    assert_true(!r.content_form && r.add_special && r.parse_special);
    chat_request_release(&r);
    assert_int_equal(parse(&r, OPENAI_TOKENIZE, "{\"content\":\"a\"}", &e), 0);
    assert_true(r.content_form && !r.add_special);
    chat_request_release(&r);
    assert_int_equal(parse(&r, OPENAI_TOKENIZE, "{\"content\":\"a\",\"add_special\":true}", &e), 0);
    assert_true(r.content_form && r.add_special);
    chat_request_release(&r);
    assert_int_equal(
        parse(&r, OPENAI_TOKENIZE, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", &e),
        0);
    assert_true(r.messages && !r.add_special && r.add_generation_prompt);
    chat_request_release(&r);
}

/* ---- answers ---- */

#define HEAD_JSON                                                                                  \
    "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":7,\"model\":\"m\","   \
    "\"system_fingerprint\":\"fp\",\"choices\":["

static const struct openai_head chat_head = {
    .endpoint = OPENAI_CHAT, .id = "chatcmpl-1", .model = "m", .fingerprint = "fp", .created = 7};
static const struct openai_head text_head = {
    .endpoint = OPENAI_COMPLETION, .id = "cmpl-1", .model = "m", .fingerprint = "fp", .created = 7};

static void expect(struct buf *b, const char *want)
{
    assert_string_equal(buf_str(b), want);
    json_t *v = jr_parse(b->data, b->len, NULL);
    assert_non_null(v);
    json_decref(v);
    buf_clear(b);
}

/* The order and shape of the chunks of one stream, as in the sample of OpenAI's reference. */
static void test_chunks(void **state)
{
    struct buf b = {0};
    struct openai_choice c = {.index = 0, .text = STR("Hi \"you\""), .stop_id = -1};
    struct openai_usage usage = {9, 4, 2};
    openai_write_role(&b, &chat_head, 0);
    expect(&b, HEAD_JSON "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                         "\"finish_reason\":null}]}");
    openai_write_text(&b, &chat_head, &c, NULL);
    expect(&b, HEAD_JSON "{\"index\":0,\"delta\":{\"content\":\"Hi \\\"you\\\"\"},"
                         "\"finish_reason\":null}]}");
    c.finish = "stop";
    openai_write_finish(&b, &chat_head, &c, NULL);
    expect(&b, HEAD_JSON "{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}");
    openai_write_usage(&b, &chat_head, &usage);
    expect(&b, HEAD_JSON "],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,"
                         "\"total_tokens\":11,\"prompt_tokens_details\":{\"cached_tokens\":4}}}");
    struct openai_head with_usage = chat_head;
    with_usage.usage_null = true;
    c.stop_text = STR("END");
    openai_write_finish(&b, &with_usage, &c, NULL);
    expect(&b, HEAD_JSON "{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\","
                         "\"stop_reason\":\"END\"}],\"usage\":null}");
    openai_write_text(&b, &text_head, &c, &usage);
    expect(&b,
           "{\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":7,\"model\":\"m\","
           "\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":0,\"text\":\"Hi \\\"you\\\"\","
           "\"finish_reason\":null}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,"
           "\"total_tokens\":11,\"prompt_tokens_details\":{\"cached_tokens\":4}}}");
    buf_release(&b);
}

static const struct openai_token rows[] = {
    {STR("a"), -0.5f},          {STR("a"), -0.5f},     {STR("b"), -1},
    {{"\xc3", 1}, -0.25f},      {{"\xc3", 1}, -0.25f}, {STR("c"), -2},
    {STR("\xc3\xa9"), -0.125f}, {STR("x"), -3},        {STR("x"), -4},
};

static void test_chat_response(void **state)
{
    struct buf b = {0};
    struct openai_logprobs l = {.tokens = rows, .n_tokens = 2, .n_top = 2};
    struct openai_choice c = {
        .index = 1, .text = STR("a"), .logprobs = &l, .finish = "length", .stop_id = 5};
    struct openai_usage usage = {3, 0, 2};
    openai_write_response(&b, &chat_head, &c, 1, &usage);
    expect(&b,
           "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":7,\"model\":\"m\","
           "\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":1,\"message\":{\"role\":"
           "\"assistant\",\"content\":\"a\",\"refusal\":null},\"logprobs\":{\"content\":["
           "{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97],\"top_logprobs\":["
           "{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97]},"
           "{\"token\":\"b\",\"logprob\":-1,\"bytes\":[98]}]},"
           "{\"token\":\"\xef\xbf\xbd\",\"logprob\":-0.25,\"bytes\":[195],\"top_logprobs\":["
           "{\"token\":\"\xef\xbf\xbd\",\"logprob\":-0.25,\"bytes\":[195]},"
           "{\"token\":\"c\",\"logprob\":-2,\"bytes\":[99]}]}],\"refusal\":null},"
           "\"finish_reason\":\"length\",\"stop_reason\":5}],\"usage\":{\"prompt_tokens\":3,"
           "\"completion_tokens\":2,\"total_tokens\":5,\"prompt_tokens_details\":{"
           "\"cached_tokens\":0}}}");
    buf_release(&b);
}

/* The older form; offsets count characters, and a text comes once among the alternatives. */
static void test_completion_response(void **state)
{
    struct buf b = {0};
    struct openai_logprobs l = {.tokens = rows, .n_tokens = 3, .n_top = 2, .text_offset = 10};
    struct openai_choice c = {.text = STR("a"), .logprobs = &l, .finish = "stop", .stop_id = -1};
    struct openai_usage usage = {3, 0, 3};
    openai_write_response(&b, &text_head, &c, 1, &usage);
    json_t *v = jr_parse(b.data, b.len, NULL);
    const json_t *lp =
        json_object_get(json_array_get(json_object_get(v, "choices"), 0), "logprobs");
    struct buf got = {0};
    struct jw w;
    jw_init(&w, &got);
    jw_tree(&w, lp);
    assert_string_equal(buf_str(&got),
                        "{\"tokens\":[\"a\",\"\xef\xbf\xbd\",\"\xc3\xa9\"],"
                        "\"token_logprobs\":[-0.5,-0.25,-0.125],"
                        "\"top_logprobs\":[{\"a\":-0.5,\"b\":-1},{\"\xef\xbf\xbd\":-0.25,"
                        "\"c\":-2},{\"x\":-3}],\"text_offset\":[10,11,12]}");
    json_decref(v);
    buf_release(&got);
    buf_release(&b);
}

static void test_errors(void **state)
{
    struct buf b = {0};
    struct err e = {0};
    err_param(&e, ERR_INVALID, "top_p", "'top_p' is \"odd\"");
    openai_write_error(&b, 400, NULL, &e);
    expect(&b, "{\"error\":{\"message\":\"'top_p' is \\\"odd\\\"\",\"type\":"
               "\"invalid_request_error\",\"param\":\"top_p\",\"code\":null}}");
    err_set(&e, ERR_BUSY, "full");
    openai_write_error(&b, 429, "queue_full", &e);
    expect(&b, "{\"error\":{\"message\":\"full\",\"type\":\"rate_limit_error\",\"param\":null,"
               "\"code\":\"queue_full\"}}");
    static const struct {
        int code, status;
    } map[] = {{ERR_INVALID, 400}, {ERR_UNSUPPORTED, 400}, {ERR_NOTFOUND, 404}, {ERR_BUSY, 503},
               {ERR_TIMEOUT, 504}, {ERR_IO, 500},          {-99, 500}};
    for (size_t i = 0; i < ARRAY_LEN(map); i++)
        assert_int_equal(openai_status(map[i].code), map[i].status);
    buf_release(&b);
}

/* As Ollama reads it: seconds, or a duration of Go. */
static void test_keep_alive(void **state)
{
    static const struct {
        const char *json;
        int64_t ms; /* -2: refused */
    } cases[] = {
        {"0", 0},
        {"300", 300000},
        {"1.5", 1500},
        {"-1", KEEP_FOREVER},
        {"-0.5", KEEP_FOREVER},
        {"1e300", KEEP_FOREVER},
        {"\"5m\"", 300000},
        {"\"1h30m\"", 5400000},
        {"\"1.5h\"", 5400000},
        {"\"250ms\"", 250},
        {"\"1m1s1ms\"", 61001},
        {"\"24h\"", 86400000},
        {"\"0\"", 0},
        {"\"-0\"", 0},
        {"\"300\"", 300000},
        {"\"-1m\"", KEEP_FOREVER},
        {"\"-1\"", KEEP_FOREVER},
        {"\"forever\"", KEEP_FOREVER},
        {"\"\"", -2},
        {"\"-\"", -2},
        {"\"--1\"", -2},
        {"\"5x\"", -2},
        {"\"m\"", -2},
        {"\"1h30\"", -2},
        {"\"5 m\"", -2},
        {"\"1..5m\"", -2},
        {"true", -2},
        {"[]", -2},
        {"null", -2},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct keep_alive k = {0};
        json_t *v = json_loads(cases[i].json, JSON_DECODE_ANY, NULL);
        bool read = keep_alive_parse(v, &k);
        if (read != (cases[i].ms != -2) || (read && k.ms != cases[i].ms))
            fail_msg("%s: %d, %lld ms", cases[i].json, read, (long long)k.ms);
        json_decref(v);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keep_alive),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_refused_here_only),
        cmocka_unit_test(test_null_is_default),
        cmocka_unit_test(test_harmless_values),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_value),
        cmocka_unit_test(test_tool_choice_none),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_tokenize_forms),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_chat_response),
        cmocka_unit_test(test_completion_response),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
