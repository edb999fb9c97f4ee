#!/usr/bin/env python3
"""Tiny random models, adapters made by the peft package, and the logits that peft computes.

    pip install torch transformers peft gguf safetensors
    make_adapters.py

Writes beside itself, for a llama and a phi3 of two layers:
  tiny_<arch>.gguf          the base, F16 (the models compute with exactly these numbers, in float32)
  <arch>_<case>/            adapters as peft saves them
  llama_all.gguf            one of them as a GGUF adapter, laid out as llama.cpp's converter does
  expected.safetensors      <arch>.tokens, <arch>.base, <case> and <case>.merged: logits [tokens, vocab]

phi3_split is phi3_all with q, k, v and gate, up as adapters of their own, as some trainers save
them: A is repeated, B is cut. It has the logits of phi3_all.
"""
import json
import pathlib
import shutil

import gguf
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
VOCAB, WIDTH, FF, HEADS, KV_HEADS, LAYERS, N_TOKENS = 96, 64, 96, 4, 2, 2, 20
HEAD = WIDTH // HEADS
SHAPE = dict(vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=FF, num_hidden_layers=LAYERS,
             num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, rms_norm_eps=1e-5,
             max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
             tie_word_embeddings=False)

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
CASES = {  # arch: {case: (number type of the file, LoraConfig)}
    "llama": {
        "qv": (torch.float32, dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])),
        "all": (torch.bfloat16, dict(r=8, lora_alpha=6, use_rslora=True, target_modules=ALL)),
        "wide": (torch.float16, dict(r=128, lora_alpha=64, target_modules=["q_proj", "down_proj"])),
        "patterns": (torch.bfloat16, dict(
            r=6, lora_alpha=10, target_modules=r".*\.(self_attn\.[qk]_proj|mlp\.(up|down)_proj)",
            rank_pattern={"k_proj": 3, r"layers\.1\.mlp\.up_proj": 17},
            alpha_pattern={"model.layers.0.self_attn.q_proj": 3, "down_proj": 1.5})),
    },
    "phi3": {
        "all": (torch.bfloat16, dict(r=16, lora_alpha=16, target_modules=FUSED)),
        "odd": (torch.float32, dict(r=5, lora_alpha=10, target_modules=["qkv_proj", "down_proj"])),
    },
}


