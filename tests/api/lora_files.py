"""LoRA adapters as files: PEFT directories of random numbers that change SmolLM2's text."""
import json
import pathlib
import random
import struct

# (rows of W, columns of W) by module; the layers are model.layers.0 ... 29
HIDDEN, KV, LAYERS = 576, 192, 30
SHAPES = {"q_proj": ("self_attn", HIDDEN, HIDDEN), "v_proj": ("self_attn", KV, HIDDEN),
          "o_proj": ("self_attn", HIDDEN, HIDDEN)}


def bf16(rng, n, exponent):
    """n random numbers of either sign, each from 2^exponent to twice as much."""
    def repeated(pattern):
        return int.from_bytes(pattern.to_bytes(2, "little") * n, "little")
    noise = int.from_bytes(rng.randbytes(2 * n), "little")
    bits = noise & repeated(0x807F) | repeated((127 + exponent) << 7)
    return bits.to_bytes(2 * n, "little")


def random_adapter(folder, seed, rank=8, layers=LAYERS, modules=("q_proj", "v_proj"), exponent=-3):
    """Writes a PEFT directory; the same arguments write the same bytes. Returns its path."""
    rng, header, data = random.Random(seed), {}, []
    at = 0
    for layer in range(layers):
        for module in modules:
            group, rows, columns = SHAPES[module]
            for letter, shape in (("A", [rank, columns]), ("B", [rows, rank])):
                name = f"base_model.model.model.layers.{layer}.{group}.{module}.lora_{letter}.weight"
                data.append(bf16(rng, shape[0] * shape[1], exponent))
                header[name] = {"dtype": "BF16", "shape": shape,
                                "data_offsets": [at, at + len(data[-1])]}
                at += len(data[-1])
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "adapter_model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + b"".join(data))
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank,
        "target_modules": list(modules), "bias": "none",
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}))
    return folder
