/* adapter_peft.c - adapters as the peft package saves them: adapter_config.json and the names in
 * adapter_model.safetensors. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "model/adapter_private.h"

enum { MAX_PATTERN_BYTES = 4096, MATCH_LIMIT = 100000, MAX_PATTERNS = 4096 };

struct config {
    const json_t *json;
    int rank;
    double alpha;
    bool rank_stabilised;
};

/* Settings that would change the numbers in ways that are not computed. All of them are off when
 * absent, null, false or empty. */
static const struct {
    const char *key, *meaning;
} refused[] = {
    {"use_dora", "weight-decomposed adapters (DoRA) are not supported"},
    {"lora_bias", "adapters with biases are not supported"},
    {"fan_in_fan_out", "transposed weights are not supported"},
    {"modules_to_save", "modules saved whole are not supported: train without them, or merge them"},
    {"trainable_token_indices", "trained embeddings are not supported"},
    {"layer_replication", "replicated layers are not supported"},
    {"target_parameters", "adapters on bare parameters are not supported"},
    {"use_qalora", "QALoRA is not supported"},
    {"use_bdlora", "block-diagonal LoRA is not supported"},
    {"arrow_config", "routing between adapters (Arrow) is not supported"},
    {"kasa_config", "KaSA is not supported"},
    {"monteclora_config", "MonteCLoRA is not supported"},
};

static bool is_off(const json_t *v)
{
    return !v || json_is_null(v) || json_is_false(v) ||
           (json_is_string(v) && !json_string_length(v)) ||
           (json_is_array(v) && !json_array_size(v)) || (json_is_object(v) && !json_object_size(v));
}

/* Some initialisations take from the base what they put into the adapter (PiSSA, OLoRA, LoftQ ...):
 * such an adapter is wrong on the plain base. */
static int check_initialisation(const json_t *v, struct err *e)
{
    static const char *const harmless[] = {"gaussian", "eva", "orthogonal"};
    if (!v || json_is_null(v) || json_is_boolean(v))
        return 0;
    for (size_t i = 0; json_is_string(v) && i < ARRAY_LEN(harmless); i++)
        if (!strcmp(json_string_value(v), harmless[i]))
            return 0;
    const char *name = json_is_string(v) ? json_string_value(v) : "of this form";
    return err_set(e, ERR_UNSUPPORTED,
                   "init_lora_weights %.32s changes the base model's weights: convert the adapter "
                   "to a plain LoRA when saving it (path_initial_model_for_weight_conversion)",
                   name);
}

static int check_kind(const json_t *c, struct err *e)
{
    const json_t *type = json_object_get(c, "peft_type"), *bias = json_object_get(c, "bias");
    if (!json_is_string(type))
        return err_set(e, ERR_FORMAT, "peft_type is missing");
    if (strcmp(json_string_value(type), "LORA"))
        return err_set(e, ERR_UNSUPPORTED, "peft_type %.32s is not supported (LORA is)",
                       json_string_value(type));
    if (!is_off(bias) && !(json_is_string(bias) && !strcmp(json_string_value(bias), "none")))
        return err_set(e, ERR_UNSUPPORTED, "bias: adapters with biases are not supported");
    for (size_t i = 0; i < ARRAY_LEN(refused); i++)
        if (!is_off(json_object_get(c, refused[i].key)))
            return err_set(e, ERR_UNSUPPORTED, "%s: %s", refused[i].key, refused[i].meaning);
    return check_initialisation(json_object_get(c, "init_lora_weights"), e);
}

static int check_patterns(const json_t *c, const char *key, struct err *e)
{
    const json_t *v = json_object_get(c, key);
    if (is_off(v))
        return 0;
    if (!json_is_object(v) || json_object_size(v) > MAX_PATTERNS)
        return err_set(e, ERR_FORMAT, "%s must be an object of at most %d entries", key,
                       MAX_PATTERNS);
    const char *name;
    json_t *number;
    json_object_foreach((json_t *)v, name, number) if (!json_is_number(number)) return err_set(
        e, ERR_FORMAT, "%s: the value of %.64s is no number", key, name);
    return 0;
}

static int read_config(struct config *out, const json_t *c, struct err *e)
{
    if (!json_is_object(c))
        return err_set(e, ERR_FORMAT, "it is no JSON object");
    int rc = check_kind(c, e);
    if (!rc)
        rc = check_patterns(c, "rank_pattern", e);
    if (!rc)
        rc = check_patterns(c, "alpha_pattern", e);
    if (rc)
        return rc;
    const json_t *rank = json_object_get(c, "r"), *alpha = json_object_get(c, "lora_alpha");
    if (!json_is_integer(rank) || json_integer_value(rank) < 1 ||
        json_integer_value(rank) > ADAPTER_MAX_RANK)
        return err_set(e, ERR_FORMAT, "r must be a rank from 1 to %d", ADAPTER_MAX_RANK);
    if (!json_is_number(alpha))
        return err_set(e, ERR_FORMAT, "lora_alpha must be a number");
    *out = (struct config){c, (int)json_integer_value(rank), json_number_value(alpha),
                           json_is_true(json_object_get(c, "use_rslora"))};
    return 0;
}

