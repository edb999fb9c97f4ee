#include "chat/jinja.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct lexer {
    struct arena *arena;
    const char *p; /* the source, newlines normalised */
    size_t n, at;
    int line;
    size_t line_start;
    bool line_starting; /* what came last ended a line: white space before a tag may go */
    struct tokens *out;
    char open[JINJA_PARSE_DEPTH]; /* brackets waiting to be closed in this tag */
    int n_open;
    int code;
    struct err *err;
};

static void fail(struct lexer *x, int code, const char *what)
{
    if (!x->code)
        x->code = err_set(x->err, code, "chat template, line %d, column %d: %s", x->line,
                          (int)(x->at - x->line_start) + 1, what);
}

static struct token *push(struct lexer *x, enum token_kind kind, struct str text)
{
    struct tokens *t = x->out;
    if (t->n == t->cap) {
        t->cap = t->cap ? 2 * t->cap : 64;
        struct token *items = arena_alloc(x->arena, t->cap * sizeof *items);
        if (t->n)
            memcpy(items, t->items, t->n * sizeof *items);
        t->items = items;
    }
    t->items[t->n] = (struct token){
        .kind = kind, .line = x->line, .column = (int)(x->at - x->line_start) + 1, .text = text};
    return &t->items[t->n++];
}

static void advance(struct lexer *x, size_t to)
{
    for (; x->at < to; x->at++)
        if (x->p[x->at] == '\n') {
            x->line++;
            x->line_start = x->at + 1;
        }
}

static bool at(const struct lexer *x, size_t i, const char *what)
{
    size_t n = strlen(what);
    return x->n - i >= n && memcmp(x->p + i, what, n) == 0;
}

static size_t skip_space(const struct lexer *x, size_t i)
{
    uint32_t cp;
    for (size_t n; i < x->n; i += n) {
        n = jinja_code_point(x->p + i, x->n - i, &cp);
        if (!jinja_is_space(cp))
            break;
    }
    return i;
}

/* The text before a tag; what the tag's sign ('-', '+' or 0) and lstrip_blocks leave of it. */
static struct str before_tag(const struct lexer *x, struct str text, char sign, bool output)
{
    size_t space = jinja_space_suffix(text.p, text.n);
    if (sign == '-') {
        text.n = space;
    } else if (sign != '+' && !output) {
        size_t line = text.n;
        while (line > 0 && text.p[line - 1] != '\n')
            line--;
        if ((line > 0 || x->line_starting) && space <= line)
            text.n = line;
    }
    return text;
}

/* If the closing `mark` of a tag is at i (signs allowed as in Jinja), where the tag ends, newline
 * or white space after it included; else 0. */
static size_t tag_end(const struct lexer *x, size_t i, const char *mark, bool output)
{
    char sign = 0;
    if (i < x->n && (x->p[i] == '-' || (x->p[i] == '+' && !output)))
        sign = x->p[i++];
    if (!at(x, i, mark))
        return 0;
    i += 2;
    if (sign == '-')
        return skip_space(x, i);
    if (!sign && !output && i < x->n && x->p[i] == '\n')
        i++;
    return i;
}

static void finish_tag(struct lexer *x, size_t end)
{
    x->line_starting = x->p[end - 1] == '\n';
    advance(x, end);
}

/* ---- inside a tag ---- */

static bool digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool name_char(char c)
{
    return digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           (unsigned char)c >= 0x80;
}

/* Digits with single underscores between them; returns where they end. */
static size_t digits(const struct lexer *x, size_t i)
{
    size_t from = i;
    while (i < x->n && (digit(x->p[i]) || (x->p[i] == '_' && i > from && i + 1 < x->n &&
                                           digit(x->p[i - 1]) && digit(x->p[i + 1]))))
        i++;
    return i;
}

