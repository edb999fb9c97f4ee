#!/usr/bin/env python3
"""Writes cases.json: distributions after every sampling step, by Hugging Face Transformers.

    pip install torch transformers && python3 make.py

The warpers run in double precision in the order that src/engine/engine.h states. Frequency and
presence penalties are OpenAI's formula: logit - count * frequency - (count > 0) * presence, over the
output. Made with transformers 5.23.0 and torch 2.15.0.
"""
import json
import pathlib
import random

import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)


def distribution(logits, case):
    x = torch.tensor([logits], dtype=torch.float64)
    tokens, n_prompt = case["tokens"], case["n_prompt"]
    for i, b in case.get("bias", []):
        x[0, i] += b
    n = case.get("repeat_last_n", -1)
    window = tokens if n < 0 else tokens[len(tokens) - n :] if n else []
    if "repetition_penalty" in case and window:
        x = RepetitionPenaltyLogitsProcessor(case["repetition_penalty"])(torch.tensor([window]), x)
    for i in set(tokens[n_prompt:]):
        count = tokens[n_prompt:].count(i)
        x[0, i] -= count * case.get("frequency_penalty", 0) + case.get("presence_penalty", 0)
    for name, warper in (
        ("top_k", TopKLogitsWarper),
        ("typical_p", TypicalLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
        ("temperature", TemperatureLogitsWarper),
    ):
        if name in case:
            x = warper(case[name])(None, x)
    p = torch.softmax(x, dim=-1)[0]
    return [[i, float(f"{v:.9g}")] for i, v in enumerate(p.tolist()) if v > 0]


def make_case(rng, vocab, which):
    case = {"logits": which, "tokens": [rng.randrange(vocab) for _ in range(rng.randrange(1, 40))]}
    case["n_prompt"] = rng.randrange(0, len(case["tokens"]))
    choices = {
        "bias": lambda: [[rng.randrange(vocab), round(rng.uniform(-5, 5), 2)] for _ in range(3)],
        "repetition_penalty": lambda: round(rng.uniform(0.8, 1.6), 2),
        "repeat_last_n": lambda: rng.choice([-1, 0, 4]),
        "frequency_penalty": lambda: round(rng.uniform(-1, 2), 2),
        "presence_penalty": lambda: round(rng.uniform(-1, 2), 2),
        "top_k": lambda: rng.randrange(1, vocab + 20),
        "typical_p": lambda: round(rng.uniform(0.1, 0.99), 3),
        "top_p": lambda: round(rng.uniform(0.05, 0.99), 3),
        "min_p": lambda: round(rng.uniform(0.001, 0.5), 3),
        "temperature": lambda: round(rng.uniform(0.2, 2), 2),
    }
    # each parameter alone, then mixtures
    names = [list(choices)[which % len(choices)]] if which < 20 else [n for n in choices if rng.random() < 0.4]
    for name in names:
        case[name] = choices[name]()
    if case.get("repeat_last_n", -1) > len(case["tokens"]):
        case["repeat_last_n"] = -1
    return case


def main():
    rng = random.Random(2)
    vocab = 80
    out = {"n_vocab": vocab, "logits": [], "cases": []}
    for which in range(80):
        spread = rng.choice([0.5, 2, 4, 8])
        logits = [round(rng.gauss(0, spread), 3) for _ in range(vocab)]
        case = make_case(rng, vocab, which)
        case["expected"] = distribution(logits, case)
        out["logits"].append(logits)
        out["cases"].append(case)
    lines = [json.dumps(c) for c in out["cases"]]
    rows = [json.dumps(r) for r in out["logits"]]
    text = '{"n_vocab": %d,\n"logits": [\n%s],\n"cases": [\n%s]}\n' % (vocab, ",\n".join(rows), ",\n".join(lines))
    (pathlib.Path(__file__).parent / "cases.json").write_text(text)


main()
