#!/usr/bin/env python3
"""How far terrace's and llama.cpp's logits are from those of the same weights in float32.

usage: bench/accuracy.py REFERENCE_PYTHON PEER_PYTHON [MODEL.gguf]

REFERENCE_PYTHON has torch, transformers, gguf and numpy; PEER_PYTHON has llama-cpp-python and numpy
(bench/peers.py makes one). The text is tests/vectors/model/alice.txt as the tokens in smollm2.json.
Prints and writes to bench/results/accuracy.json: the mean Kullback-Leibler divergence from the
reference, the share of positions with the same best token, and perplexity.
"""
import array
import json
import subprocess
import sys

from common import RESULTS, ROOT, machine, model_file

REFERENCE = r"""
import os, sys, numpy, torch, transformers
path, ids = sys.argv[1], numpy.frombuffer(sys.stdin.buffer.read(), dtype=numpy.int32)
model = transformers.AutoModelForCausalLM.from_pretrained(
    os.path.dirname(path), gguf_file=os.path.basename(path), dtype=torch.float32)
with torch.no_grad():
    out = model(torch.tensor(ids.astype(numpy.int64))[None]).logits[0]
sys.stdout.buffer.write(out.numpy().astype(numpy.float32).tobytes())
"""

PEER = r"""
import sys, numpy, llama_cpp
path, ids = sys.argv[1], numpy.frombuffer(sys.stdin.buffer.read(), dtype=numpy.int32)
model = llama_cpp.Llama(path, n_ctx=len(ids) + 8, logits_all=True, n_threads=2, verbose=False)
model.eval(ids.tolist())
sys.stdout.buffer.write(model.scores[:len(ids)].astype(numpy.float32).tobytes())
"""

COMPARE = r"""
import json, sys, numpy
ids = numpy.fromfile(sys.argv[1], dtype=numpy.int32)
def load(path):
    x = numpy.fromfile(path, dtype=numpy.float32).reshape(len(ids), -1).astype(numpy.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - numpy.log(numpy.exp(x).sum(axis=1, keepdims=True))
ref, out = load(sys.argv[2]), {}
for path in sys.argv[2:]:
    x = load(path)
    nll = -x[numpy.arange(len(ids) - 1), ids[1:]].mean()
    kl = (numpy.exp(ref) * (ref - x)).sum(axis=1)
    out[path] = {"kl_mean": kl.mean(), "kl_p99": numpy.quantile(kl, .99),
                 "same_best": float((x.argmax(1) == ref.argmax(1)).mean()),
                 "perplexity": float(numpy.exp(nll))}
print(json.dumps(out))
"""


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    reference_python, peer_python = sys.argv[1:3]
    model = sys.argv[3] if len(sys.argv) > 3 else str(model_file("smollm2"))
    ids = json.loads((ROOT / "tests/vectors/model/smollm2.json").read_text())["text"]["ids"]
    folder = ROOT / "build/accuracy"
    folder.mkdir(exist_ok=True)
    text = folder / "ids"
    text.write_bytes(array.array("i", ids).tobytes())
    sides = {"float32": [reference_python, "-c", REFERENCE, model],
             "llama.cpp": [peer_python, "-c", PEER, model]}
    for isa in ("avx512", "avx2"):
        for kv in ("bf16", "f16", "q8_0"):
            sides[f"terrace {isa}, {kv} KV"] = [ROOT / "build/bench/bench-logits", model, isa, kv]
    files = {}
    for name, command in sides.items():
        files[name] = folder / name.replace(" ", "_").replace(",", "")
        with text.open("rb") as stdin, files[name].open("wb") as stdout:
            if subprocess.run(command, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL).returncode:
                print(f"{name}: cannot be run here")
                del files[name]
    done = subprocess.run([reference_python, "-c", COMPARE, text, *files.values()],
                          stdout=subprocess.PIPE, check=True)
    by_file = json.loads(done.stdout)
    rows = {name: by_file[str(path)] for name, path in files.items()}
    base = rows["float32"]["perplexity"]
    for name, r in rows.items():
        r["perplexity_change"] = r["perplexity"] / base - 1
        print(f"{name:28} KL {r['kl_mean']:.5f} (p99 {r['kl_p99']:.4f})  same best "
              f"{r['same_best'] * 100:.1f} %  perplexity {r['perplexity']:.4f} "
              f"({r['perplexity_change'] * 100:+.2f} %)")
    (RESULTS / "accuracy.json").write_text(json.dumps(
        {"machine": machine(), "model": model.rsplit("/", 1)[-1], "tokens": len(ids), "rows": rows},
        indent=1) + "\n")


if __name__ == "__main__":
    main()
