#define _GNU_SOURCE
#include "http_rig.h"

#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#define H     "Host: a\r\n"
#define CLOSE "Connection: close\r\n"

/* ---- certificates made here ---- */

struct cert {
    char cert_file[64], key_file[64];
};

static void write_pem(char *path, const char *name, X509 *x, EVP_PKEY *key)
{
    snprintf(path, 64, "/tmp/terrace-test-%d-%s", (int)getpid(), name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    if (x)
        assert_int_equal(PEM_write_X509(f, x), 1);
    else
        assert_int_equal(PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL), 1);
    fclose(f);
}

/* A self-signed certificate for "localhost" with that serial number. */
static void make_cert(struct cert *c, long serial)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = X509_new();
    char name[32];
    ASN1_INTEGER_set(X509_get_serialNumber(x), serial);
    X509_gmtime_adj(X509_getm_notBefore(x), -60);
    X509_gmtime_adj(X509_getm_notAfter(x), 3600);
    X509_set_pubkey(x, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC,
                               (const unsigned char *)"localhost", -1, -1, 0);
    X509_set_issuer_name(x, X509_get_subject_name(x));
    assert_true(X509_sign(x, key, EVP_sha256()) > 0);
    snprintf(name, sizeof name, "%ld.crt", serial);
    write_pem(c->cert_file, name, x, NULL);
    snprintf(name, sizeof name, "%ld.key", serial);
    write_pem(c->key_file, name, NULL, key);
    X509_free(x);
    EVP_PKEY_free(key);
}

static void drop_cert(struct cert *c)
{
    unlink(c->cert_file);
    unlink(c->key_file);
}

static struct cert one, two;

static void rig_open_tls(struct rig *r)
{
    struct http_server_opts o = rig_opts(r);
    o.cert_file = one.cert_file;
    o.key_file = one.key_file;
    rig_open(r, &o);
}

/* ---- client ---- */

struct client {
    SSL_CTX *ctx;
    SSL *ssl;
    int fd;
};