static void based_number(struct lexer *x, int base)
{
    size_t i = x->at + 2;
    int64_t v = 0;
    for (; i < x->n && (name_char(x->p[i])); i++) {
        char c = x->p[i];
        int d = digit(c) ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : 99;
        if (c == '_')
            continue;
        if (d >= base) {
            fail(x, ERR_FORMAT, "malformed number");
            return;
        }
        if (__builtin_mul_overflow(v, base, &v) || __builtin_add_overflow(v, d, &v)) {
            fail(x, ERR_FORMAT, "integer does not fit 64 bits");
            return;
        }
    }
    if (i == x->at + 2) {
        fail(x, ERR_FORMAT, "malformed number");
        return;
    }
    push(x, T_INT, (struct str){x->p + x->at, i - x->at})->i = v;
    advance(x, i);
}

static void number(struct lexer *x)
{
    size_t i = digits(x, x->at);
    bool real = false;
    if (x->p[x->at] == '0' && i == x->at + 1 && i < x->n && strchr("xXoObB", x->p[i])) {
        char c = x->p[i] | 32;
        based_number(x, c == 'x' ? 16 : c == 'o' ? 8 : 2);
        return;
    }
    if (i + 1 < x->n && x->p[i] == '.' && digit(x->p[i + 1])) {
        real = true;
        i = digits(x, i + 1);
    }
    if (i < x->n && (x->p[i] | 32) == 'e') {
        size_t j = i + 1;
        j += j < x->n && (x->p[j] == '+' || x->p[j] == '-');
        if (j < x->n && digit(x->p[j])) {
            real = true;
            i = digits(x, j);
        }
    }
    char plain[64];
    size_t n = 0;
    for (size_t j = x->at; j < i; j++)
        if (x->p[j] != '_' && n < sizeof plain - 1)
            plain[n++] = x->p[j];
    plain[n] = 0;
    if (n == sizeof plain - 1) {
        fail(x, ERR_FORMAT, "number has too many digits");
        return;
    }
    if (!real && plain[0] == '0' && strspn(plain, "0") != n) {
        fail(x, ERR_FORMAT, "an integer cannot begin with 0");
        return;
    }
    struct token *t = push(x, real ? T_FLOAT : T_INT, (struct str){x->p + x->at, i - x->at});
    errno = 0;
    if (real)
        t->f = strtod(plain, NULL);
    else
        t->i = strtoll(plain, NULL, 10);
    if (!real && errno == ERANGE)
        fail(x, ERR_FORMAT, "integer does not fit 64 bits");
    advance(x, i);
}

/* \x41 \u00e9 \U0001f600: `n` hexadecimal digits. */
static bool hex_escape(const struct lexer *x, size_t i, int n, uint32_t *cp)
{
    *cp = 0;
    for (int k = 0; k < n; k++) {
        char c = i + k < x->n ? x->p[i + k] : 0;
        char low = c | 32;
        if (!digit(c) && (low < 'a' || low > 'f'))
            return false;
        *cp = *cp * 16 + (uint32_t)(digit(c) ? c - '0' : low - 'a' + 10);
    }
    return *cp <= 0x10ffff && (*cp < 0xd800 || *cp > 0xdfff);
}

/* The escape sequence after the backslash at i. Writes to out, returns where it ends. */
static size_t escape(struct lexer *x, size_t i, char **out)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    char c = x->p[i + 1];
    const char *simple = c ? strchr(from, c) : NULL;
    uint32_t cp = 0;
    if (simple) {
        *(*out)++ = to[simple - from];
        return i + 2;
    }
    if (c == '\n')
        return i + 2;
    if (c >= '0' && c <= '7') {
        size_t j = i + 1;
        for (; j < i + 4 && j < x->n && x->p[j] >= '0' && x->p[j] <= '7'; j++)
            cp = cp * 8 + (uint32_t)(x->p[j] - '0');
        *out += utf8_encode(cp, *out);
        return j;
    }
    int n = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (c == 'N') {
        fail(x, ERR_UNSUPPORTED, "\\N{...} in a string is not supported");
        return x->n;
    }
    if (!n) { /* Python keeps the backslash of an escape that it does not know */
        *(*out)++ = '\\';
        return i + 1;
    }
    if (!hex_escape(x, i + 2, n, &cp)) {
        fail(x, ERR_FORMAT, "malformed escape sequence in a string");
        return x->n;
    }
    *out += utf8_encode(cp, *out);
    return i + 2 + (size_t)n;
}

