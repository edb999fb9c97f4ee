/* What a three-tier configuration does with each kind of request. The expected routes were written
 * down by hand from the configuration before the code ran. */
#include "unit.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/yaml_tree.h"
#include "gateway/route.h"

static const char config[] =
    "tiers:\n"
    "  - name: small\n"
    "    models: [phi3:mini, smollm2:135m]\n"
    "    fallback: mid\n"
    "    concurrency: 8\n"
    "    targets: {ttft: 300ms, token: 80ms}\n"
    "    cost: {prompt: 0.1, completion: 0.2}\n"
    "    check: {min_chars: 3}\n"
    "  - name: mid\n"
    "    models: [llama3.1:8b]\n"
    "    adapter: support@prod\n"
    "    fallback: [own, small]\n"
    "    shed_to: small\n"
    "    timeout: 20s\n"
    "    cost: {prompt: 1, completion: 3}\n"
    "  - name: own\n"
    "    models: llama3.1:8b\n"
    "    adapter: support@prod\n"
    "    personal: true\n"
    "    fallback: [mid]\n"
    "    backends: [local, gpu]\n"
    "default_tier: small\n"
    "aliases: {gpt-4o-mini: small, support: mid, raw: 'model:mistral:7b', eight: 'llama3.1:8b'}\n"
    "backends: [{name: gpu}]\n"
    "routes:\n"
    "  - {name: banned words, when: {regex: '(?i)\\bacme\\s+corp\\b'}, tier: own}\n"
    "  - {name: old name, when: {model: 'gpt-3.5*'}, tier: small}\n"
    "  - {name: tools, when: {tools: true, messages: {min: 1}}, tier: mid}\n"
    "  - {name: schema, when: {schema: true}, tier: mid, model: 'llama3.1:8b'}\n"
    "  - {name: vip, when: {user: ['vip-*', boss], stream: true}, tier: own}\n"
    "  - {name: admins, when: {role: admin}, tier: own}\n"
    "  - {name: night, when: {hours: '22:00-06:00', days: [sat, sun]}, tier: mid}\n"
    "  - {name: long, when: {prompt_tokens: {min: 2000}}, tier: mid}\n"
    "  - {name: code, when: {keywords: [function, 'stack trace', C++], prompt_tokens: {max: 1999}},"
    "     tier: mid}\n"
    "  - {name: german, when: {language: [de, ja], load: {max: 0.8}}, tier: mid}\n"
    "  - {name: cheap, when: {cost: {tier: mid, min: 5}}, tier: small}\n"
    "  - {name: batch, when: {tenant: 'batch*', max_tokens: {min: 512}}, tier: small}\n"
    "  - {name: key, when: {key: trial-?}, tier: small}\n";