/* Returns what the handshake returned: 1 is success. */
static int client_open(struct client *c, const struct rig *r, int version, const char *alpn)
{
    c->ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_security_level(c->ctx, 0);
    SSL_CTX_set_options(c->ctx, SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_min_proto_version(c->ctx, version);
    SSL_CTX_set_max_proto_version(c->ctx, version);
    c->ssl = SSL_new(c->ctx);
    c->fd = rig_connect(r);
    SSL_set_fd(c->ssl, c->fd);
    if (alpn)
        SSL_set_alpn_protos(c->ssl, (const unsigned char *)alpn, (unsigned)strlen(alpn));
    return SSL_connect(c->ssl);
}

static void client_close(struct client *c)
{
    SSL_free(c->ssl);
    SSL_CTX_free(c->ctx);
    close(c->fd);
}

static void client_send(struct client *c, const char *p, size_t n)
{
    assert_int_equal(SSL_write(c->ssl, p, (int)n), (int)n);
}

static void client_read_all(struct client *c, struct buf *in)
{
    char tmp[16384];
    int n;
    while ((n = SSL_read(c->ssl, tmp, sizeof tmp)) > 0)
        buf_add(in, tmp, (size_t)n);
    assert_int_equal(SSL_get_error(c->ssl, n), SSL_ERROR_ZERO_RETURN); /* close_notify came */
}

/* ---- tests ---- */

static void test_round_trip(void **state)
{
    static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
    struct rig r;
    rig_open_tls(&r);
    for (size_t i = 0; i < ARRAY_LEN(versions); i++) {
        /* three requests in one record: the second waits inside TLS, where no socket event tells */
        static const char q[] = "POST /echo HTTP/1.1\r\n" H "Content-Length: 2\r\n\r\nhi"
                                "GET /chunks HTTP/1.1\r\n" H "\r\n"
                                "GET / HTTP/1.1\r\n" H CLOSE "\r\n";
        struct client c;
        struct buf in = {0};
        char got[64];
        assert_int_equal(client_open(&c, &r, versions[i], "\x2h2\x8http/1.1"), 1);
        const unsigned char *chosen;
        unsigned n;
        SSL_get0_alpn_selected(c.ssl, &chosen, &n);
        assert_int_equal(n, 8);
        assert_memory_equal(chosen, "http/1.1", 8);
        client_send(&c, q, sizeof q - 1);
        client_read_all(&c, &in);
        rig_statuses(&in, got, sizeof got);
        assert_string_equal(got, "200,200,200");
        client_close(&c);
        buf_release(&in);
    }
    rig_wait(&r, &r.n_complete, 6);
    rig_close(&r);
}

static void test_sizes(void **state)
{
    enum { N = 5000000 };
    struct rig r;
    rig_open_tls(&r);
    struct client c;
    struct buf q = {0}, in = {0};
    assert_int_equal(client_open(&c, &r, TLS1_3_VERSION, NULL), 1);
    buf_addf(&q, "POST /echo HTTP/1.1\r\n" H CLOSE "Content-Length: %d\r\n\r\n", N);
    size_t head = q.len;
    for (int i = 0; i < N; i++)
        buf_addc(&q, (char)i);
    client_send(&c, q.data, q.len);
    client_read_all(&c, &in);
    const char *body = strstr(in.data, "\r\n\r\n") + 4;
    assert_int_equal(in.data + in.len - body, N);
    assert_memory_equal(body, q.data + head, N);
    client_close(&c);
    buf_release(&q);
    buf_release(&in);
    rig_close(&r);
}

static void test_refused(void **state)
{
    struct rig r;
    rig_open_tls(&r);
    struct client c;
    assert_true(client_open(&c, &r, TLS1_1_VERSION, NULL) <= 0);
    client_close(&c);
    assert_true(client_open(&c, &r, TLS1_3_VERSION, "\x2h2") <= 0);
    client_close(&c);
    static const char plain[] = "GET / HTTP/1.1\r\n" H "\r\n";
    struct buf in = rig_exchange(&r, plain, sizeof plain - 1);
    assert_int_equal(strncmp(in.data, "HTTP/1.1 400 ", 13), 0);
    assert_non_null(strstr(in.data, "HTTPS"));
    buf_release(&in);
    assert_int_equal(rig_count(&r, &r.n_seen), 0);
    while (rig_stats(&r).connections)
        sched_yield();
    rig_close(&r);
}

static void test_gone(void **state)
{
    struct rig r;
    rig_open_tls(&r);
    for (int i = 0; i < 4; i++) {
        static const char q[] = "GET /sse HTTP/1.1\r\n" H "\r\n";
        struct client c;
        assert_int_equal(client_open(&c, &r, TLS1_3_VERSION, NULL), 1);
        client_send(&c, q, sizeof q - 1);
        rig_wait(&r, &r.n_seen, i + 1);
        if (i % 2)
            SSL_shutdown(c.ssl);
        client_close(&c);
        rig_wait(&r, &r.n_cut, i + 1);
    }
    rig_close(&r);
}

static void test_slow_handshake(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    o.cert_file = one.cert_file;
    o.key_file = one.key_file;
    o.head_timeout_ms = 200;
    rig_open(&r, &o);
    struct buf in = rig_exchange(&r, "\x16\x03\x01\x02", 4);
    assert_int_equal(in.len, 0);
    buf_release(&in);
    rig_close(&r);
}

static void reload(struct rig *r, void *arg)
{
    *(int *)arg = http_server_reload_tls(r->server, NULL);
}

static long serial_seen(struct rig *r)
{
    struct client c;
    assert_int_equal(client_open(&c, r, TLS1_3_VERSION, NULL), 1);
    X509 *x = SSL_get1_peer_certificate(c.ssl);
    long serial = ASN1_INTEGER_get(X509_get0_serialNumber(x));
    X509_free(x);
    client_close(&c);
    return serial;
}

static void test_reload(void **state)
{
    struct rig r;
    struct cert own;
    make_cert(&own, 3);
    struct http_server_opts o = rig_opts(&r);
    o.cert_file = own.cert_file;
    o.key_file = own.key_file;
    rig_open(&r, &o);
    int rc;
    assert_int_equal(serial_seen(&r), 3);
    assert_int_equal(rename(two.cert_file, own.cert_file), 0);
    rig_call(&r, reload, &rc); /* the key does not fit: the old pair stays */
    assert_int_equal(rc, ERR_INVALID);
    assert_int_equal(serial_seen(&r), 3);
    assert_int_equal(rename(two.key_file, own.key_file), 0);
    rig_call(&r, reload, &rc);
    assert_int_equal(rc, 0);
    assert_int_equal(serial_seen(&r), 2);
    rig_close(&r);
    drop_cert(&own);
}

static void test_bad_files(void **state)
{
    struct rig r;
    struct http_server *s;
    struct err e = {0};
    struct http_server_opts o = rig_opts(&r);
    assert_int_equal(http_loop_new(&r.loop, &e), 0);
    o.cert_file = "/nowhere/cert.pem";
    assert_int_equal(http_server_open(&s, r.loop, &o, NULL, &e), ERR_INVALID);
    assert_string_equal(e.param, "key_file");
    o.key_file = one.key_file;
    assert_int_equal(http_server_open(&s, r.loop, &o, NULL, &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "/nowhere/cert.pem"));
    o.cert_file = one.key_file; /* a PEM file, but no certificate */
    assert_int_equal(http_server_open(&s, r.loop, &o, NULL, &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, one.key_file));
    http_loop_free(r.loop);
}

int main(void)
{
    make_cert(&one, 1);
    make_cert(&two, 2);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),     cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_refused),        cmocka_unit_test(test_gone),
        cmocka_unit_test(test_slow_handshake), cmocka_unit_test(test_reload),
        cmocka_unit_test(test_bad_files),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    drop_cert(&one);
    drop_cert(&two);
    return rc;
}
