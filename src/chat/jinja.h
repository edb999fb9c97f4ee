/* jinja.h - inside of the chat template interpreter; included by the files of this folder only.
 *
 *   jinja_lex.c     source -> tokens, whitespace control
 *   jinja_parse.c   tokens -> statements;  jinja_expr.c  tokens -> expressions
 *   jinja_string.c  text that knows which of its bytes are trusted
 *   jinja_value.c   values, equality, order, iteration;  jinja_print.c  str(), repr(), JSON
 *   jinja_eval.c    expressions;  jinja_operator.c  what + and < and `in` do;  jinja_exec.c
 * statements jinja_filter.c  jinja_select.c  jinja_test.c  jinja_method.c  jinja_global.c  tables
 * of natives
 *
 * The model is Jinja 3.1's ImmutableSandboxedEnvironment with trim_blocks and lstrip_blocks, the
 * way Hugging Face Transformers sets it up; where Python shows through (str(), slices, dict order),
 * so does it here. Integers are 64 bits: more is ERR_LIMIT.
 *
 * Errors are sticky. The first one is kept in the run (or parser); from then on every function
 * returns at once with some valid value, and loops look at `code`. So there is no error plumbing,
 * and nothing leaks: all memory is the arena's. */
#pragma once

#include <jansson.h>
#include <locale.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "base/str.h"

enum {
    JINJA_SOURCE_BYTES = 512 << 10,
    JINJA_PARSE_DEPTH = 100,    /* nested expressions and blocks in the source */
    JINJA_EVAL_DEPTH = 800,     /* nodes on the way to the current one, through macro calls */
    JINJA_RANGE_ITEMS = 100000, /* what Jinja's sandbox allows */
    JINJA_STEPS = 8 << 20, /* nodes evaluated, items visited, 256-byte pieces of text scanned */
    JINJA_OUTPUT_BYTES = 32 << 20,
    JINJA_MEMORY_BYTES = 128 << 20,
    JINJA_MAX_PARAMS = 4,
};

/* ---- values ---- */

/* UTF-8. `marks` has a byte per byte of text, 1 where trusted; NULL when `trusted` says it for all
 * of them. Slices share both. */
struct string {
    const char *p;
    size_t n;
    const char *marks;
    bool trusted;
};

enum kind {
    V_ABSENT, /* a parameter that was not given; never seen by templates */
    V_UNDEFINED,
    V_NONE,
    V_BOOL,
    V_INT,
    V_FLOAT,
    V_STRING,
    V_LIST,
    V_TUPLE,
    V_RANGE,
    V_VIEW,      /* dict.keys(), .values(), .items(): no index */
    V_GENERATOR, /* of map, select ...: goes forward once, always true, has no length */
    V_DICT,
    V_NAMESPACE,
    V_METHOD,   /* a method of a value, not yet called */
    V_FUNCTION, /* range, dict, raise_exception ... */
    V_MACRO,
    V_LOOP, /* the `loop` variable */
};

struct value {
    enum kind kind;
    bool trusted; /* of BOOL, INT, FLOAT: what their text will be */
    union {
        bool b;
        int64_t i;
        double f;
        struct string s; /* STRING; of UNDEFINED the name that was not found */
        struct seq *seq;
        struct dict *dict;
        struct method *method;
        const struct native *function;
        struct macro *macro;
        struct loop *loop;
    };
};

/* Never changed once a template can see it, but for `taken`. */
struct seq {
    struct value *items; /* NULL for RANGE */
    size_t n, cap;
    size_t taken;              /* GENERATOR: items already consumed */
    int64_t start, stop, step; /* RANGE */
    const char *label;         /* VIEW: "dict_keys" ... */
};

struct entry {
    struct value key, value;
};

struct dict {
    struct entry *entries; /* in order of insertion */
    size_t n, cap;
};

struct method {
    struct value self;
    const struct native *native;
};

struct macro {
    const struct node *node; /* MACRO or CALL_BLOCK: parameters and body */
    struct scope *scope;     /* where it was written */
};

struct loop {
    const struct node *node; /* FOR; op is OP_RECURSIVE if loop(...) may run it again */
    struct scope *scope;     /* around the loop */
    struct value *items;
    size_t n, i;
    int64_t depth;       /* 1, and one more in each loop(...) */
    bool changed_before; /* loop.changed() was called */
    struct value changed;
};

/* ---- native filters, tests, methods and functions ---- */

