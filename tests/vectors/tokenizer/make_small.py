#!/usr/bin/env python3
"""Trains the small vocabularies here and writes what the reference implementations make of corpus.py.

    pip install sentencepiece protobuf tokenizers gguf
    python make_small.py

The patterns in FAMILIES are those of the families' own tokenizer.json.
"""

import io
import json
import os
import random

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from corpus import SPECIALS, cases
from oracle import TYPE, hf_to_gguf, hf_vectors, spm_to_gguf, write_gguf, write_vectors

HERE = os.path.dirname(os.path.abspath(__file__))

# Lewis Carroll, "Alice's Adventures in Wonderland" (1865); the United States Declaration of
# Independence (1776); J. W. Goethe, "Faust" (1808): in the public domain.
PROSE = """Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do:
once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it, "and
what is the use of a book," thought Alice, "without pictures or conversations?" So she was considering in her own mind
(as well as she could, for the hot day made her feel very sleepy and stupid), whether the pleasure of making a
daisy-chain would be worth the trouble of getting up and picking the daisies, when suddenly a White Rabbit with pink
eyes ran close by her. There was nothing so very remarkable in that; nor did Alice think it so very much out of the way
to hear the Rabbit say to itself, "Oh dear! Oh dear! I shall be late!" (when she thought it over afterwards, it
occurred to her that she ought to have wondered at this, but at the time it all seemed quite natural); but when the
Rabbit actually took a watch out of its waistcoat-pocket, and looked at it, and then hurried on, Alice started to her
feet, for it flashed across her mind that she had never before seen a rabbit with either a waistcoat-pocket, or a watch
to take out of it, and burning with curiosity, she ran across the field after it.

When in the Course of human events, it becomes necessary for one people to dissolve the political bands which have
connected them with another, and to assume among the powers of the earth, the separate and equal station to which the
Laws of Nature and of Nature's God entitle them, a decent respect to the opinions of mankind requires that they should
declare the causes which impel them to the separation. We hold these truths to be self-evident, that all men are
created equal, that they are endowed by their Creator with certain unalienable Rights, that among these are Life,
Liberty and the pursuit of Happiness.

Habe nun, ach! Philosophie, Juristerei und Medizin, und leider auch Theologie durchaus studiert, mit heißem Bemühn. Da
steh ich nun, ich armer Tor! Und bin so klug als wie zuvor; heiße Magister, heiße Doktor gar und ziehe schon an die
zehen Jahr herauf, herab und quer und krumm meine Schüler an der Nase herum, und sehe, daß wir nichts wissen können!
"""


def training_text():
    """Prose, and sentences of it shuffled with what the corpus holds, so that merges form in all."""
    rng = random.Random(1)
    words = PROSE.split()
    out = [PROSE]
    for text, times in cases():
        if text not in SPECIALS:
            out.append(text * min(times, 40))
    for _ in range(500):
        part = [rng.choice(words) for _ in range(rng.randrange(3, 12))]
        if rng.random() < 0.5:
            part.insert(0, str(rng.randrange(10 ** rng.randrange(1, 8))))
        if rng.random() < 0.3:
            part = [w.capitalize() for w in part]
        out.append(rng.choice([" ", " ", " ", "\n", "  "]).join(part) + rng.choice([".", "!\n", "?\n\n", ""]))
    return out


def llama_like():
    """As Llama 2: bytes for what is unknown, a space in front, nothing normalised."""
    return dict(
        vocab_size=2000, byte_fallback=True, character_coverage=0.98, add_dummy_prefix=True,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True,
    )


def gemma_like():
    """As Gemma: no space in front, pieces across spaces, white space that the user defined."""
    return dict(
        vocab_size=2200, byte_fallback=True, character_coverage=0.98, add_dummy_prefix=False,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_by_whitespace=False,
        split_by_unicode_script=False, split_by_number=False,
        user_defined_symbols=["\n", "\n\n", "\n\n\n", "\t", "\t\t"],
    )


def plain():
    """No bytes: what is unknown is unknown; spaces are squeezed."""
    return dict(
        vocab_size=1200, byte_fallback=False, character_coverage=0.98, add_dummy_prefix=True,
        remove_extra_whitespaces=True,
    )


def make_spm(name, options):
    out = io.BytesIO()
    lines = [l for t in training_text() + SPECIALS for l in t.split("\n") if l and "\u2581" not in l]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, model_type="bpe", minloglevel=2,
        normalization_rule_name="identity", hard_vocab_limit=False, num_threads=1, **options,
    )
    sp = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    proto = pb.ModelProto()
    proto.ParseFromString(out.getvalue())
    spm_to_gguf(f"{HERE}/{name}.gguf", sp, proto)
    decodes = []
    for text, times in cases()[:150]:
        ids = sp.encode(text)
        decoded = sp.decode(ids)
        if times == 1 and sp.unk_id() not in ids:
            decodes.append({"ids": " ".join(map(str, ids)), "text": decoded})
    version = sentencepiece.__version__
    write_vectors(
        f"{HERE}/{name}.json", f"sentencepiece {version}, trained by make_small.py", None,
        sp.encode, decodes,
    )


