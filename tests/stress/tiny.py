"""A service with a tiny model of random weights: answers mean nothing, and cost nothing."""
import pathlib
import subprocess
import tempfile

from service import ROOT, Service

_FOLDER = tempfile.TemporaryDirectory()


def tiny_model():
    path = pathlib.Path(_FOLDER.name) / "tiny.gguf"
    if not path.exists():
        subprocess.run([ROOT / "build/bench/synth-gguf", "tiny-llama", "q4_0", path], check=True,
                       stdout=subprocess.DEVNULL)
    return path


def tiny_service(state, key, *args, **more):
    return Service("--threads", "1", "--ctx", "512", "--memory-limit", "512MiB", *args,
                   file=tiny_model(), state=state, key=key, **more)