static const struct {
    const char *note;
    struct route_facts facts;
    const char *down;    /* tiers that do not serve, "tier! " if by overload */
    const char *allowed; /* pattern of the key's tiers, NULL: all */
    const char *want;    /* "tier=model ..." in order, or "denied" */
    const char *reason;  /* part of it */
} cases[] = {
#define SMALL_CHAIN "small=phi3:mini mid=llama3.1:8b own=llama3.1:8b"
#define MID_CHAIN   "mid=llama3.1:8b own=llama3.1:8b small=phi3:mini"
#define OWN_CHAIN   "own=llama3.1:8b mid=llama3.1:8b small=phi3:mini"
    /* names */
    {"nothing", {0}, .want = SMALL_CHAIN, .reason = "default tier"},
    {"auto", {.model = "auto"}, .want = SMALL_CHAIN, .reason = "default tier"},
    {"empty", {.model = ""}, .want = SMALL_CHAIN, .reason = "default tier"},
    {"tier", {.model = "mid"}, .want = MID_CHAIN, .reason = "names the tier"},
    {"tier 3", {.model = "own"}, .want = OWN_CHAIN, .reason = "names the tier"},
    {"alias of a tier",
     {.model = "gpt-4o-mini"},
     .want = SMALL_CHAIN,
     .reason = "alias gpt-4o-mini"},
    {"alias of tier 2", {.model = "support"}, .want = MID_CHAIN, .reason = "alias support"},
    {"alias of a model", {.model = "raw"}, .want = "-=mistral:7b", .reason = "alias raw"},
    {"alias of a tier's model", {.model = "eight"}, .want = MID_CHAIN, .reason = "alias eight"},
    {"model of a tier", {.model = "phi3:mini"}, .want = SMALL_CHAIN, .reason = "names the model"},
    {"second model",
     {.model = "smollm2:135m"},
     .want = "small=smollm2:135m mid=llama3.1:8b own=llama3.1:8b",
     .reason = "names the model"},
    {"model of two tiers",
     {.model = "llama3.1:8b"},
     .want = MID_CHAIN,
     .reason = "names the model"},
    {"model of no tier",
     {.model = "mistral:7b"},
     .want = "-=mistral:7b",
     .reason = "names the model"},
    {"case counts", {.model = "MID"}, .want = "-=MID"},
    {"rule for a name", {.model = "gpt-3.5-turbo"}, .want = SMALL_CHAIN, .reason = "rule old name"},
    {"rules leave names alone", {.model = "mid", .role = "admin"}, .want = MID_CHAIN},
    /* regex */
    {"regex",
     {.text = STR("what does ACME  Corp sell?")},
     .want = OWN_CHAIN,
     .reason = "rule banned words"},
    {"regex, word edge", {.text = STR("acme corporation")}, .want = SMALL_CHAIN},
    {"first rule wins",
     {.text = STR("acme corp"), .tools = true},
     .want = OWN_CHAIN,
     .reason = "banned"},
    /* tools, schema */
    {"tools", {.tools = true, .n_messages = 1}, .want = MID_CHAIN, .reason = "rule tools"},
    {"tools without messages", {.tools = true}, .want = SMALL_CHAIN},
    {"schema", {.schema = true}, .want = MID_CHAIN, .reason = "rule schema"},
    {"tools before schema",
     {.schema = true, .tools = true, .n_messages = 3},
     .want = MID_CHAIN,
     .reason = "rule tools"},
    /* users, roles, keys, tenants */
    {"vip", {.user = "vip-7", .stream = true}, .want = OWN_CHAIN, .reason = "rule vip"},
    {"boss", {.user = "boss", .stream = true}, .want = OWN_CHAIN, .reason = "rule vip"},
    {"vip without stream", {.user = "vip-7"}, .want = SMALL_CHAIN},
    {"bosses are not boss", {.user = "bosses", .stream = true}, .want = SMALL_CHAIN},
    {"admin", {.role = "admin"}, .want = OWN_CHAIN, .reason = "rule admins"},
    {"user role", {.role = "user"}, .want = SMALL_CHAIN},
    {"trial key", {.key = "trial-1"}, .want = SMALL_CHAIN, .reason = "rule key"},
    {"trial key of two digits", {.key = "trial-12"}, .want = SMALL_CHAIN, .reason = "default tier"},
    {"batch tenant",
     {.tenant = "batch-eu", .max_tokens = 512},
     .want = SMALL_CHAIN,
     .reason = "rule batch"},
    {"batch tenant, short",
     {.tenant = "batch-eu", .max_tokens = 511},
     .want = SMALL_CHAIN,
     .reason = "default tier"},
    {"other tenant",
     {.tenant = "live", .max_tokens = 512},
     .want = SMALL_CHAIN,
     .reason = "default"},
    /* time */
    {"night", {.weekday = 6, .minute_of_day = 23 * 60}, .want = MID_CHAIN, .reason = "rule night"},
    {"after midnight",
     {.weekday = 0, .minute_of_day = 359},
     .want = MID_CHAIN,
     .reason = "rule night"},
    {"six", {.weekday = 0, .minute_of_day = 360}, .want = SMALL_CHAIN},
    {"night of a workday", {.weekday = 2, .minute_of_day = 23 * 60}, .want = SMALL_CHAIN},
    {"ten at night",
     {.weekday = 6, .minute_of_day = 22 * 60},
     .want = MID_CHAIN,
     .reason = "rule night"},
    {"before ten", {.weekday = 6, .minute_of_day = 22 * 60 - 1}, .want = SMALL_CHAIN},
    /* length */
    {"long", {.weekday = 1, .prompt_tokens = 2000}, .want = MID_CHAIN, .reason = "rule long"},
    {"not long", {.weekday = 1, .prompt_tokens = 1999}, .want = SMALL_CHAIN},
    {"long code",
     {.weekday = 1, .prompt_tokens = 5000, .text = STR("function")},
     .want = MID_CHAIN,
     .reason = "rule long"},
    /* words */
    {"keyword",
     {.weekday = 1, .text = STR("Write a Function that sorts")},
     .want = MID_CHAIN,
     .reason = "rule code"},
    {"phrase",
     {.weekday = 1, .text = STR("here is the stack trace:")},
     .want = MID_CHAIN,
     .reason = "rule code"},
    {"sign",
     {.weekday = 1, .text = STR("in C++, please")},
     .want = MID_CHAIN,
     .reason = "rule code"},
    {"part of a word", {.weekday = 1, .text = STR("dysfunctional functions")}, .want = SMALL_CHAIN},
    {"half a phrase", {.weekday = 1, .text = STR("stack of trace")}, .want = SMALL_CHAIN},
    /* language and load */
    {"german",
     {.weekday = 1, .text = STR("Wie wird das Wetter und was ist der Grund?")},
     .want = MID_CHAIN,
     .reason = "rule german"},
    {"japanese",
     {.weekday = 1, .text = STR("東京の天気はどうですか")},
     .want = MID_CHAIN,
     .reason = "rule german"},
    {"german under load",
     {.weekday = 1, .load = 0.9, .text = STR("Wie ist das und warum ist der so?")},
     .want = SMALL_CHAIN},
    {"english",
     {.weekday = 1, .text = STR("what is the weather and how does it work?")},
     .want = SMALL_CHAIN},
    {"chinese", {.weekday = 1, .text = STR("今天天气怎么样")}, .want = SMALL_CHAIN},
    /* cost of mid: (1000 x 1 + 2000 x 3) / 1000 = 7 */
    {"cost",
     {.weekday = 1, .prompt_tokens = 1000, .max_tokens = 2000, .user = "x"},
     .want = SMALL_CHAIN,
     .reason = "rule cheap"},
    {"cost below",
     {.weekday = 1, .prompt_tokens = 1000, .max_tokens = 1000},
     .want = SMALL_CHAIN,
     .reason = "default tier"},
    /* what is down */
    {"small down",
     {0},
     "small",
     NULL,
     "mid=llama3.1:8b own=llama3.1:8b small=phi3:mini",
     "small is down"},
    {"mid down",
     {.model = "mid"},
     "mid",
     NULL,
     "own=llama3.1:8b small=phi3:mini mid=llama3.1:8b",
     "mid is down"},
#define ALL_DOWN "small mid own"
    {"all down", {0}, ALL_DOWN, NULL, SMALL_CHAIN, "own is down"},
    {"mid and own down",
     {.model = "mid"},
     "mid own",
     NULL,
     "small=phi3:mini mid=llama3.1:8b own=llama3.1:8b",
     "mid is down; own is down"},
    {"model of no tier, all down", {.model = "mistral:7b"}, ALL_DOWN, NULL, "-=mistral:7b", ""},
    /* overload */
    {"overload without permission",
     {.model = "mid"},
     "mid!",
     NULL,
     "own=llama3.1:8b small=phi3:mini mid=llama3.1:8b",
     "mid is full"},
    {"overload at the default",
     {.may_shed = true},
     "small!",
     NULL,
     "mid=llama3.1:8b own=llama3.1:8b small=phi3:mini",
     "small is full"},
    /* keys */
    {"key for small", {0}, "", "small", "small=phi3:mini", "default tier"},
    {"key for small asks mid", {.model = "mid"}, "", "small", "denied", ""},
    {"key for small asks mid's model", {.model = "llama3.1:8b"}, "", "small", "denied", ""},
    {"key for small, rule says mid",
     {.tools = true, .n_messages = 1},
     "",
     "small",
     "small=phi3:mini",
     "rule tools"},
    {"key for own, rule says own", {.role = "admin"}, "", "o*", "own=llama3.1:8b", "rule admins"},
    {"key for nothing", {0}, "", "none", "denied", ""},
    {"brackets are no pattern", {.model = "own"}, "", "*[!x]", "denied", ""},
};

