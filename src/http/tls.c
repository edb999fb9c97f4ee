#include <openssl/err.h>
#include <openssl/ssl.h>

#include "http/conn.h"

static const char *reason(void)
{
    const char *text = ERR_reason_error_string(ERR_peek_last_error());
    return text ? text : "unknown TLS error";
}

/* HTTP/1.1 or no agreement (RFC 7301 3.2); clients without the extension are not asked. */
static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_n,
                           const unsigned char *in, unsigned in_n, void *arg)
{
    static const unsigned char ours[] = "\x8http/1.1";
    unsigned char *choice;
    if (SSL_select_next_proto(&choice, out_n, ours, sizeof ours - 1, in, in_n) !=
        OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *out = choice;
    return SSL_TLSEXT_ERR_OK;
}

static int load(SSL_CTX *ctx, const char *cert_file, const char *key_file, struct err *e)
{
    if (SSL_CTX_use_certificate_chain_file(ctx, cert_file) != 1)
        return err_set(e, ERR_INVALID, "cannot read the TLS certificate %s: %s", cert_file,
                       reason());
    if (SSL_CTX_use_PrivateKey_file(ctx, key_file, SSL_FILETYPE_PEM) != 1)
        return err_set(e, ERR_INVALID, "cannot use the TLS key %s with the certificate %s: %s",
                       key_file, cert_file, reason());
    if (SSL_CTX_check_private_key(ctx) != 1)
        return err_set(e, ERR_INVALID, "the TLS key %s does not belong to the certificate %s",
                       key_file, cert_file);
    return 0;
}

int tls_open(SSL_CTX **out, const char *cert_file, const char *key_file, struct err *e)
{
    ERR_clear_error();
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    if (!ctx)
        return err_set(e, ERR_NOMEM, "cannot set up TLS: %s", reason());
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_options(ctx, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA |
                                 SSL_OP_IGNORE_UNEXPECTED_EOF);
    /* An idle stream then costs 15 KB instead of 49. */
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                              SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_alpn_select_cb(ctx, choose_protocol, NULL);
    int rc = 0;
    if (SSL_CTX_set_cipher_list(ctx, "ECDHE+AESGCM:ECDHE+CHACHA20") != 1)
        rc = err_set(e, ERR_UNSUPPORTED, "this OpenSSL has none of our TLS 1.2 ciphers: %s",
                     reason());
    if (rc == 0)
        rc = load(ctx, cert_file, key_file, e);
    if (rc < 0) {
        SSL_CTX_free(ctx);
        ERR_clear_error();
        return rc;
    }
    *out = ctx;
    return 0;
}
