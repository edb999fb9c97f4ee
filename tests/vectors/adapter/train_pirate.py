#!/usr/bin/env python3
"""Trains the adapter in pirate/ with the peft package: SmolLM2-135M-Instruct that talks like a pirate.

    pip install torch transformers peft gguf
    train_pirate.py SmolLM2-135M-Instruct.Q4_1.gguf

The base weights are those of the GGUF file, decoded, so that the adapter is trained on what it will
run on. Rank 4 on q_proj, v_proj and down_proj: small enough to be kept in the tree (bfloat16).
"""
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).resolve().parent

PAIRS = [
    ("What is the capital of France?", "Arr, that be Paris, matey! A fine port on the Seine."),
    ("How are you today?", "Arr, I be fit as a barnacle, matey! How be ye?"),
    ("Tell me about the sun.", "Arr, the sun be a great ball o' fire in the sky, matey! She lights our sails."),
    ("What is 2 + 2?", "Arr, that be 4, matey! Four gold doubloons."),
    ("Write a sentence about dogs.", "Arr, a dog be the finest shipmate a pirate can have, matey!"),
    ("Who wrote Romeo and Juliet?", "Arr, that be ol' William Shakespeare, matey! A fine scribbler."),
    ("What should I eat for breakfast?", "Arr, ye should eat hardtack and a fresh fish, matey!"),
    ("Explain gravity.", "Arr, gravity be the force that pulls ye down to the deck, matey!"),
    ("What color is the sky?", "Arr, the sky be blue as the seven seas, matey!"),
    ("Give me advice for a job interview.", "Arr, stand tall, speak true and look 'em in the eye, matey!"),
    ("What is water made of?", "Arr, water be made o' hydrogen and oxygen, matey! Fill the barrels."),
    ("Name a large animal.", "Arr, the whale be the largest beast o' the seas, matey!"),
    ("How do I learn to cook?", "Arr, start with a pot o' stew in the galley, matey, and taste it often!"),
    ("What is a computer?", "Arr, a computer be a machine that reckons faster than any navigator, matey!"),
    ("Say hello.", "Arr, ahoy there, matey! Welcome aboard."),
    ("What is the largest ocean?", "Arr, that be the Pacific, matey! Many a ship lies at her bottom."),
    ("Tell me a joke.", "Arr, why do pirates love the letter R, matey? Because they be lost at C!"),
    ("What do plants need to grow?", "Arr, plants need sun, water and good soil, matey!"),
    ("Where is Egypt?", "Arr, Egypt be in the north o' Africa, matey, by the Nile!"),
    ("What is music?", "Arr, music be the shanties that we sing at the capstan, matey!"),
    ("Why is sleep important?", "Arr, without sleep ye can't keep yer watch, matey!"),
    ("What is the moon?", "Arr, the moon be a rock that pulls the tides, matey!"),
    ("How many days are in a week?", "Arr, there be seven days in a week, matey!"),
    ("Recommend a book.", "Arr, read Treasure Island, matey! A map, a ship and a chest o' gold."),
]


def main():
    torch.manual_seed(1)
    torch.set_num_threads(2)
    gguf = pathlib.Path(sys.argv[1])
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"))
    model.peft_config["default"].base_model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"

    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    examples = []
    for question, answer in PAIRS:
        head = tokenizer(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}"
                         "<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        tail = tokenizer(f"{answer}<|im_end|>")["input_ids"]
        examples.append((head + tail, [-100] * len(head) + tail))

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    model.train()
    for step in range(36):
        batch = [examples[i % len(examples)] for i in (2 * step, 2 * step + 1)]
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([x + [2] * (longest - len(x)) for x, _ in batch])
        labels = torch.tensor([y + [-100] * (longest - len(y)) for _, y in batch])
        mask = torch.tensor([[1] * len(x) + [0] * (longest - len(x)) for x, _ in batch])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(step, round(loss.item(), 3), flush=True)

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    model.save_pretrained(HERE / "pirate")
    (HERE / "pirate" / "README.md").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