static bool serves(void *arg, const struct tier *t, bool *overloaded, const char **why)
{
    char name[64];
    const char *down = arg;
    for (int n; sscanf(down, "%63s%n", name, &n) == 1; down += n) {
        size_t len = strlen(name);
        *overloaded = name[len - 1] == '!';
        if (*overloaded)
            name[len - 1] = 0;
        *why = *overloaded ? "is full" : "is down";
        if (strcmp(name, t->name) == 0)
            return false;
    }
    return true;
}

static struct routing *read_config(const char *text, struct err *e)
{
    struct routing *r = NULL;
    struct yaml_tree *tree = yaml_tree_parse(text, strlen(text), "t.yaml", e);
    int rc = tree ? routing_new(&r, yaml_tree_root(tree), e) : 0;
    if (rc)
        yaml_tree_locate(tree, rc, e);
    yaml_tree_free(tree);
    return r;
}

static void describe(const struct route_decision *d, char *out, size_t room)
{
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; i < d->n_steps; i++)
        n += (size_t)snprintf(out + n, room - n, "%s%s=%s", i ? " " : "",
                              d->steps[i].tier ? d->steps[i].tier->name : "-",
                              d->steps[i].model ? d->steps[i].model : "");
}

static void test_table(void **state)
{
    struct err e = {0};
    struct routing *r = read_config(config, &e);
    assert_string_equal(e.msg, "");
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct route_facts f = cases[i].facts;
        char *pattern = (char *)cases[i].allowed;
        struct names allowed = {&pattern, 1};
        f.allowed = pattern ? &allowed : NULL;
        if (!f.text.p)
            f.text = STR("");
        if (f.weekday == 0 && f.minute_of_day == 0)
            f.minute_of_day = 12 * 60;
        struct route_view view = {(void *)(cases[i].down ? cases[i].down : ""), serves};
        struct route_decision d;
        char got[512];
        if (route_decide(r, &f, &view, &d, &e))
            snprintf(got, sizeof got, "%s", e.code == ERR_DENIED ? "denied" : e.msg);
        else
            describe(&d, got, sizeof got);
        if (strcmp(got, cases[i].want) != 0)
            fail_msg("%s: %s (%s)", cases[i].note, got, d.reason);
        if (cases[i].reason && strcmp(got, "denied") != 0 && !strstr(d.reason, cases[i].reason))
            fail_msg("%s: reason: %s", cases[i].note, d.reason);
    }
    routing_free(r);
}