/* --- patterns -----------------------------------------------------------------------------------
 * Regular expressions of the config, as Python's re reads them, against the path of a module. */

/* 1 for a match of the whole text, 0 for none, or an error. */
static int match_regex(const char *pattern, struct str text, struct err *e)
{
    int code;
    size_t at;
    if (strlen(pattern) > MAX_PATTERN_BYTES)
        return err_set(e, ERR_LIMIT, "a pattern has more than %d bytes", MAX_PATTERN_BYTES);
    pcre2_code *re =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                      PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_UTF, &code, &at, NULL);
    if (!re)
        return err_set(e, ERR_FORMAT, "the pattern \"%.64s\" is malformed at byte %zu", pattern,
                       at);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    int found = PCRE2_ERROR_NOMEMORY;
    if (data && context) {
        pcre2_set_match_limit(context, MATCH_LIMIT);
        pcre2_set_depth_limit(context, MATCH_LIMIT);
        found = pcre2_match(re, (PCRE2_SPTR)text.p, text.n, 0, 0, data, context);
    }
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
    pcre2_code_free(re);
    if (found >= 0)
        return 1;
    if (found == PCRE2_ERROR_NOMATCH)
        return 0;
    return err_set(e, ERR_LIMIT, "the pattern \"%.64s\" takes too long to match", pattern);
}

/* The value of the first key of an object of patterns that matches the path or its end. */
static int look_up(const json_t *patterns, struct str path, double *value, struct err *e)
{
    const char *key;
    json_t *v;
    if (is_off(patterns))
        return 0;
    json_object_foreach((json_t *)patterns, key, v)
    {
        struct buf b = {0};
        buf_addf(&b, "(.*\\.)?(%s)", key);
        int found = match_regex(b.data, path, e);
        buf_release(&b);
        if (found < 0)
            return found;
        if (found) {
            *value = json_number_value(v);
            return 0;
        }
    }
    return 0;
}

static bool ends_with_name(struct str path, const char *name)
{
    size_t n = strlen(name);
    return path.n >= n && !memcmp(path.p + path.n - n, name, n) &&
           (path.n == n || path.p[path.n - n - 1] == '.');
}

/* Whether the config has the module changed at all: peft leaves out what it does not name. */
static int is_target(const json_t *targets, struct str path, struct err *e)
{
    if (json_is_string(targets))
        return !strcmp(json_string_value(targets), "all-linear")
                   ? 1
                   : match_regex(json_string_value(targets), path, e);
    size_t i;
    json_t *v;
    json_array_foreach((json_t *)targets, i,
                       v) if (json_is_string(v) &&
                              ends_with_name(path, json_string_value(v))) return 1;
    return 0;
}

/* --- tensors ------------------------------------------------------------------------------------
 */

static bool strip(struct str *s, const char *head)
{
    size_t n = strlen(head);
    if (!str_starts(*s, head))
        return false;
    *s = (struct str){s->p + n, s->n - n};
    return true;
}

static bool strip_end(struct str *s, const char *tail)
{
    size_t n = strlen(tail);
    if (s->n < n || memcmp(s->p + s->n - n, tail, n))
        return false;
    s->n -= n;
    return true;
}

struct peft_name {
    struct str path; /* "model.layers.7.self_attn.q_proj" */
    int layer;
    unsigned outputs;
    bool is_b;
};

static int parse_name(struct peft_name *out, const struct model *m, struct str name, struct err *e)
{
    struct str s = name;
    strip(&s, "base_model.model.");
    bool is_a = strip_end(&s, ".lora_A.weight") || strip_end(&s, ".lora_A.default.weight");
    out->is_b =
        !is_a && (strip_end(&s, ".lora_B.weight") || strip_end(&s, ".lora_B.default.weight"));
    if (!is_a && !out->is_b)
        return err_set(e, ERR_UNSUPPORTED, "it is neither lora_A nor lora_B of a linear layer");
    out->path = s;
    strip(&s, "model.");
    uint64_t layer;
    const char *dot = strip(&s, "layers.") ? memchr(s.p, '.', s.n) : NULL;
    if (!dot || !str_to_u64((struct str){s.p, (size_t)(dot - s.p)}, &layer))
        return err_set(e, ERR_UNSUPPORTED, "\"%.*s\" is no weight that an adapter can change here",
                       (int)out->path.n, out->path.p);
    if (layer >= (uint64_t)m->hp.n_layers)
        return err_set(e, ERR_FORMAT, "this model has %d layers", m->hp.n_layers);
    out->layer = (int)layer;
    struct str module = {dot + 1, (size_t)(s.p + s.n - dot - 1)};
    out->outputs = adapter_peft_outputs(module);
    if (!out->outputs)
        return err_set(e, ERR_UNSUPPORTED, "\"%.*s\" is no weight that an adapter can change here",
                       (int)module.n, module.p);
    return 0;
}

