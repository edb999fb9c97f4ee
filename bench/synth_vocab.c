/* synth_vocab.c - vocabularies that a tokenizer can load, of a real model's size.
 *
 *   SentencePiece ("llama"): <unk> <s> </s> | front | 256 bytes | characters | pieces | back
 *   byte-level BPE ("gpt2"):                  front | 256 bytes              | pieces | back
 *
 * `front` and `back` are special tokens, at their real ids in a vocabulary of real size. Every
 * piece is the join of two tokens before it, so merges reach all of them; letters come in the order
 * of their frequency in English and early tokens are joined more often, so English text becomes
 * fewer tokens than letters. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/map.h"
#include "base/mem.h"
#include "synth_private.h"

/* tokenizer.ggml.token_type */
enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER = 4, UNUSED = 5, BYTE = 6 };

/* A run of special tokens of one type; names are separated by spaces. */
struct specials {
    int type;
    const char *names;
};

struct style {
    bool sentencepiece;
    const char *pre; /* tokenizer.ggml.pre */
    struct specials front[2], back[3];
    uint32_t n_real;          /* size of the real vocabulary ... */
    uint32_t n_front, n_back; /* ... in which front and back are filled up to these counts */
    struct specials filler;   /* with this name and a number */
    const char *bos, *eos, *eot, *unknown, *padding; /* NULL: the key is left out */
    bool add_bos;
    const char *chat_template;
};

