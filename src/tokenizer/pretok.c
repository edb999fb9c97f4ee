#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer/pretok.h"

#include <pcre2.h>
#include <stdlib.h>

#include "base/mem.h"

/* The patterns are those of each family's tokenizer.json, with two changes. \s is written out: the
 * libraries that the models were trained with take White_Space as Unicode has it, PCRE2 adds
 * U+180E. And \s+$ never looks at a run twice. */
#define WS     "\\t-\\r\\x{85}\\p{Z}"
#define SPACES "[" WS "]"
#define SOLID  "[^" WS "]"
#define ENDING "(?i:'s|'t|'re|'ve|'m|'ll|'d)"

#define GPT2                                                                                       \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" SPACES "+(?!" SOLID    \
    ")|" SPACES "+"

/* cl100k, Llama 3 and Qwen2 differ in how many digits go together. */
#define WORDS_AND_DIGITS(digits)                                                                   \
    ENDING "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" SPACES   \
           "*[\\r\\n]+|" SPACES "+(?!" SOLID ")|" SPACES "+"

/* o200k and Tekken: words are cut where lower case turns to upper case. */
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED_WORDS(ending, digits)                                                                \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" ending "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER  \
    "*" ending "|" digits "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES "*[\\r\\n]+|" SPACES       \
    "+(?!" SOLID ")|" SPACES "+"

#define DIGIT  "\\p{N}"
#define DIGIT3 "\\p{N}{1,3}"
#define HAN    "[\\x{4E00}-\\x{9FA5}\\x{0800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"

enum { MAX_LEVELS = 6 };

enum patterns {
    P_GPT2,
    P_DIGITS_GPT2,
    P_LLAMA3,
    P_QWEN2,
    P_O200K,
    P_TEKKEN,
    P_DEEPSEEK_V3,
    P_DEEPSEEK_LLM,
    P_DEEPSEEK_CODER
};

/* Each pattern cuts what the one before it left: its matches and what lies between them. */
static const char *const pattern_table[][MAX_LEVELS] = {
    [P_GPT2] = {GPT2},
    [P_DIGITS_GPT2] = {DIGIT, GPT2},
    [P_LLAMA3] = {WORDS_AND_DIGITS(DIGIT3)},
    [P_QWEN2] = {WORDS_AND_DIGITS(DIGIT)},
    [P_O200K] = {CASED_WORDS(ENDING "?", DIGIT3)},
    [P_TEKKEN] = {CASED_WORDS("", DIGIT)},
    [P_DEEPSEEK_V3] =
        {DIGIT3, "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+",
         "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?"
         "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" SPACES "*[\\r\\n]+|" SPACES "+(?!" SOLID
         ")|" SPACES "+"},
    [P_DEEPSEEK_LLM] = {"[\\r\\n]", SPACES "?[\\p{Lu}\\p{Ll}\\p{Lt}]+",
                        SPACES "?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}"
                               "\\x{3000}-\\x{3002}]+",
                        SPACES "++(?:\\z|(*SKIP)(*FAIL))", HAN, DIGIT},
    [P_DEEPSEEK_CODER] = {"[\\r\\n]", SPACES "?\\p{L}+", SPACES "?\\p{P}+", HAN, DIGIT},
};

static const struct pretok_family families[] = {
    {"gpt-2", P_GPT2},
    {"default", P_GPT2},
    {"phi-2", P_GPT2},
    {"mpt", P_GPT2},
    {"olmo", P_GPT2},
    {"jais", P_GPT2},
    {"trillion", P_GPT2},
    {"granite-docling", P_GPT2},
    {"gigachat", P_GPT2},
    {"exaone4", P_GPT2},
    {"modern-bert", P_GPT2},
    {"smollm", P_DIGITS_GPT2},
    {"starcoder", P_DIGITS_GPT2},
    {"refact", P_DIGITS_GPT2},
    {"command-r", P_DIGITS_GPT2},
    {"codeshell", P_DIGITS_GPT2},
    {"exaone", P_DIGITS_GPT2},
    {"minerva-7b", P_DIGITS_GPT2},
    {"llama-bpe", P_LLAMA3, .ignore_merges = true, .add_bos = true},
    {"llama3", P_LLAMA3, .ignore_merges = true, .add_bos = true},
    {"llama-v3", P_LLAMA3, .ignore_merges = true, .add_bos = true},
    {"falcon3", P_LLAMA3, .ignore_merges = true, .add_bos = true},
    {"falcon-h1", P_LLAMA3, .ignore_merges = true, .add_bos = true},
    {"pixtral", P_LLAMA3, .ignore_merges = true, .add_bos = true},
    {"lfm2", P_LLAMA3, .ignore_merges = true, .add_bos = true},
    {"dbrx", P_LLAMA3}, /* and Phi-4 */
    {"smaug-bpe", P_LLAMA3},
    {"chatglm-bpe", P_LLAMA3},
    {"glm4", P_LLAMA3},
    {"qwen2", P_QWEN2, .nfc = true},
    {"deepseek-r1-qwen", P_QWEN2},
    {"stablelm2", P_QWEN2},
    {"megrez", P_QWEN2},
    {"hunyuan", P_QWEN2},
    {"grok-2", P_QWEN2},
    {"gpt-4o", P_O200K}, /* and Phi-4-mini */
    {"llama4", P_O200K},
    {"kanana2", P_O200K},
    {"minimax-m2", P_O200K},
    {"tekken", P_TEKKEN, .ignore_merges = true, .add_bos = true},
    {"deepseek-v3", P_DEEPSEEK_V3},
    {"hunyuan-dense", P_DEEPSEEK_V3},
    {"deepseek-llm", P_DEEPSEEK_LLM},
    {"deepseek-coder", P_DEEPSEEK_CODER},
};