def make_phi():
    """As Phi-3: the pieces of spm-llama with added tokens that swallow the white space after them,
    in the form in which such models are published for `tokenizers`."""
    fields = GGUFReader(f"{HERE}/spm-llama.gguf").fields
    pieces = fields["tokenizer.ggml.tokens"].contents()
    scores = fields["tokenizer.ggml.scores"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    ids = {p: i for i, p in enumerate(pieces)}
    merges = []
    for piece, i in ids.items():
        if types[i] == TYPE.NORMAL:
            parts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
            parts = [(ids[a], ids[b], a, b) for a, b in parts if a in ids and b in ids]
            merges += [(-scores[i], *part) for part in sorted(parts)]
    merges = [(a, b) for _, _, _, a, b in sorted(merges, key=lambda m: m[0])]
    t = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    added = ["<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>"]
    for s in ["<unk>", "<s>", "</s>"] + added:
        strip = s == "</s>" or (s.startswith("<|") and s != "<|endoftext|>")
        t.add_special_tokens([AddedToken(s, special=True, normalized=False, rstrip=strip)])
    n = len(added)
    write_gguf(f"{HERE}/spm-phi.gguf", "llama", [p.encode() for p in pieces + added],
               types + [TYPE.CONTROL] * n, scores=scores + [-1000.0] * n, arch="phi3", bos_token_id=1,
               eos_token_id=len(pieces), unknown_token_id=0, add_space_prefix=True)
    hf_vectors(f"{HERE}/spm-phi.json", "tokenizers, spm-phi.gguf, made by make_small.py", t.to_str(), decode=False)


def split(*patterns):
    level = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence(level + [pre_tokenizers.ByteLevel(False, use_regex=False)])


def digits(gpt2_words):
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), gpt2_words])


CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|"
    r"%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^" + "\r\n" + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["
    + "\r\n" + r"]*|\s*[" + "\r\n" + r"]+|\s+(?!\S)|\s+",
)
DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
GPT2 = pre_tokenizers.ByteLevel(False, use_regex=True)

# tokenizer.ggml.pre: how it cuts words, and whether a word that is a token is taken as it is.
FAMILIES = {
    "gpt-2": (GPT2, False),
    "smollm": (digits(GPT2), False),
    "llama-bpe": (split(CL100K % r"\p{N}{1,3}"), True),
    "dbrx": (split(CL100K % r"\p{N}{1,3}"), False),
    "qwen2": (split(CL100K % r"\p{N}"), False),
    "gpt-4o": (split(O200K % (ENDING, ENDING, r"\p{N}{1,3}")), False),
    "tekken": (split(O200K % ("", "", r"\p{N}")), True),
    "deepseek-v3": (split(*DEEPSEEK_V3), False),
    "deepseek-coder": (split(*DEEPSEEK_CODER), False),
}


def make_bpe():
    """One vocabulary for all families. It is trained without regard to words, so that wherever two
    families cut differently the ids differ too."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = split(r"[\s\S]{1,40}")
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )
    t.train_from_iterator(training_text(), trainer)
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in (
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|><|im_start|>", "<s>", "</s>")])
    t.add_tokens([AddedToken(s, special=False, normalized=False) for s in ("<tool_call>", "</tool_call>")])
    base = json.loads(t.to_str())
    hf_to_gguf(f"{HERE}/bpe.gguf", json.dumps(base), "gpt-2", eos_token_id=t.token_to_id("<|im_end|>"))
    for pre, (pre_tokenizer, ignore_merges) in FAMILIES.items():
        t.pre_tokenizer = pre_tokenizer
        j = json.loads(t.to_str())
        j["model"]["ignore_merges"] = ignore_merges
        if pre == "qwen2":
            j["normalizer"] = {"type": "NFC"}
        hf_vectors(f"{HERE}/bpe-{pre}.json", "tokenizers, bpe.gguf, trained by make_small.py", json.dumps(j))


def make_seeds():
    """Tiny model files for tests/fuzz/fuzz_vocab.c to begin with."""
    out = f"{HERE}/../../fuzz/corpus/vocab"
    tokens = "<unk> <s> </s> <0x0A> \u2581 a aa \u2581a b ab <|end|>".split()
    write_gguf(f"{out}/spm.gguf", "llama", [t.encode() for t in tokens], [2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 4],
               scores=[-float(i) for i in range(len(tokens))], add_space_prefix=True, arch="phi3")
    tokens = "a b c ab abab \u0120 \u010a \u00c3 \u00a9 1 2 <|im_start|>".split()
    for pre in ("gpt-2", "llama-bpe", "qwen2", "deepseek-llm"):
        write_gguf(f"{out}/bpe-{pre}.gguf", "gpt2", [t.encode() for t in tokens], [1] * 11 + [3],
                   merges=["a b", "ab ab", "\u00c3 \u00a9"], pre=pre, bos_token_id=11, eos_token_id=11)


if __name__ == "__main__":
    make_seeds()
    make_spm("spm-llama", llama_like())
    make_spm("spm-gemma", gemma_like())
    make_spm("spm-plain", plain())
    make_phi()
    make_bpe()