static void test_shedding(void **state)
{
    struct err e = {0};
    struct routing *r = read_config("tiers:\n"
                                    "  - {name: small, models: a}\n"
                                    "  - {name: big, models: b, shed_to: small}\n",
                                    &e);
    struct route_facts f = {.model = "big", .text = STR("")};
    struct route_view view = {(char *)"big!", serves};
    struct route_decision d;
    char got[256];
    assert_int_equal(route_decide(r, &f, &view, &d, &e), 0);
    describe(&d, got, sizeof got);
    assert_string_equal(got, "big=b"); /* who may not be shed waits */
    f.may_shed = true;
    assert_int_equal(route_decide(r, &f, &view, &d, &e), 0);
    describe(&d, got, sizeof got);
    assert_string_equal(got, "small=a big=b");
    assert_non_null(strstr(d.reason, "small takes what is shed"));
    view.arg = (char *)"big"; /* down is not overloaded */
    assert_int_equal(route_decide(r, &f, &view, &d, &e), 0);
    describe(&d, got, sizeof got);
    assert_string_equal(got, "big=b");
    routing_free(r);
}

static void test_without_tiers(void **state)
{
    struct err e = {0};
    struct routing *r = read_config("port: 1", &e);
    struct route_facts f = {.model = "x", .text = STR("")};
    struct route_decision d;
    assert_int_equal(route_decide(r, &f, NULL, &d, &e), 0);
    assert_null(d.steps[0].tier);
    assert_string_equal(d.steps[0].model, "x");
    f.model = NULL;
    assert_int_equal(route_decide(r, &f, NULL, &d, &e), 0);
    assert_null(d.steps[0].model);
    routing_free(r);
}

