#include "cli/client.h"

#include <curl/curl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/str.h"

enum { CLIENT_CONNECT_MS = 10000, CLIENT_MAX_ANSWER = 64 << 20 };

/* ---- the request ---- */

static size_t on_data(char *p, size_t size, size_t n, void *arg)
{
    struct buf *answer = arg;
    if (answer->len + size * n > CLIENT_MAX_ANSWER)
        return 0;
    buf_add(answer, p, size * n);
    return size * n;
}

static bool is_loopback(const char *url)
{
    CURLU *parts = curl_url();
    char *host = NULL;
    bool yes = parts && curl_url_set(parts, CURLUPART_URL, url, 0) == CURLUE_OK &&
               curl_url_get(parts, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
               (strncmp(host, "127.", 4) == 0 || strcmp(host, "[::1]") == 0 ||
                strcmp(host, "localhost") == 0);
    curl_free(host);
    curl_url_cleanup(parts);
    return yes;
}

static struct curl_slist *headers_of(const struct client *c, bool has_body)
{
    struct curl_slist *list = NULL;
    struct buf bearer = {0};
    if (c->api_key && *c->api_key) {
        buf_addf(&bearer, "Authorization: Bearer %s", c->api_key);
        list = curl_slist_append(list, bearer.data);
        explicit_bzero(bearer.data, bearer.len);
        buf_release(&bearer);
    }
    return curl_slist_append(list, has_body ? "Content-Type: application/json" : "Accept: */*");
}

static void setup(CURL *curl, const struct client *c, const char *method, const char *url,
                  struct buf *answer)
{
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "terrace");
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)CLIENT_CONNECT_MS);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
    if (is_loopback(c->url))
        curl_easy_setopt(curl, CURLOPT_PROXY, ""); /* a proxy of the environment cannot reach us */
}

/* ---- errors ---- */

static int explain_transfer(const struct client *c, CURLcode rc, struct err *e)
{
    switch (rc) {
    case CURLE_COULDNT_CONNECT:
        return err_set(e, ERR_IO,
                       "no server answers at %s: start one with terrace serve, or name another "
                       "with --url",
                       c->url);
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
        return err_param(e, ERR_INVALID, "url", "--url: \"%s\" is not like http://HOST:PORT",
                         c->url);
    default:
        return err_set(e, ERR_IO, "%s: %s", c->url, curl_easy_strerror(rc));
    }
}

static int code_of(long status)
{
    static const struct {
        long status;
        int code;
    } codes[] = {
        {401, ERR_DENIED},  {403, ERR_DENIED}, {404, ERR_NOTFOUND}, {409, ERR_EXISTS},
        {408, ERR_TIMEOUT}, {429, ERR_BUSY},   {503, ERR_BUSY},     {504, ERR_TIMEOUT},
    };
    for (size_t i = 0; i < ARRAY_LEN(codes); i++)
        if (codes[i].status == status)
            return codes[i].code;
    return status < 500 ? ERR_INVALID : ERR_IO;
}

/* {"error":{"message":...}} as OpenAI's, {"error":"..."} as Ollama's, or any text. */
static int explain_status(const struct client *c, long status, const json_t *answer,
                          const struct buf *text, struct err *e)
{
    const json_t *error = json_object_get(answer, "error");
    const json_t *message = json_is_object(error) ? json_object_get(error, "message") : error;
    int code = code_of(status);
    const char *hint = status == 401 ? (c->api_key ? " (the key of TERRACE_API_KEY or --api-key)"
                                                   : ": set TERRACE_API_KEY")
                                     : "";
    if (json_is_string(message))
        return err_set(e, code, "%.300s%s", json_string_value(message), hint);
    return err_set(e, code, "%s answered %ld: %.200s", c->url, status, buf_str(text));
}

