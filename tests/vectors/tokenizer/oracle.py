"""Shared by make_small.py and make_real.py: the oracles, the vectors' form, and vocabularies as GGUF.

Vectors are JSON, one case a line: {"text", "times" (the text repeated, default 1), "ids" (special
tokens recognised; absent where the oracle cannot tell), "plain" (they are text; default: as ids)}. ids are "7 8*3": 7 8 8 8.
"decode": {"ids", "text" (special tokens left out), "full" (with them; default: as text)}.
"""

import json
import random

import gguf
from tokenizers import Tokenizer

from corpus import cases

TYPE = gguf.TokenType


def pack(ids):
    out = []
    for i in ids:
        if out and out[-1][0] == i:
            out[-1][1] += 1
        else:
            out.append([i, 1])
    return " ".join(str(i) if n == 1 else f"{i}*{n}" for i, n in out)


def write_vectors(path, origin, encode, encode_plain, decodes):
    lines = []
    for text, times in cases():
        case = {"text": text}
        if times > 1:
            case["times"] = times
        if encode:
            case["ids"] = pack(encode(text * times))
        plain = pack(encode_plain(text * times))
        if plain != case.get("ids"):
            case["plain"] = plain
        lines.append(json.dumps(case, ensure_ascii=True))
    with open(path, "w") as f:
        f.write('{"origin": %s,\n"cases": [\n' % json.dumps(origin))
        f.write(",\n".join(lines))
        f.write('\n],\n"decode": [\n')
        f.write(",\n".join(json.dumps(d, ensure_ascii=True) for d in decodes))
        f.write("\n]}\n")


def random_decodes(decode, n_vocab, count=60):
    """Random ids: cut characters and special tokens in any place. decode(ids, skip_special)."""
    rng = random.Random(7)
    out = []
    for _ in range(count):
        ids = [rng.randrange(n_vocab) for _ in range(rng.randrange(1, 20))]
        text, full = decode(ids, True), decode(ids, False)
        if "\0" in full:
            continue
        d = {"ids": pack(ids), "text": text}
        if full != text:
            d["full"] = full
        out.append(d)
    return out


def write_gguf(path, model, tokens, types, scores=None, merges=None, pre=None, **more):
    w = gguf.GGUFWriter(path, more.pop("arch", "llama"))
    w.add_tokenizer_model(model)
    if pre:
        w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types([int(t) for t in types])
    if scores is not None:
        w.add_token_scores(scores)
    if merges is not None:
        w.add_token_merges(merges)
    for key, value in more.items():
        add = w.add_bool if isinstance(value, bool) else w.add_uint32
        add("tokenizer.ggml." + key, value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def spm_to_gguf(path, sp, proto, **more):
    """A SentencePiece model as llama.cpp's converter writes it: types have the same numbers."""
    pieces = proto.pieces
    write_gguf(
        path,
        "llama",
        [p.piece.encode() for p in pieces],
        [p.type for p in pieces],
        scores=[p.score for p in pieces],
        bos_token_id=sp.bos_id(),
        eos_token_id=sp.eos_id(),
        unknown_token_id=sp.unk_id(),
        add_bos_token=True,
        add_eos_token=False,
        add_space_prefix=proto.normalizer_spec.add_dummy_prefix,
        remove_extra_whitespaces=proto.normalizer_spec.remove_extra_whitespaces,
        **more,
    )


def without_added(tokenizer_json):
    j = json.loads(tokenizer_json)
    j["added_tokens"] = []
    j["post_processor"] = None
    return Tokenizer.from_str(json.dumps(j))


def hf_to_gguf(path, tokenizer_json, pre, **more):
    """A byte-level tokenizer.json as llama.cpp's converter writes it."""
    j = json.loads(tokenizer_json)
    vocab = dict(j["model"]["vocab"])
    added = {a["content"]: a for a in j["added_tokens"]}
    vocab.update({content: a["id"] for content, a in added.items()})
    n = max(vocab.values()) + 1
    tokens = [f"[PAD{i}]".encode() for i in range(n)]
    types = [TYPE.UNUSED] * n
    for text, i in vocab.items():
        a = added.get(text)
        tokens[i] = text.encode()
        types[i] = TYPE.NORMAL if not a else TYPE.CONTROL if a["special"] else TYPE.USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in j["model"]["merges"]]
    write_gguf(path, "gpt2", tokens, types, merges=merges, pre=pre, **more)


def hf_vectors(path, origin, tokenizer_json, decode=True):
    full, plain = Tokenizer.from_str(tokenizer_json), without_added(tokenizer_json)
    write_vectors(
        path,
        origin,
        lambda t: full.encode(t, add_special_tokens=False).ids,
        lambda t: plain.encode(t, add_special_tokens=False).ids,
        random_decodes(
            lambda ids, skip: full.decode(ids, skip_special_tokens=skip), full.get_vocab_size()
        ) if decode else [],
    )