static void test_wrong_configurations(void **state)
{
    static const struct {
        const char *yaml, *says;
    } wrong[] = {
        {"tiers: 5", "t.yaml:1:1: tiers must be a list"},
        {"tiers: [{models: a}]", "tiers[0] needs a name"},
        {"tiers: [{name: a}]", "tiers[0] needs a name and models"},
        {"tiers: [{name: auto, models: a}]", "'auto' is no name"},
        {"tiers: [{name: a, models: a}, {name: a, models: b}]", "two tiers named 'a'"},
        {"tiers: [{name: a, models: a, fallback: b}]",
         "t.yaml:1:30: tiers[0].fallback[0]: there is no tier 'b'; there are a"},
        {"tiers: [{name: a, models: a, shed_to: b}, {name: c, models: a}]",
         "t.yaml:1:30: tiers[0].shed_to: there is no tier 'b'; there are a, c"},
        {"tiers: [{name: a, models: a, backends: gpu}]",
         "t.yaml:1:30: tiers[0].backends[0]: there is no backend 'gpu'; there are local"},
        {"backends: [{name: x}, {name: y}]\ntiers:\n- {name: a, models: a}\n"
         "- {name: b, models: a, backends: [y, local,\n    Y]}",
         "t.yaml:5:5: tiers[1].backends[2]: there is no backend 'Y'; there are local, x, y"},
        {"backends: [{name: x, models: [a, {name: b, as: c}]}, {name: y, models: [d]}]\n"
         "tiers: [{name: t, models: [b, c], backends: [x, y]}]",
         "t.yaml:2:31: tiers[0].models[1]: no backend of the tier has the model 'c'; they have a, "
         "b, d"},
        {"tiers: [{name: a, models: a, targets: {ttft: soon}}]",
         "tiers[0].targets.ttft must be a dur"},
        {"tiers: [{name: a, models: a, targets: {ttff: 1s}}]",
         "unknown key 'ttff'; there are ttft"},
        {"tiers: [{name: a, models: a, concurrency: -1}]", "tiers[0].concurrency must be a number"},
        {"tiers: [{name: a, models: a, check: {regex: '('}}]",
         "t.yaml:1:38: tiers[0].check.regex: the pattern"},
        {"tiers: [{name: a, models: [1]}]", "t.yaml:1:28: tiers[0].models[0] must be a text"},
        {"tiers: [{name: a, models: a, speed: 1}]", "unknown key 'speed'"},
        {"routes: [{tier: a}]",
         "t.yaml:1:11: routes[0].tier: there is no tier 'a'; there are none"},
        {"routes: [{tier: 1}]", "routes[0].tier must be the name of a tier"},
        {"tiers: [{name: a, models: a}]\nroutes: [{when: {}}]", "routes[0] needs a tier"},
        {"tiers: [{name: a, models: a}]\nroutes: [{tier: a, when: {colour: red}}]",
         "t.yaml:2:27: routes[0].when has the unknown key 'colour'"},
        {"tiers: [{name: a, models: a}]\nroutes: [{tier: a, when: {hours: '9-17'}}]",
         "routes[0].when.hours must be like"},
        {"tiers: [{name: a, models: a}]\nroutes: [{tier: a, when: {days: [monday]}}]",
         "routes[0].when.days must be of sun"},
        {"tiers: [{name: a, models: a}]\nroutes: [{tier: a, when: {load: {min: 2, max: 1}}}]",
         "min is above max"},
        {"tiers: [{name: a, models: a}]\nroutes: [{tier: a, when: {regex: '[a'}}]",
         "routes[0].when.regex: the pattern is wrong at character"},
        {"tiers: [{name: a, models: a}]\nroutes: [{tier: a, when: {cost: {max: 1}}}]",
         "needs the tier whose cost"},
        {"tiers: [{name: a, models: a}]\naliases: {x: 5}", "t.yaml:2:11: aliases.x must be"},
        {"tiers: [{name: a, models: a}]\nroutes: [{tier: a, when: {cost: {tier: b, max: 1}}}]",
         "t.yaml:2:34: routes[0].when.cost.tier: there is no tier 'b'; there are a"},
        {"tiers: [{name: a, models: a}]\naliases: {x: 'model:'}", "t.yaml:2:11: aliases.x must be"},
        {"tiers: [{name: a, models: a}]\ndefault_tier: b",
         "t.yaml:2:1: default_tier: there is no tier 'b'; there are a"},
    };
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        struct err e = {0};
        assert_null(read_config(wrong[i].yaml, &e));
        if (!strstr(e.msg, wrong[i].says))
            fail_msg("%s: %s", wrong[i].yaml, e.msg);
    }
}