int client_call(const struct client *c, const char *method, const char *path, const json_t *body,
                json_t **out, struct err *e)
{
    struct buf url = {0}, text = {0};
    size_t n = strlen(c->url);
    while (n && c->url[n - 1] == '/')
        n--;
    buf_addf(&url, "%.*s%s", (int)n, c->url, path);
    char *sent = body ? json_dumps(body, JSON_COMPACT) : NULL;
    CURL *curl = curl_easy_init();
    BUG_ON(!curl);
    setup(curl, c, method, url.data, &text);
    struct curl_slist *headers = headers_of(c, body);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    if (sent)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, sent);
    CURLcode rc = curl_easy_perform(curl);
    long status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    free(sent);
    json_t *answer = rc == CURLE_OK && text.len ? jr_parse(text.data, text.len, NULL) : NULL;
    int result = 0;
    if (rc != CURLE_OK)
        result = explain_transfer(c, rc, e);
    else if (status >= 400 || status < 200)
        result = explain_status(c, status, answer, &text, e);
    if (out && !result)
        *out = json_incref(answer);
    json_decref(answer);
    buf_release(&url);
    buf_release(&text);
    return result;
}

void client_escape(struct buf *out, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        bool plain = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
                     (*p >= '0' && *p <= '9') || strchr("-._~", *p);
        if (plain)
            buf_addc(out, (char)*p);
        else
            buf_addf(out, "%%%02X", *p);
    }
}

void client_print_json(const json_t *v)
{
    char *text = v ? json_dumps(v, JSON_INDENT(2) | JSON_ENCODE_ANY) : NULL;
    puts(text ? text : "null");
    free(text);
}

/* ---- tables ---- */

void client_cell(struct client_table *t, const char *text)
{
    if (t->n_cells == t->room) {
        t->room = t->room ? 2 * t->room : 64;
        t->cells = xrealloc(t->cells, t->room * sizeof *t->cells);
    }
    char *cell = xstrdup(text && *text ? text : "-");
    for (char *p = cell; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 127)
            *p = ' ';
    t->cells[t->n_cells++] = cell;
}

void client_cellf(struct client_table *t, const char *fmt, ...)
{
    struct buf text = {0};
    va_list ap;
    va_start(ap, fmt);
    buf_addv(&text, fmt, ap);
    va_end(ap);
    client_cell(t, buf_str(&text));
    buf_release(&text);
}

/* Characters, not bytes. */
static int width_of(const char *s)
{
    int n = 0;
    for (; *s; s++)
        n += (*s & 0xC0) != 0x80;
    return n;
}

static void print_row(const char *const *cells, const int *widths, const bool *right, size_t n,
                      FILE *out)
{
    for (size_t i = 0; i < n; i++) {
        int pad = widths[i] - width_of(cells[i]);
        bool last = i + 1 == n;
        if (right[i])
            fprintf(out, "%*s%s", pad, "", cells[i]);
        else
            fprintf(out, "%s%*s", cells[i], last ? 0 : pad, "");
        fputs(last ? "\n" : "  ", out);
    }
}

void client_table_print(struct client_table *t, FILE *out)
{
    enum { MAX_COLUMNS = 16 };
    const char *headings[MAX_COLUMNS];
    int widths[MAX_COLUMNS];
    bool right[MAX_COLUMNS];
    size_t n = 0;
    for (; t->headings[n]; n++) {
        BUG_ON(n == MAX_COLUMNS);
        right[n] = t->headings[n][0] == '>';
        headings[n] = t->headings[n] + right[n];
        widths[n] = width_of(headings[n]);
    }
    BUG_ON(t->n_cells % n);
    for (size_t i = 0; i < t->n_cells; i++)
        if (width_of(t->cells[i]) > widths[i % n])
            widths[i % n] = width_of(t->cells[i]);
    print_row(headings, widths, right, n, out);
    for (size_t i = 0; i < t->n_cells; i += n)
        print_row((const char *const *)t->cells + i, widths, right, n, out);
    for (size_t i = 0; i < t->n_cells; i++)
        free(t->cells[i]);
    free(t->cells);
    *t = (struct client_table){.headings = t->headings};
}