/* Rank as the config has it, against the tensor's, and the scale. */
static int scale_part(struct adapter_part *part, const struct config *c, struct str path,
                      struct err *e)
{
    double rank = c->rank, alpha = c->alpha;
    int rc = look_up(json_object_get(c->json, "rank_pattern"), path, &rank, e);
    if (!rc)
        rc = look_up(json_object_get(c->json, "alpha_pattern"), path, &alpha, e);
    if (rc)
        return rc;
    if (rank != part->rank)
        return err_set(e, ERR_FORMAT, "rank %d, but the config says %g", part->rank, rank);
    double scale = c->rank_stabilised ? alpha / sqrt(rank) : alpha / rank;
    if (!(fabs(scale) <= 1e6))
        return err_set(e, ERR_FORMAT, "a lora_alpha of %g is out of range", alpha);
    part->scale = (float)scale;
    return 0;
}

static int add_tensor(struct adapter_parts *p, const struct config *c, const struct safetensor *t,
                      struct err *e)
{
    struct peft_name name = {0};
    int rc = parse_name(&name, p->model, t->name, e);
    if (!rc) {
        rc = is_target(json_object_get(c->json, "target_modules"), name.path, e);
        rc = rc > 0    ? 0
             : rc == 0 ? err_set(e, ERR_FORMAT, "the config's target_modules do not name it")
                       : rc;
    }
    if (rc)
        return err_prefix(e, rc, "tensor %.*s", (int)t->name.n, t->name.p);
    rc = adapter_add(p, name.layer, name.outputs, name.is_b,
                     (struct adapter_matrix){.safetensor = t}, t->name, e);
    if (rc)
        return rc;
    struct adapter_part *part = &p->parts[name.layer * LORA_OUTPUTS + __builtin_ctz(name.outputs)];
    part->permute = p->model->arch->rope == ROPE_NORM;
    rc = name.is_b ? scale_part(part, c, name.path, e) : 0;
    return rc ? err_prefix(e, rc, "tensor %.*s", (int)t->name.n, t->name.p) : 0;
}

/* The tokens that activate the adapter, if there are any. */
static int read_invocation(struct adapter_info *info, const json_t *v, int n_vocab, struct err *e)
{
    if (is_off(v))
        return 0;
    size_t n = json_array_size(v);
    if (n < 1 || n > ADAPTER_MAX_INVOCATION)
        return err_set(e, ERR_LIMIT, "alora_invocation_tokens must be a list of 1 to %d token ids",
                       ADAPTER_MAX_INVOCATION);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(v, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= n_vocab)
            return err_set(e, ERR_FORMAT, "alora_invocation_tokens: this model has ids 0 to %d",
                           n_vocab - 1);
        info->invocation[i] = (int32_t)json_integer_value(id);
    }
    info->n_invocation = (int)n;
    return 0;
}

/* 0 and *tree, for json_decref, which *out refers to. */
static int parse_config(struct config *out, json_t **tree, const void *config, size_t config_bytes,
                        struct adapter_info *info, struct err *e)
{
    struct err why = {0};
    *tree = jr_parse(config, config_bytes, &why);
    if (!*tree)
        return err_set(e, ERR_FORMAT, "adapter_config.json: %s", why.msg);
    int rc = read_config(out, *tree, e);
    if (rc)
        return err_prefix(e, rc, "adapter_config.json");
    const char *base = json_string_value(json_object_get(*tree, "base_model_name_or_path"));
    snprintf(info->base_model, sizeof info->base_model, "%s", base ? base : "");
    info->format = "peft";
    return 0;
}

int adapter_read_peft_config(const void *config, size_t config_bytes, struct adapter_info *info,
                             struct err *e)
{
    struct config c = {0};
    json_t *tree;
    int rc = parse_config(&c, &tree, config, config_bytes, info, e);
    info->max_rank = c.rank;
    if (!rc && !is_off(json_object_get(tree, "alora_invocation_tokens")))
        rc = err_set(e, ERR_UNSUPPORTED,
                     "adapter_config.json: alora_invocation_tokens: backends would apply an "
                     "activated adapter to the whole prompt");
    json_decref(tree);
    return rc;
}

int adapter_read_peft(struct adapter_parts *p, const struct safetensors *s, const void *config,
                      size_t config_bytes, struct adapter_info *info, struct err *e)
{
    struct config c = {0};
    json_t *tree;
    int rc = parse_config(&c, &tree, config, config_bytes, info, e);
    const json_t *invocation = json_object_get(tree, "alora_invocation_tokens");
    if (!rc && read_invocation(info, invocation, p->model->hp.n_vocab, e))
        rc = err_prefix(e, ERR_FORMAT, "adapter_config.json");
    for (size_t i = 0; i < safetensors_count(s) && !rc; i++)
        rc = add_tensor(p, &c, safetensors_at(s, i), e);
    json_decref(tree);
    return rc;
}
