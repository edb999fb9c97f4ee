"""Makes a Hugging Face folder of a GGUF file, for servers that read nothing else.

usage: vllm_model.py MODEL.gguf FOLDER. Needs torch, transformers and gguf. The weights become
bfloat16; the tokenizer and its chat template come along."""
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

file, out = pathlib.Path(sys.argv[1]), sys.argv[2]
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
quantized = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
config = quantized.config
if hasattr(config, "quantization_config"):
    del config.quantization_config  # it is no longer, but still says so
model = AutoModelForCausalLM.from_config(config)
model.load_state_dict(quantized.state_dict())
model.to(torch.bfloat16).save_pretrained(out)
tokenizer.save_pretrained(out)