struct pretok {
    int n_levels;
    pcre2_code *codes[MAX_LEVELS];
};

const struct pretok_family *pretok_find(struct str name)
{
    for (size_t i = 0; i < ARRAY_LEN(families); i++) {
        if (str_eqs(name, families[i].name))
            return &families[i];
    }
    return NULL;
}

int pretok_new(struct pretok **out, const struct pretok_family *family, struct err *e)
{
    struct pretok *p = xcalloc(1, sizeof *p);
    for (int i = 0; i < MAX_LEVELS && pattern_table[family->patterns][i]; i++) {
        int code;
        PCRE2_SIZE at;
        p->codes[i] = pcre2_compile((PCRE2_SPTR)pattern_table[family->patterns][i],
                                    PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
        if (!p->codes[i]) {
            PCRE2_UCHAR why[128];
            pcre2_get_error_message(code, why, sizeof why);
            pretok_free(p);
            return err_set(e, ERR_UNSUPPORTED,
                           "this build of PCRE2 does not take the pattern of \"%s\": %s at %zu",
                           family->name, (const char *)why, (size_t)at);
        }
        p->n_levels++;
        pcre2_jit_compile(p->codes[i], PCRE2_JIT_COMPLETE); /* without JIT it is only slower */
    }
    *out = p;
    return 0;
}

void pretok_free(struct pretok *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->n_levels; i++)
        pcre2_code_free(p->codes[i]);
    free(p);
}

struct splitter {
    const struct pretok *p;
    pcre2_match_data *match;
    pretok_word *word;
    void *arg;
    struct err *e;
};

/* The next match of a level in s from `from`. 0 and the match as [start, end), 1 if there is none,
 * or an error. */
static int next_match(const struct splitter *s, int level, struct str text, size_t from,
                      size_t *start, size_t *end)
{
    uint32_t how = PCRE2_NO_UTF_CHECK;
    int n = pcre2_match(s->p->codes[level], (PCRE2_SPTR)text.p, text.n, from, how, s->match, NULL);
    if (n == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter keeps its state on the heap */
        n = pcre2_match(s->p->codes[level], (PCRE2_SPTR)text.p, text.n, from, how | PCRE2_NO_JIT,
                        s->match, NULL);
    if (n == PCRE2_ERROR_NOMATCH)
        return 1;
    if (n < 0)
        return err_set(s->e, ERR_LIMIT, "the text is too complex to be split (PCRE2 error %d)", n);
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(s->match);
    BUG_ON(range[0] < from || range[1] <= range[0]);
    *start = range[0];
    *end = range[1];
    return 0;
}

static int split(const struct splitter *s, int level, struct str text)
{
    if (level == s->p->n_levels)
        return s->word(s->arg, text, s->e);
    for (size_t at = 0; at < text.n;) {
        size_t start = text.n;
        size_t end = text.n;
        int rc = next_match(s, level, text, at, &start, &end);
        if (rc < 0)
            return rc;
        if (start > at && (rc = split(s, level + 1, (struct str){text.p + at, start - at})))
            return rc;
        if (end > start && (rc = split(s, level + 1, (struct str){text.p + start, end - start})))
            return rc;
        at = end;
    }
    return 0;
}

int pretok_split(const struct pretok *p, struct str text, pretok_word *word, void *arg,
                 struct err *e)
{
    struct splitter s = {.p = p, .word = word, .arg = arg, .e = e};
    s.match = pcre2_match_data_create(1, NULL);
    if (!s.match)
        return err_set(e, ERR_NOMEM, "out of memory for splitting a text");
    int rc = split(&s, 0, text);
    pcre2_match_data_free(s.match);
    return rc;
}