struct keyword {
    struct str name;
    struct value value;
};

/* After binding, pos has one value for each parameter, V_ABSENT where not given; natives that are
 * `variadic` see the arguments as they were written. */
struct args {
    struct value *pos;
    size_t n;
    struct keyword *keywords;
    size_t n_keywords;
};

struct run;
typedef struct value native_fn(struct run *r, struct value self, struct args *a);

struct native {
    const char *name;
    native_fn *fn;  /* NULL: exists in Python, changes its object, so the sandbox hides it */
    unsigned kinds; /* methods: 1 << kind of each self they belong to */
    int required;   /* how many parameters must be given */
    const char *params[JINJA_MAX_PARAMS];
    bool variadic;
};

const struct native *jinja_find_filter(struct str name);
const struct native *jinja_find_select_filter(struct str name);
const struct native *jinja_find_test(struct str name);
const struct native *jinja_find_global(struct str name);
const struct native *jinja_find_method(enum kind self, struct str name);

/* Binds the arguments and calls; errors name the native. */
struct value jinja_call_native(struct run *r, const struct native *f, struct value self,
                               struct args *a);

/* ---- syntax tree ---- */

enum node_kind {
    /* expressions: */
    N_CONST,   /* value */
    N_NAME,    /* name */
    N_LIST,    /* list */
    N_TUPLE,   /* list */
    N_DICT,    /* list: key, value, key, value ... */
    N_NEGATE,  /* a */
    N_PLUS,    /* a */
    N_NOT,     /* a */
    N_AND,     /* a b */
    N_OR,      /* a b */
    N_BINARY,  /* a op b */
    N_COMPARE, /* a, list of N_OPERAND: op a */
    N_OPERAND,
    N_CONDITION, /* a if b else c; c may be NULL */
    N_ATTRIBUTE, /* a . name */
    N_ITEM,      /* a [ b ] */
    N_SLICE,     /* a [ b : c : d ]; each of b c d may be NULL */
    N_CALL,      /* a ( list ), keyword arguments as N_KEYWORD */
    N_KEYWORD,   /* name = a */
    N_SPREAD,    /* * a, as an argument; ** a where op is OP_POW */
    N_FILTER,    /* a | name ( list ), native NULL if unknown */
    N_TEST,      /* a is name ( list ), native NULL if unknown */
    N_CAPTURED,  /* the text of the block that a filter is applied to */
    /* statements: */
    N_TEXT,         /* value */
    N_OUTPUT,       /* a */
    N_BODY,         /* list */
    N_IF,           /* list of N_BRANCH, c else or NULL */
    N_BRANCH,       /* if a then b */
    N_FOR,          /* for a in b if d: c; else e */
    N_SET,          /* a = b */
    N_SET_BLOCK,    /* a = b applied to the text of c; b is N_CAPTURED or filters over it */
    N_FILTER_BLOCK, /* b applied to the text of c */
    N_MACRO,        /* name ( list of N_PARAM ): c */
    N_PARAM,        /* name = a; a may be NULL */
    N_CALL_BLOCK,   /* a is the N_CALL, list of N_PARAM, c the body that caller() runs */
    N_WITH,         /* list of N_SET, c */
    N_BREAK,
    N_CONTINUE,
    N_KINDS
};

enum op {
    OP_NONE,
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOOR_DIV,
    OP_MOD,
    OP_POW,
    OP_CONCAT,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN,
    OP_RECURSIVE, /* of N_FOR */
    /* punctuation, in tokens only */
    OP_LPAREN,
    OP_RPAREN,
    OP_LBRACKET,
    OP_RBRACKET,
    OP_LBRACE,
    OP_RBRACE,
    OP_ASSIGN,
    OP_DOT,
    OP_COLON,
    OP_PIPE,
    OP_COMMA,
};

struct node {
    enum node_kind kind;
    enum op op;
    int line;
    struct str name;
    struct value value;
    const struct native *native;
    struct node *a, *b, *c, *d, *e;
    struct node **list;
    size_t n, cap;
};

/* ---- lexer and parser ---- */

enum token_kind {
    T_TEXT,
    T_OUTPUT_BEGIN,
    T_OUTPUT_END,
    T_BLOCK_BEGIN,
    T_BLOCK_END,
    T_NAME,
    T_STRING, /* text is what the literal means */
    T_INT,
    T_FLOAT,
    T_OP,
    T_END,
};