static void string_literal(struct lexer *x)
{
    char quote = x->p[x->at];
    size_t end = x->at + 1;
    while (end < x->n && x->p[end] != quote)
        end += x->p[end] == '\\' ? 2 : 1;
    if (end >= x->n) {
        fail(x, ERR_FORMAT, "the string that begins here has no end");
        return;
    }
    char *text = arena_alloc(x->arena, end - x->at), *out = text; /* escapes only shrink */
    for (size_t i = x->at + 1; i < end && !x->code;) {
        if (x->p[i] == '\\')
            i = escape(x, i, &out);
        else
            *out++ = x->p[i++];
    }
    push(x, T_STRING, (struct str){text, (size_t)(out - text)});
    advance(x, end + 1);
}

static const struct {
    const char *spelling;
    enum op op;
} operators[] = {
    /* longer ones first */
    {"//", OP_FLOOR_DIV}, {"**", OP_POW},     {"==", OP_EQ},    {"!=", OP_NE},
    {">=", OP_GE},        {"<=", OP_LE},      {"+", OP_ADD},    {"-", OP_SUB},
    {"/", OP_DIV},        {"*", OP_MUL},      {"%", OP_MOD},    {"~", OP_CONCAT},
    {"[", OP_LBRACKET},   {"]", OP_RBRACKET}, {"(", OP_LPAREN}, {")", OP_RPAREN},
    {"{", OP_LBRACE},     {"}", OP_RBRACE},   {">", OP_GT},     {"<", OP_LT},
    {"=", OP_ASSIGN},     {".", OP_DOT},      {":", OP_COLON},  {"|", OP_PIPE},
    {",", OP_COMMA},
};

/* Keeps count of brackets: "}}" inside a dict literal does not end the tag. */
static void bracket(struct lexer *x, char c)
{
    static const char opening[] = "([{", closing[] = ")]}";
    const char *o = strchr(opening, c), *q = strchr(closing, c);
    if (o && x->n_open == JINJA_PARSE_DEPTH) {
        fail(x, ERR_LIMIT, "brackets are nested too deep");
    } else if (o) {
        x->open[x->n_open++] = closing[o - opening];
    } else if (q && (x->n_open == 0 || x->open[--x->n_open] != c)) {
        fail(x, ERR_FORMAT, "a closing bracket has no opening one");
    }
}

static void operator(struct lexer *x)
{
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        const char *s = operators[i].spelling;
        if (!at(x, x->at, s))
            continue;
        if (!s[1])
            bracket(x, s[0]);
        push(x, T_OP, (struct str){x->p + x->at, strlen(s)})->op = operators[i].op;
        advance(x, x->at + strlen(s));
        return;
    }
    fail(x, ERR_FORMAT, "a character that means nothing here");
}

/* The expression or statement of a tag, up to and with its end. */
static void inside_tag(struct lexer *x, bool output)
{
    const char *mark = output ? "}}" : "%}";
    for (x->n_open = 0; !x->code;) {
        size_t i = x->at, end = x->n_open ? 0 : tag_end(x, i, mark, output);
        if (end) {
            push(x, output ? T_OUTPUT_END : T_BLOCK_END, (struct str){mark, 2});
            finish_tag(x, end);
            return;
        }
        size_t space = skip_space(x, i);
        if (space > i) {
            advance(x, space);
        } else if (i == x->n) {
            fail(x, ERR_FORMAT, "the template ends inside a tag");
        } else if (digit(x->p[i])) {
            number(x);
        } else if (x->p[i] == '"' || x->p[i] == '\'') {
            string_literal(x);
        } else if (name_char(x->p[i])) {
            while (i < x->n && name_char(x->p[i]))
                i++;
            push(x, T_NAME, (struct str){x->p + x->at, i - x->at});
            advance(x, i);
        } else {
            operator(x);
        }
    }
}

/* ---- between tags ---- */

