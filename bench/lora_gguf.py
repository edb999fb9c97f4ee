"""GGUF adapters of random numbers on every matrix of a model, as llama.cpp and terrace read them.

Layout as llama.cpp's convert_lora_to_gguf.py: NAME.lora_a is rank x inputs, NAME.lora_b is
outputs x rank (GGUF lists dimensions from the fastest on), in F16.
"""
import pathlib
import random
import struct

STRING, ARRAY, F32, U32 = 8, 9, 6, 4
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of numbers by type
F16, ALIGN = 1, 32


class Reader:
    """Enough of a GGUF file: the architecture, and the tensors' names and dimensions."""

    def __init__(self, path):
        with open(path, "rb") as self.file:
            magic, version, n_tensors, n_keys = struct.unpack("<4sIQQ", self.file.read(24))
            assert magic == b"GGUF" and version >= 2, path
            self.arch = None
            for _ in range(n_keys):
                key = self.text()
                value = self.value(self.number("I"))
                if key == "general.architecture":
                    self.arch = value
            self.tensors = [self.tensor() for _ in range(n_tensors)]

    def number(self, kind):
        return struct.unpack("<" + kind, self.file.read(struct.calcsize("<" + kind)))[0]

    def text(self):
        return self.file.read(self.number("Q")).decode(errors="replace")

    def value(self, kind):
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.file.read(SIZES[kind])
        inner, n = self.number("I"), self.number("Q")
        for _ in range(n):
            self.value(inner)
        return None

    def tensor(self):
        name, n_dims = self.text(), self.number("I")
        dims = [self.number("Q") for _ in range(n_dims)]
        self.file.read(12)  # type and offset
        return name, dims


def random_f16(rng, n, exponent):
    """n numbers of either sign, each from 2^exponent to twice as much."""
    def repeated(pattern):
        return int.from_bytes(pattern.to_bytes(2, "little") * n, "little")
    noise = int.from_bytes(rng.randbytes(2 * n), "little")
    return (noise & repeated(0x83FF) | repeated((15 + exponent) << 10)).to_bytes(2 * n, "little")


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def write(model, path, seed, rank, exponent=-8):
    """An adapter for the model in the file `model`, on every matrix of its layers."""
    base, rng = Reader(model), random.Random(seed)
    matrices = [(name, dims) for name, dims in base.tensors
                if name.startswith("blk.") and len(dims) == 2]
    shapes = [(f"{name}.lora_{letter}", shape) for name, (inputs, outputs) in matrices
              for letter, shape in (("a", [inputs, rank]), ("b", [rank, outputs]))]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(shapes), 4)
    for key, value in (("general.architecture", base.arch), ("general.type", "adapter"),
                       ("adapter.type", "lora")):
        head += text(key) + struct.pack("<I", STRING) + text(value)
    head += text("adapter.lora.alpha") + struct.pack("<If", F32, rank)
    at = 0
    for name, dims in shapes:
        head += text(name) + struct.pack("<IQQIQ", 2, *dims, F16, at)
        at += -(-2 * dims[0] * dims[1] // ALIGN) * ALIGN
    with open(path, "wb") as file:
        file.write(head + b"\0" * (-len(head) % ALIGN))
        for _, dims in shapes:
            data = random_f16(rng, dims[0] * dims[1], exponent)
            file.write(data + b"\0" * (-len(data) % ALIGN))


def files(model, folder, n, rank):
    """n adapters of different numbers, made at first use."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{pathlib.Path(model).stem}-r{rank}-{i}.gguf" for i in range(n)]
    for i, path in enumerate(paths):
        if not path.exists():
            part = path.with_suffix(".part")
            write(model, part, i, rank)
            part.rename(path)
    return paths