#define CHATML                                                                                     \
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "                  \
    "message['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}"            \
    "{{ '<|im_start|>assistant\\n' }}{% endif %}"

static const struct style styles[] = {
    [VOCAB_PHI3] =
        {
            .sentencepiece = true,
            .pre = "default",
            .back = {{CONTROL, "<|endoftext|> <|assistant|> <|placeholder1|> <|placeholder2|> "
                               "<|placeholder3|> <|placeholder4|> <|system|> <|end|> "
                               "<|placeholder5|> <|placeholder6|> <|user|>"}},
            .n_real = 32064,
            .n_back = 64,
            .filler = {UNUSED, "[PAD%u]"},
            .bos = "<s>",
            .eos = "<|endoftext|>",
            .eot = "<|end|>",
            .unknown = "<unk>",
            .padding = "<|endoftext|>",
            .add_bos = true,
            .chat_template =
                "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + "
                "message['content'] + '<|end|>\\n' }}{% endfor %}{% if add_generation_prompt %}"
                "{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        },
    [VOCAB_MISTRAL] =
        {
            .sentencepiece = true,
            .pre = "default",
            .front = {{CONTROL, "[INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] "
                                "[TOOL_RESULTS] [/TOOL_RESULTS]"}},
            .n_real = 32768,
            .n_front = 768,
            .filler = {CONTROL, "[control_%u]"},
            .bos = "<s>",
            .eos = "</s>",
            .unknown = "<unk>",
            .add_bos = true,
            .chat_template =
                "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' "
                "%}"
                "{{ ' ' + message['content'] + eos_token }}{% else %}"
                "{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}{% endfor %}",
        },
    [VOCAB_LLAMA3] =
        {
            .pre = "llama-bpe",
            .back = {{CONTROL, "<|begin_of_text|> <|end_of_text|> <|reserved_special_token_0|> "
                               "<|reserved_special_token_1|> <|finetune_right_pad_id|> "
                               "<|reserved_special_token_2|> <|start_header_id|> <|end_header_id|> "
                               "<|eom_id|> <|eot_id|> <|python_tag|>"}},
            .n_real = 128256,
            .n_back = 256,
            .filler = {CONTROL, "<|reserved_special_token_%u|>"},
            .bos = "<|begin_of_text|>",
            .eos = "<|eot_id|>",
            .eot = "<|eot_id|>",
            .padding = "<|finetune_right_pad_id|>",
            .add_bos = true,
            .chat_template =
                "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + "
                "message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + "
                "'<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
                "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        },
    [VOCAB_SMOLLM] =
        {
            .pre = "smollm",
            .front = {{CONTROL, "<|endoftext|> <|im_start|> <|im_end|> <repo_name> <reponame> "
                                "<file_sep> <filename> <gh_stars> <issue_start> <issue_comment> "
                                "<issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> "
                                "<jupyter_output> <jupyter_script> <empty_output>"}},
            .n_real = 49152,
            .n_front = 17,
            .bos = "<|im_start|>",
            .eos = "<|im_end|>",
            .unknown = "<|endoftext|>",
            .padding = "<|im_end|>",
            .chat_template = CHATML,
        },
    [VOCAB_QWEN] =
        {
            .pre = "qwen2",
            .back = {{CONTROL, "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> "
                               "<|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> "
                               "<|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
                               "<|image_pad|> <|video_pad|>"},
                     {USER, "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> "
                            "<|fim_pad|> <|repo_name|> <|file_sep|> <tool_response> "
                            "</tool_response> <think> </think>"}},
            .n_real = 151936,
            .n_back = 293,
            .filler = {UNUSED, "[PAD%u]"},
            .bos = "<|endoftext|>",
            .eos = "<|im_end|>",
            .padding = "<|endoftext|>",
            .chat_template = CHATML,
        },
};

struct vocab {
    struct arena arena;
    struct str *tokens;
    float *scores;
    int32_t *types;
    uint32_t n, room;
    struct map by_text; /* token text to its place in `tokens` */
    struct str *merges;
    uint32_t n_merges;
};

static bool add(struct vocab *v, struct str text, int type, float score)
{
    if (map_get(&v->by_text, text))
        return false;
    BUG_ON(v->n == v->room);
    v->tokens[v->n] = (struct str){arena_strdup(&v->arena, text), text.n};
    v->types[v->n] = type;
    v->scores[v->n] = score;
    map_put(&v->by_text, text, &v->tokens[v->n]);
    v->n++;
    return true;
}

static void add_text(struct vocab *v, const char *text, int type)
{
    if (!add(v, str_of(text), type, 0))
        BUG("token %s comes twice", text);
}

static uint32_t id_of(const struct vocab *v, const char *text)
{
    const struct str *t = map_get(&v->by_text, str_of(text));
    BUG_ON(!t);
    return (uint32_t)(t - v->tokens);
}

static void add_specials(struct vocab *v, const struct specials *list, size_t n)
{
    for (size_t i = 0; i < n && list[i].names; i++) {
        for (const char *p = list[i].names; *p;) {
            size_t k = strcspn(p, " ");
            if (!add(v, (struct str){p, k}, list[i].type, 0))
                BUG("token %.*s comes twice", (int)k, p);
            p += k + strspn(p + k, " ");
        }
    }
}

static uint32_t count_names(const struct specials *list, size_t n)
{
    uint32_t count = 0;
    for (size_t i = 0; i < n && list[i].names; i++)
        for (const char *p = list[i].names; *p; p += strspn(p, " "), count++)
            p += strcspn(p, " ");
    return count;
}

/* Numbered tokens until there are `upto`. */
static void add_filler(struct vocab *v, const struct specials *filler, uint32_t upto)
{
    for (uint32_t number = 0; v->n < upto; number++) {
        char text[64]; /* the pattern is a constant of the table above with one %u */
        const char *percent = strstr(filler->names, "%u");
        snprintf(text, sizeof text, "%.*s%u%s", (int)(percent - filler->names), filler->names,
                 number, percent + 2);
        add(v, str_of(text), filler->type, 0);
    }
}

/* How byte-level BPE writes byte b: itself where that is visible in Latin-1, else moved up. */
static uint32_t visible_byte(int b)
{
    uint32_t moved = 256;
    for (int i = 0; i <= 255; i++) {
        bool visible = (i >= '!' && i <= '~') || (i >= 0xa1 && i <= 0xac) || i >= 0xae;
        if (i == b)
            return visible ? (uint32_t)b : moved;
        moved += !visible;
    }
    return 0;
}

static void add_bytes(struct vocab *v, bool sentencepiece)
{
    for (int b = 0; b < 256; b++) {
        char text[16];
        if (sentencepiece)
            snprintf(text, sizeof text, "<0x%02X>", (unsigned)b);
        else
            text[utf8_encode(visible_byte(b), text)] = 0;
        add_text(v, text, sentencepiece ? BYTE : NORMAL);
    }
}

/* What pieces are made of: a space mark and words of letters, at most this long. */
enum { MAX_PIECE = 16 };

struct pieces {
    uint32_t *ids; /* tokens that can be joined, most useful first */
    uint32_t n;
    struct str space; /* the mark: U+2581 or U+0120 */
};

static void add_letters(struct vocab *v, struct pieces *p, bool sentencepiece)
{
    static const char letters[] = "etaoinshrdlcumwfgypbvkjxqzTIASCMWHBPNDELROFGJKUVYQZX";
    if (sentencepiece) {
        add_text(v, "\xe2\x96\x81", NORMAL);
        for (char c = '!'; c <= '~'; c++)
            add_text(v, (char[]){c, 0}, NORMAL);
    }
    p->space = sentencepiece ? STR("\xe2\x96\x81") : STR("\xc4\xa0");
    p->ids[p->n++] = id_of(v, p->space.p);
    for (const char *c = letters; *c; c++)
        p->ids[p->n++] = id_of(v, (char[]){*c, 0});
}

/* One of the pieces, early ones more often. */
static uint32_t draw(const struct pieces *p, struct rng *r)
{
    double x = rng_double(r);
    return p->ids[(uint32_t)(x * x * x * p->n)];
}

static bool has_space(const struct pieces *p, struct str s)
{
    return s.n >= p->space.n && memcmp(s.p, p->space.p, p->space.n) == 0;
}

/* Joins pairs until there are `upto` tokens. */
static void add_pieces(struct vocab *v, struct pieces *p, struct rng *r, uint32_t upto)
{
    uint32_t rank = 0;
    while (v->n < upto) {
        uint32_t left_id = draw(p, r);
        struct str left = v->tokens[left_id], right = v->tokens[draw(p, r)];
        char text[2 * MAX_PIECE + 2];
        size_t n = left.n + right.n;
        if (n > MAX_PIECE || has_space(p, right))
            continue;
        memcpy(text, left.p, left.n);
        memcpy(text + left.n, right.p, right.n);
        if (!add(v, (struct str){text, n}, NORMAL, -(float)rank))
            continue;
        p->ids[p->n++] = v->n - 1;
        rank++;
        char *merge =
            arena_printf(&v->arena, "%.*s %.*s", (int)left.n, left.p, (int)right.n, right.p);
        v->merges[v->n_merges++] = str_of(merge);
    }
}

static void make_vocab(struct vocab *v, const struct style *s, uint32_t n_tokens, uint64_t seed)
{
    struct rng r;
    rng_seed(&r, seed);
    bool real = n_tokens == s->n_real;
    uint32_t n_back = real && s->n_back ? s->n_back : count_names(s->back, ARRAY_LEN(s->back));
    v->room = n_tokens;
    v->tokens = xcalloc(n_tokens, sizeof *v->tokens);
    v->scores = xcalloc(n_tokens, sizeof *v->scores);
    v->types = xcalloc(n_tokens, sizeof *v->types);
    v->merges = xcalloc(n_tokens, sizeof *v->merges);
    struct pieces pieces = {.ids = xcalloc(n_tokens, sizeof *pieces.ids)};
    if (s->sentencepiece) {
        add_text(v, "<unk>", UNKNOWN);
        add_text(v, "<s>", CONTROL);
        add_text(v, "</s>", CONTROL);
    }
    uint32_t n_front = v->n + s->n_front;
    add_specials(v, s->front, ARRAY_LEN(s->front));
    if (real && s->n_front)
        add_filler(v, &s->filler, n_front);
    add_bytes(v, s->sentencepiece);
    add_letters(v, &pieces, s->sentencepiece);
    add_pieces(v, &pieces, &r, n_tokens - n_back);
    add_specials(v, s->back, ARRAY_LEN(s->back));
    if (real && s->n_back)
        add_filler(v, &s->filler, n_tokens);
    BUG_ON(v->n != n_tokens);
    free(pieces.ids);
}

static void release_vocab(struct vocab *v)
{
    arena_release(&v->arena);
    map_release(&v->by_text);
    free(v->tokens);
    free(v->scores);
    free(v->types);
    free(v->merges);
}

static void add_id(struct gguf_writer *w, const struct vocab *v, const char *key, const char *token)
{
    if (token)
        gguf_writer_u32(w, key, id_of(v, token));
}

void synth_add_vocab(struct gguf_writer *w, enum synth_vocab_kind kind, uint32_t n_tokens,
                     uint64_t seed)
{
    const struct style *s = &styles[kind];
    struct vocab v = {0};
    make_vocab(&v, s, n_tokens, seed);
    gguf_writer_str(w, "tokenizer.ggml.model", str_of(s->sentencepiece ? "llama" : "gpt2"));
    gguf_writer_str(w, "tokenizer.ggml.pre", str_of(s->pre));
    gguf_writer_strs(w, "tokenizer.ggml.tokens", v.tokens, v.n);
    if (s->sentencepiece)
        gguf_writer_arr(w, "tokenizer.ggml.scores", GGUF_F32, v.scores, v.n);
    gguf_writer_arr(w, "tokenizer.ggml.token_type", GGUF_I32, v.types, v.n);
    if (!s->sentencepiece)
        gguf_writer_strs(w, "tokenizer.ggml.merges", v.merges, v.n_merges);
    add_id(w, &v, "tokenizer.ggml.bos_token_id", s->bos);
    add_id(w, &v, "tokenizer.ggml.eos_token_id", s->eos);
    add_id(w, &v, "tokenizer.ggml.eot_token_id", s->eot);
    add_id(w, &v, "tokenizer.ggml.unknown_token_id", s->unknown);
    add_id(w, &v, "tokenizer.ggml.padding_token_id", s->padding);
    gguf_writer_bool(w, "tokenizer.ggml.add_bos_token", s->add_bos);
    gguf_writer_bool(w, "tokenizer.ggml.add_eos_token", false);
    gguf_writer_str(w, "tokenizer.chat_template", str_of(s->chat_template));
    release_vocab(&v);
}