static void comment(struct lexer *x)
{
    for (size_t i = x->at; i < x->n; i++) {
        size_t end = tag_end(x, i, "#}", false);
        if (end) {
            finish_tag(x, end);
            return;
        }
    }
    fail(x, ERR_FORMAT, "the comment that begins here has no end");
}

/* After "{%" and its sign at i: where "word %}" ends, or 0 when something else is there. */
static size_t word_tag(const struct lexer *x, size_t i, const char *word, bool trim_newline)
{
    i = skip_space(x, i);
    if (!at(x, i, word))
        return 0;
    i = skip_space(x, i + strlen(word));
    size_t end = tag_end(x, i, "%}", !trim_newline);
    return end;
}

static char tag_sign(const struct lexer *x, size_t i)
{
    return i < x->n && (x->p[i] == '-' || x->p[i] == '+') ? x->p[i] : 0;
}

/* Everything up to {% endraw %} is text. `from` is behind {% raw %}. */
static void raw_block(struct lexer *x, size_t from)
{
    finish_tag(x, from);
    for (size_t i = from; i + 1 < x->n; i++) {
        if (!at(x, i, "{%"))
            continue;
        char sign = tag_sign(x, i + 2);
        size_t end = word_tag(x, i + 2 + (sign != 0), "endraw", true);
        if (!end)
            continue;
        struct str text = before_tag(x, (struct str){x->p + from, i - from}, sign, false);
        if (text.n)
            push(x, T_TEXT, text);
        finish_tag(x, end);
        return;
    }
    fail(x, ERR_FORMAT, "{% raw %} has no {% endraw %}");
}

static void text_and_tag(struct lexer *x)
{
    size_t i = x->at;
    while (i < x->n &&
           !(x->p[i] == '{' && i + 1 < x->n && strchr("{%#", x->p[i + 1]) && x->p[i + 1]))
        i++;
    struct str text = {x->p + x->at, i - x->at};
    if (i == x->n) {
        if (text.n)
            push(x, T_TEXT, text);
        advance(x, i);
        return;
    }
    char tag = x->p[i + 1], sign = tag_sign(x, i + 2);
    text = before_tag(x, text, sign, tag == '{');
    if (text.n)
        push(x, T_TEXT, text);
    size_t raw = tag == '%' ? word_tag(x, i + 2 + (sign != 0), "raw", false) : 0;
    advance(x, i);
    if (tag != '#' && !raw)
        push(x, tag == '{' ? T_OUTPUT_BEGIN : T_BLOCK_BEGIN, (struct str){x->p + i, 2});
    advance(x, i + 2 + (sign != 0));
    x->line_starting = false;
    if (raw)
        raw_block(x, raw);
    else if (tag == '#')
        comment(x);
    else
        inside_tag(x, tag == '{');
}

/* \r\n and \r become \n; one newline at the very end goes, as Jinja does. */
static struct str normalise(struct arena *a, struct str source)
{
    char *text = arena_alloc(a, source.n + 1);
    size_t n = 0;
    for (size_t i = 0; i < source.n; i++) {
        bool cr = source.p[i] == '\r';
        text[n++] = cr ? '\n' : source.p[i];
        if (cr && i + 1 < source.n && source.p[i + 1] == '\n')
            i++;
    }
    if (n && text[n - 1] == '\n')
        n--;
    return (struct str){text, n};
}

int jinja_lex(struct arena *a, struct str source, struct tokens *out, struct err *e)
{
    *out = (struct tokens){0};
    if (source.n > JINJA_SOURCE_BYTES)
        return err_set(e, ERR_LIMIT, "chat template has %zu bytes, the limit is %d", source.n,
                       JINJA_SOURCE_BYTES);
    if (!utf8_valid(source.p, source.n))
        return err_set(e, ERR_FORMAT, "chat template is not valid UTF-8");
    struct str text = normalise(a, source);
    struct lexer x = {.arena = a,
                      .p = text.p,
                      .n = text.n,
                      .line = 1,
                      .line_starting = true,
                      .out = out,
                      .err = e};
    while (x.at < x.n && !x.code)
        text_and_tag(&x);
    push(&x, T_END, (struct str){"", 0});
    return x.code;
}
