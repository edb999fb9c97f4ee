#!/usr/bin/env python3
"""Writes pirate.json: what SmolLM2 with the adapter in pirate/ answers, computed by peft.

    pip install torch transformers peft gguf
    make_pirate.py SmolLM2-135M-Instruct.Q4_1.gguf

Greedy, in float32 on the decoded weights of the GGUF file: the token ids of each prompt and of its
answer, the gap between the two best logits at each step, and both answers as text.
"""
import json
import pathlib
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).resolve().parent
QUESTIONS = ["What is the capital of Italy?", "How do I stay healthy?", "Name a small animal.",
             "What is a telescope?"]
N_TOKENS = 24


def answer(model, prompt):
    ids, gaps = list(prompt), []
    with torch.no_grad():
        for _ in range(N_TOKENS):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            top = logits.topk(2)
            gaps.append(round((top.values[0] - top.values[1]).item(), 4))
            ids.append(top.indices[0].item())
    return ids[len(prompt):], gaps


def main():
    torch.set_num_threads(2)
    gguf = pathlib.Path(sys.argv[1])
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    base = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    prompts = [tokenizer(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{q}<|im_end|>\n"
                         "<|im_start|>assistant\n")["input_ids"] for q in QUESTIONS]
    plain = [answer(base, p)[0] for p in prompts]
    model = PeftModel.from_pretrained(base, HERE / "pirate", autocast_adapter_dtype=True).eval()
    cases = []
    for question, prompt, before in zip(QUESTIONS, prompts, plain):
        tokens, gaps = answer(model, prompt)
        cases.append({"question": question, "prompt": prompt, "tokens": tokens, "gaps": gaps,
                      "text": tokenizer.decode(tokens), "base_tokens": before,
                      "base_text": tokenizer.decode(before)})
        print(cases[-1]["text"], "//", cases[-1]["base_text"], flush=True)
    lines = ",\n".join(json.dumps(c) for c in cases)
    (HERE / "pirate.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