def permute(rows, heads):
    """From halves of a head to neighbours, as llama.cpp's converter does."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def gguf_name(hf, fused):
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    layer = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
             "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}
    if hf in names:
        return names[hf]
    _, _, index, module = hf.split(".", 3)
    return f"blk.{index}.{layer[module]}"


def write_base(arch, model):
    w = gguf.GGUFWriter(HERE / f"tiny_{arch}.gguf", arch)
    w.add_block_count(LAYERS)
    w.add_context_length(512)
    w.add_embedding_length(WIDTH)
    w.add_feed_forward_length(FF)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(HEAD)
    for name, tensor in model.state_dict().items():
        name = name.removesuffix(".weight")
        if arch == "llama" and name.endswith(("q_proj", "k_proj")):
            tensor = permute(tensor, HEADS if name.endswith("q_proj") else KV_HEADS)
        data = tensor.float() if tensor.dim() == 1 else tensor.half()
        w.add_tensor(gguf_name(name, arch == "phi3") + ".weight", data.contiguous().numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def make_base(arch):
    torch.manual_seed(7)
    model = (LlamaForCausalLM(LlamaConfig(**SHAPE)) if arch == "llama"
             else Phi3ForCausalLM(Phi3Config(**SHAPE)))
    for name, p in model.named_parameters():
        if p.dim() == 2:
            p.data = (torch.randn_like(p) * (1.0 if "embed" in name else p.shape[1] ** -0.5)).half().float()
        else:
            p.data = 1 + 0.1 * torch.randn_like(p)
    return model.eval()


def make_case(arch, case, kind, config, tokens):
    model = get_peft_model(make_base(arch), LoraConfig(task_type="CAUSAL_LM", **config)).eval()
    torch.manual_seed(hash_of(arch + case))
    for name, p in model.named_parameters():
        if "lora_" in name:
            size = p.shape[1] ** -0.5 if "lora_A" in name else 0.5 * p.shape[1] ** -0.5
            p.data = (torch.randn_like(p) * size).to(kind).float()
    with torch.no_grad():
        logits = model(input_ids=tokens[None]).logits[0].clone()
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.data = p.data.to(kind)
        where = HERE / f"{arch}_{case}"
        model.save_pretrained(where)
        (where / "README.md").unlink(missing_ok=True)
        for name, p in model.named_parameters():
            p.data = p.data.float()
        merged = model.merge_and_unload()(input_ids=tokens[None]).logits[0].clone()
    return logits, merged


def hash_of(text):
    return sum(ord(c) * 31 ** i for i, c in enumerate(text)) % (1 << 31)


def split_phi3():
    source, where = HERE / "phi3_all", HERE / "phi3_split"
    where.mkdir(exist_ok=True)
    sizes = {"qkv_proj": [("q_proj", WIDTH), ("k_proj", KV_HEADS * HEAD), ("v_proj", KV_HEADS * HEAD)],
             "gate_up_proj": [("gate_proj", FF), ("up_proj", FF)]}
    out = {}
    for name, tensor in load_file(source / "adapter_model.safetensors").items():
        fused = [f for f in sizes if f in name]
        if not fused:
            out[name] = tensor
            continue
        at = 0
        for part, rows in sizes[fused[0]]:
            piece = tensor[at:at + rows] if "lora_B" in name else tensor
            out[name.replace(fused[0], part)] = piece.clone().contiguous()
            at += rows
    save_file(out, where / "adapter_model.safetensors")
    config = json.loads((source / "adapter_config.json").read_text())
    config["target_modules"] = ALL
    (where / "adapter_config.json").write_text(json.dumps(config, indent=1))


def write_gguf_adapter():
    tensors = load_file(HERE / "llama_all" / "adapter_model.safetensors")
    config = json.loads((HERE / "llama_all" / "adapter_config.json").read_text())
    w = gguf.GGUFWriter(HERE / "llama_all.gguf", "llama")
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    # The format divides by the rank; rank-stabilised scaling is by its root.
    w.add_float32("adapter.lora.alpha", config["lora_alpha"] * config["r"] ** 0.5)
    for name, tensor in tensors.items():
        module = name.removeprefix("base_model.model.").removesuffix(".weight")
        module, kind = module.rsplit(".", 1)
        if kind == "lora_B" and module.endswith(("q_proj", "k_proj")):
            tensor = permute(tensor, HEADS if module.endswith("q_proj") else KV_HEADS)
        w.add_tensor(f"{gguf_name(module, False)}.weight.{kind.lower()}",
                     tensor.float().contiguous().numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    torch.set_num_threads(1)
    expected = {}
    for arch, cases in CASES.items():
        base = make_base(arch)
        write_base(arch, base)
        tokens = (torch.arange(N_TOKENS) * 37 + 5) % VOCAB
        expected[f"{arch}.tokens"] = tokens.float()
        with torch.no_grad():
            expected[f"{arch}.base"] = base(input_ids=tokens[None]).logits[0].clone()
        for case, (kind, config) in cases.items():
            logits, merged = make_case(arch, case, kind, config, tokens)
            expected[f"{arch}_{case}"], expected[f"{arch}_{case}.merged"] = logits, merged
            change = (logits - expected[f"{arch}.base"]).norm() / logits.norm()
            print(arch, case, "changes the logits by", round(change.item(), 3),
                  "merged differs by", ((merged - logits).norm() / logits.norm()).item())
    split_phi3()
    write_gguf_adapter()
    save_file(expected, HERE / "expected.safetensors")


if __name__ == "__main__":
    main()
