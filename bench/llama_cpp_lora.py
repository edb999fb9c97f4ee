#!/usr/bin/env python3
"""Tokens per second of llama-cpp-python with several adapters at once, one for each sequence.

usage: llama_cpp_lora.py MODEL THREADS GEN ADAPTER...

Its server takes one adapter at its start and answers one request after the other, so what is
measured is the most that a server on this library could reach: an adapter belongs to a context, so
sequences of different adapters cannot share a step. Two ways are measured and both printed:
`contexts`, a context of its own for each adapter on the one model, stepped in turn; and
`switching`, one context whose adapter is changed before each token. Nothing of HTTP or of sampling
is in the figures. `base` is the batch without adapters in one context.
"""
import ctypes
import json
import sys

import llama_cpp as lc

from llama_cpp_side import context, fill, timed_decode


def set_adapter(ctx, adapter):
    adapters = (lc.llama_adapter_lora_p_ctypes * 1)(adapter)
    if lc.llama_set_adapters_lora(ctx, adapters, 1, (ctypes.c_float * 1)(1.0)):
        sys.exit("llama_set_adapters_lora failed")


def rate(steps, n):
    steps = sorted(steps[2:])
    return n / steps[len(steps) // 2]


def main():
    path, threads, gen = sys.argv[1], *map(int, sys.argv[2:4])
    files = sys.argv[4:]
    silent = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(silent, ctypes.c_void_p(0))
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
    if not model:
        sys.exit(f"{path}: llama.cpp cannot load it")
    adapters = [lc.llama_adapter_lora_init(model, f.encode()) for f in files]
    if not all(adapters):
        sys.exit("llama.cpp cannot load an adapter")
    n, batch = len(adapters), lc.llama_batch_init(512, 0, 1)
    n_vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    tokens = [3 + i * 7919 % (n_vocab - 3) for i in range(gen + n + 1)]

    def step(ctx, rows):
        fill(batch, rows)
        return timed_decode(ctx, batch)

    own = [context(model, gen + 8, 1, threads) for _ in adapters]
    for ctx, adapter in zip(own, adapters):
        set_adapter(ctx, adapter)
    contexts = [sum(step(ctx, [(tokens[i + s], i, 0, True)]) for s, ctx in enumerate(own))
                for i in range(gen)]
    for ctx in own:
        lc.llama_free(ctx)

    one = context(model, n * (gen + 8), n, threads)
    base = [step(one, [(tokens[i + s], i, s, True) for s in range(n)]) for i in range(gen)]
    lc.llama_memory_clear(lc.llama_get_memory(one), True)
    switching = []
    for i in range(gen):
        seconds = 0.0
        for s, adapter in enumerate(adapters):
            set_adapter(one, adapter)
            seconds += step(one, [(tokens[i + s], i, s, True)])
        switching.append(seconds)
    print(json.dumps({"contexts": rate(contexts, n), "switching": rate(switching, n),
                      "base": rate(base, n)}))


if __name__ == "__main__":
    main()