struct token {
    enum token_kind kind;
    enum op op;
    int line, column; /* from 1; columns count bytes */
    struct str text;
    int64_t i;
    double f;
};

struct tokens {
    struct token *items; /* the last one is T_END */
    size_t n, cap;
};

int jinja_lex(struct arena *a, struct str source, struct tokens *out, struct err *e);

struct parser {
    struct arena *arena;
    struct token *next;
    struct token *end; /* the T_END */
    int depth, loops;
    int code; /* of the first error */
    struct err *err;
};

int jinja_parse(struct arena *a, struct tokens *tokens, struct node **out, struct err *e);

/* between jinja_parse.c and jinja_expr.c */
void jinja_syntax(struct parser *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void jinja_refuse(struct parser *p, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
struct node *jinja_node(struct parser *p, enum node_kind kind);
void jinja_append(struct parser *p, struct node *to, struct node *item);
bool jinja_at_name(const struct parser *p, const char *name);
bool jinja_skip_name(struct parser *p, const char *name);
bool jinja_at_op(const struct parser *p, enum op op);
bool jinja_skip_op(struct parser *p, enum op op);
void jinja_expect_op(struct parser *p, enum op op, const char *spelling);
struct str jinja_expect_name(struct parser *p, const char *what);
bool jinja_enter(struct parser *p); /* false when nested too deep; else pair with p->depth-- */
struct node *jinja_parse_expr(struct parser *p);
struct node *jinja_parse_or(struct parser *p);
/* a, b, c: without parentheses; stops before the name `stop` (may be NULL). */
struct node *jinja_parse_tuple(struct parser *p, struct node *(*item)(struct parser *),
                               const char *stop);
struct node *jinja_parse_target(struct parser *p, bool with_namespace);
struct node *jinja_parse_filters(struct parser *p, struct node *over, bool first_without_pipe);

/* ---- a rendering under way ---- */

struct binding {
    struct str name;
    struct value value;
};

struct scope {
    struct scope *parent;
    struct binding *vars;
    size_t n, cap;
};

/* Text being put together. */
struct builder {
    struct run *run;
    char *p, *marks;
    size_t n, cap;
};

struct run {
    struct arena arena;
    size_t steps;
    int depth;
    int line;
    int code; /* of the first error */
    struct err *err;
    struct builder *out;
    struct value captured; /* what N_CAPTURED stands for */
    locale_t locale;       /* C.UTF-8, or 0: then only ASCII letters have cases */
    int64_t now_unix_s;
};

void jinja_fail(struct run *r, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
bool jinja_charge(struct run *r, size_t steps); /* false once the run has failed */
bool jinja_descend(struct run *r);              /* the same; pair with r->depth-- when true */
void *jinja_new(struct run *r, size_t n);       /* small and fixed: never NULL */
void *jinja_alloc(struct run *r, size_t n);     /* sized by input: NULL when past the limit */

/* jinja_string.c */
void jinja_add(struct builder *b, struct string s);
void jinja_add_bytes(struct builder *b, const char *p, size_t n, bool trusted);
void jinja_adds(struct builder *b, const char *s, bool trusted);
void jinja_add_code_point(struct builder *b, uint32_t cp, bool trusted);
struct string jinja_built(struct builder *b);
struct string jinja_trusted(const char *s);
bool jinja_is_trusted(struct string s);                           /* every byte */
struct string jinja_cut(struct string s, size_t from, size_t to); /* by bytes */
size_t jinja_count(struct run *r, struct string s);               /* code points */
/* Length in bytes of the code point at p; *cp is set. Text is valid UTF-8. */
size_t jinja_code_point(const char *p, size_t n, uint32_t *cp);
#define JINJA_NOT_FOUND SIZE_MAX
size_t jinja_find(struct run *r, struct string s, struct str needle, size_t from);
size_t jinja_find_last(struct run *r, struct string s, struct str needle);
enum { STRIP_LEFT = 1, STRIP_RIGHT = 2 };
struct string jinja_strip(struct run *r, struct string s, const struct string *chars, int sides);
struct string jinja_replace(struct run *r, struct string s, struct string old, struct string new,
                            int64_t count);
bool jinja_is_space(uint32_t cp);                   /* str.isspace() */
size_t jinja_space_suffix(const char *p, size_t n); /* where the white space at the end begins */
enum letter_case { CASE_LOWER, CASE_UPPER, CASE_CAPITAL, CASE_TITLE, CASE_SWAP };
struct string jinja_case(struct run *r, struct string s, enum letter_case to);
bool jinja_is_cased(struct run *r, struct string s, bool upper); /* islower, isupper */
/* Python's s[start:stop:step] for a sequence of n: how many items, and where the first one is. */
bool jinja_slice_bounds(struct run *r, size_t n, const struct value *start,
                        const struct value *stop, const struct value *step, int64_t *first,
                        int64_t *stride, size_t *count);
struct string jinja_slice(struct run *r, struct string s, int64_t first, int64_t stride,
                          size_t count);

/* jinja_value.c */
struct value jinja_undefined(const char *name, size_t n);
struct value jinja_none(void);
struct value jinja_bool(bool b);
struct value jinja_int(int64_t i);
struct value jinja_float(double f);
struct value jinja_string(struct string s);
struct value jinja_seq(struct run *r, enum kind kind); /* empty */
struct value jinja_dict(struct run *r, enum kind kind);
void jinja_push(struct run *r, struct value seq, struct value item);
struct value jinja_at(struct value seq, size_t i); /* item of any sequence kind */
struct value *jinja_get(struct run *r, const struct dict *d, struct value key); /* or NULL */
struct value *jinja_get_name(const struct dict *d, struct str key);
void jinja_put(struct run *r, struct dict *d, struct value key, struct value v);
struct value jinja_from_json(struct run *r, const json_t *j, bool trusted);
const char *jinja_kind_name(enum kind kind); /* Python's: "str", "dict" ... */
bool jinja_is_seq(struct value v);           /* one of LIST TUPLE RANGE VIEW GENERATOR */
bool jinja_truth(struct value v);
bool jinja_length(struct value v, size_t *out, struct run *r); /* false if it has none */
bool jinja_equal(struct run *r, struct value a, struct value b);
/* <0, 0, >0; fails for kinds without an order. NaN is equal to everything. */
int jinja_order(struct run *r, struct value a, struct value b);
bool jinja_contains(struct run *r, struct value in, struct value item);
bool jinja_number(struct value v, double *out);   /* BOOL, INT, FLOAT */
bool jinja_integer(struct value v, int64_t *out); /* BOOL, INT */

/* for (struct iter it = jinja_iter(r, v); jinja_next(&it, &item);) */
struct iter {
    struct run *run;
    struct value over;
    size_t i;
};
struct iter jinja_iter(struct run *r, struct value v); /* fails if v cannot be iterated */
bool jinja_next(struct iter *it, struct value *out);
struct value jinja_list_of(struct run *r, struct value v, enum kind kind); /* list(v) */

/* jinja_print.c */
void jinja_print(struct builder *b, struct value v); /* str(v) */
void jinja_repr(struct builder *b, struct value v);
struct string jinja_text(struct run *r, struct value v); /* str(v) as a string */
struct json_form {
    bool ascii, sort;
    struct string indent; /* one level; p NULL: all on one line */
    struct string item_separator, key_separator;
};
void jinja_dump(struct builder *b, struct value v, const struct json_form *form, size_t level);
size_t jinja_float_text(double f, char out[32]); /* repr(f) */

/* jinja_operator.c */
struct value jinja_binary(struct run *r, enum op op, struct value a, struct value b);
bool jinja_compare(struct run *r, enum op op, struct value a, struct value b);
struct value jinja_format(struct run *r, struct string format, struct value args); /* % */

/* jinja_eval.c */
struct value jinja_eval(struct run *r, struct scope *s, const struct node *n);
struct value jinja_call(struct run *r, struct value callee, struct args *a);
struct value jinja_attribute(struct run *r, struct value v, struct str name); /* v.name */
struct value jinja_item(struct run *r, struct value v, struct value key);     /* v[key] */
struct value *jinja_lookup(struct scope *s, struct str name);                 /* NULL: unknown */
void jinja_bind(struct run *r, struct scope *s, struct str name, struct value v);
struct scope *jinja_scope(struct run *r, struct scope *parent);

/* jinja_exec.c */
enum flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE };
enum flow jinja_exec(struct run *r, struct scope *s, const struct node *n);
struct value jinja_call_macro(struct run *r, struct macro *m, struct args *a);
struct value jinja_call_loop(struct run *r, struct loop *l, struct args *a);

/* The value of an argument, or the default when it was not given. */
static inline bool jinja_given(const struct args *a, size_t i)
{
    return a->pos[i].kind != V_ABSENT;
}