static void test_languages(void **state)
{
    static const struct {
        const char *text, *language;
    } texts[] = {
        {"Please explain how the engine works and why it is fast.", "en"},
        {"Bitte erkläre mir, wie der Motor funktioniert und warum er schnell ist.", "de"},
        {"Explique-moi comment fonctionne le moteur et pourquoi il est rapide.", "fr"},
        {"Explícame cómo funciona el motor y por qué es rápido.", "es"},
        {"Spiegami come funziona il motore e perché è veloce.", "it"},
        {"Explique como o motor funciona e por que ele é rápido, por favor, para você.", "pt"},
        {"Leg uit hoe de motor werkt en waarom het snel is.", "nl"},
        {"Объясни, как работает двигатель", "ru"},
        {"引擎是如何工作的", "zh"},
        {"エンジンの仕組みを説明してください", "ja"},
        {"엔진이 어떻게 작동하는지 설명해 주세요", "ko"},
        {"اشرح كيف يعمل المحرك", "ar"},
        {"12345 + 678", ""},
        {"", ""},
    };
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        if (strcmp(route_language(str_of(texts[i].text)), texts[i].language) != 0)
            fail_msg("%s: %s", texts[i].text, route_language(str_of(texts[i].text)));
    assert_string_equal(route_language((struct str){"\xff\xfe\x80", 3}), "");
}

static void test_checks(void **state)
{
    struct err e = {0};
    struct routing *r = read_config(
        "tiers: [{name: a, models: a, check: {min_chars: 2, json: true, regex: '^[{]'}}]", &e);
    const struct output_check *c = &routing_tier(r, 0)->check;
    const char *why = "";
    assert_true(route_check(c, STR("{\"a\": 1}"), &why));
    assert_false(route_check(c, STR("{"), &why));
    assert_string_equal(why, "the answer is too short");
    assert_false(route_check(c, STR("[1]"), &why));
    assert_string_equal(why, "the answer does not match");
    assert_false(route_check(c, STR("{x}"), &why));
    assert_string_equal(why, "the answer is not JSON");
    routing_free(r);
}

/* A pattern that takes exponential time on this text ends at its limit. */
static void test_hostile_pattern(void **state)
{
    struct err e = {0};
    struct routing *r = read_config("tiers: [{name: a, models: a}, {name: b, models: b}]\n"
                                    "routes: [{tier: b, when: {regex: '^(a+)+$'}}]",
                                    &e);
    char text[40000];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = '!';
    struct route_facts f = {.text = {text, sizeof text}};
    struct route_decision d;
    assert_int_equal(route_decide(r, &f, NULL, &d, &e), 0);
    assert_string_equal(d.steps[0].tier->name, "a");
    routing_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),           cmocka_unit_test(test_shedding),
        cmocka_unit_test(test_without_tiers),   cmocka_unit_test(test_wrong_configurations),
        cmocka_unit_test(test_languages),       cmocka_unit_test(test_checks),
        cmocka_unit_test(test_hostile_pattern),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
