#!/usr/bin/env python3
"""Speed of llama-cpp-python on one file, in the same terms as `terrace bench --json`.

usage: llama_cpp_side.py MODEL THREADS PROMPT GEN BATCH[,BATCH...]

Runs in an environment of its own that has llama-cpp-python (bench/peers.py makes it). Uses the low-level
binding, so that what is measured is llama_decode and nothing of Python: a prompt of PROMPT tokens in
one batch of its default size, then GEN steps of one token for each of BATCH sequences.
"""
import ctypes
import json
import sys
import time

import llama_cpp as lc


def context(model, n_ctx, n_seq, threads):
    p = lc.llama_context_default_params()
    p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = n_ctx, 512, 512, n_seq
    p.n_threads = p.n_threads_batch = threads
    p.kv_unified = True
    return lc.llama_init_from_model(model, p)


def fill(batch, rows):
    """rows: (token, position, sequence, wants logits)"""
    batch.n_tokens = len(rows)
    for i, (token, pos, seq, logits) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, pos, 1
        batch.seq_id[i][0], batch.logits[i] = seq, logits


def timed_decode(ctx, batch):
    start = time.perf_counter()
    if lc.llama_decode(ctx, batch):
        sys.exit("llama_decode failed")
    lc.llama_synchronize(ctx)
    return time.perf_counter() - start


def main():
    path, threads, prompt, gen = sys.argv[1], *map(int, sys.argv[2:5])
    batches = [int(b) for b in sys.argv[5].split(",")]
    silent = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(silent, ctypes.c_void_p(0))
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
    if not model:
        sys.exit(f"{path}: llama.cpp cannot load it")
    n_vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    tokens = [3 + (i * 7919) % (n_vocab - 3) for i in range(prompt)]
    batch = lc.llama_batch_init(max(prompt, 512), 0, 1)

    ctx = context(model, max(prompt, 512), 1, threads)
    fill(batch, [(t, i, 0, False) for i, t in enumerate(tokens[:64])])
    timed_decode(ctx, batch)  # warms up
    lc.llama_memory_clear(lc.llama_get_memory(ctx), True)
    seconds = 0.0
    for at in range(0, prompt, 512):
        part = tokens[at:at + 512]
        fill(batch, [(t, at + i, 0, at + i == prompt - 1) for i, t in enumerate(part)])
        seconds += timed_decode(ctx, batch)
    lc.llama_free(ctx)
    out = {"model": path, "threads": threads,
           "prefill": {"tokens": prompt, "tok_s": prompt / seconds}, "decode": []}

    for n in batches:
        ctx = context(model, n * (gen + 8), n, threads)
        steps = []
        for step in range(gen):
            fill(batch, [(tokens[(step + s) % prompt], step, s, True) for s in range(n)])
            steps.append(timed_decode(ctx, batch))
        lc.llama_free(ctx)
        steps = sorted(steps[1:])
        out["decode"].append({"batch": n, "tok_s": n / steps[len(steps) // 2]})
    print(json.dumps(out))


if __name__ == "__main__":
    main()
