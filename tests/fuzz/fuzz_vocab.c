/* A model file of arbitrary bytes: a tokenizer that loads can be asked anything. */
#include <stdlib.h>

#include "base/buf.h"
#include "base/log.h"
#include "tokenizer/tokenizer.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    log_init(LOG_ERROR, false);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct gguf *g;
    struct tokenizer *t = NULL;
    struct err e = {0};
    if (gguf_open_mem(&g, data, n, NULL))
        return 0;
    int rc = tokenizer_new(&t, g, &e);
    gguf_close(g);
    if ((rc == 0) != (t != NULL) || rc != e.code)
        abort();
    if (rc)
        return 0;
    struct token_list ids = {0};
    struct buf text = {0};
    struct tok_span spans[] = {{STR("<s>a  abab\n<|im_start|>12\xc3\xa9"), true},
                               {STR("</s> don't \xe2\x96\x81 aaaa"), false}};
    if (tokenizer_encode(t, spans, 2, TOK_ADD_SPECIAL, &ids, NULL))
        abort();
    for (int32_t id = -1; id <= tokenizer_n_vocab(t); id++)
        token_list_add(&ids, id);
    tokenizer_decode(t, ids.ids, ids.n, true, &text);
    if (!utf8_valid(text.data, text.len))
        abort();
    token_list_release(&ids);
    buf_release(&text);
    tokenizer_free(t);
    return 0;
}
