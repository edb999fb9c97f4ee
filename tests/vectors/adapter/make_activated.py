#!/usr/bin/env python3
"""An activated adapter (aLoRA, arXiv 2504.12397) on the tiny llama, and the logits that peft computes.

    pip install torch transformers peft gguf safetensors
    make_activated.py

Writes beside itself, from the base of make_adapters.py:
  llama_activated/          the adapter as peft saves it; its invocation tokens stand at 11 and 12
  activated.safetensors     logits [tokens, vocab] with the adapter
"""
import json

import torch
from make_adapters import ALL, HERE, N_TOKENS, VOCAB, hash_of, make_base
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file


def main():
    torch.set_num_threads(1)
    tokens = (torch.arange(N_TOKENS) * 37 + 5) % VOCAB
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=ALL,
                        alora_invocation_tokens=tokens[11:13].tolist())
    model = get_peft_model(make_base("llama"), config).eval()
    torch.manual_seed(hash_of("activated"))
    for name, p in model.named_parameters():
        if "lora_" in name:
            size = p.shape[1] ** -0.5 if "lora_A" in name else 0.5 * p.shape[1] ** -0.5
            p.data = (torch.randn_like(p) * size).bfloat16().float()
    with torch.no_grad():
        logits = model(input_ids=tokens[None]).logits[0].clone()
        base = make_base("llama")(input_ids=tokens[None]).logits[0]
    changed = (logits - base).norm(dim=1) / base.norm(dim=1)
    print("changed by", [round(c, 3) for c in changed.tolist()])
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = p.data.bfloat16()
    where = HERE / "llama_activated"
    model.save_pretrained(where)
    (where / "README.md").unlink(missing_ok=True)
    print(json.loads((where / "adapter_config.json").read_text())["alora_invocation_tokens"])
    save_file({"llama_activated": logits}, HERE / "activated.safetensors")


if __name__ == "__main__":
    main()
