#!/usr/bin/env python3
"""Several models in one server, with OpenAI's client. Starts a server of its own."""
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request

import openai

from service import ROOT, TERRACE, Service, model_path, run_tests

SYNTH = ROOT / "build/bench/synth-gguf"


class Shelf:
    """A model directory: the small real model as twin:a and twin:b, a tiny one as tiny:latest."""

    def __init__(self, memory="1200MiB"):
        self.memory = memory

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.dir = pathlib.Path(self.folder.name)
        real = model_path()
        (self.dir / "twin").mkdir()
        (self.dir / "tiny").mkdir()
        for tag in "ab":
            (self.dir / f"twin/{tag}.gguf").symlink_to(real)
        subprocess.run([SYNTH, "tiny-llama", "q4_0", self.dir / "tiny/latest.gguf"], check=True)
        self.service = Service("--model-dir", self.dir, "--memory-limit", self.memory, "--ctx", 512,
                               "--keep-alive", "10m", file="twin:a")
        self.service.__enter__()
        self.client = openai.OpenAI(base_url=self.service.url + "/v1", api_key="none",
                                    max_retries=0, timeout=120)
        return self

    def __exit__(self, *reason):
        self.service.__exit__(*reason)
        self.folder.cleanup()
        assert self.service.status == 0, "".join(self.service.log[-20:])

    def chat(self, model, **more):
        return self.client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Name three colours."}],
            max_tokens=12, temperature=0, **more)

    def post(self, path, **body):
        return self.service.json(path, body)

    def states(self):
        return {m.id: m.status["value"] for m in self.client.models.list()}


def test_two_models():
    with Shelf() as s:
        assert s.states() == {"twin:a": "loaded", "twin:b": "unloaded", "tiny:latest": "unloaded"}
        a, b = s.chat("twin:a"), s.chat("twin:b")
        assert (a.model, b.model) == ("twin:a", "twin:b")
        assert a.choices[0].message.content == b.choices[0].message.content
        tiny = s.chat("tiny")  # by its short name
        assert tiny.model == "tiny:latest"
        assert tiny.choices[0].message.content != a.choices[0].message.content
        assert set(s.states().values()) == {"loaded"}
        assert s.client.models.retrieve("twin:b").status["bytes"] > 50 << 20
        streamed = "".join(c.choices[0].delta.content or "" for c in s.chat("twin:b", stream=True))
        assert streamed == b.choices[0].message.content

        page = subprocess.run([TERRACE, "ps", "--url", s.service.url], capture_output=True)
        rows = page.stdout.decode().splitlines()
        assert len(rows) == 4 and rows[1].startswith("twin:a"), page
        assert "forever" in rows[1] and " min" in rows[2], rows

        assert s.post("/v1/models/unload", model="twin:b") == {"success": True}
        assert s.states()["twin:b"] == "unloaded"
        assert s.post("/models/load", model="twin:b", keep_alive=-1) == {"success": True}
        assert s.states()["twin:b"] == "loaded"
        assert s.chat("twin:b", extra_body={"keep_alive": 0}).choices[0].message.content
        text = urllib.request.urlopen(s.service.url + "/metrics").read().decode()
        assert 'terrace_model_loads_total{model_name="twin:b"} 2' in text


def test_refusals():
    with Shelf("500MiB") as s:
        for name in ("nobody:here", "../twin/a.gguf", str(s.dir / "twin/a.gguf"), "tiny:other"):
            try:
                s.chat(name)
                raise AssertionError(name)
            except openai.NotFoundError as e:
                assert e.code == "model_not_found" and e.param == "model", e
        (s.dir / "bad").mkdir()
        (s.dir / "bad/latest.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
        try:
            s.chat("bad")
            raise AssertionError("no error")
        except openai.InternalServerError as e:
            assert e.status_code == 503 and "bad:latest" in e.message, e
        assert s.states()["bad:latest"] == "failed"
        subprocess.run([SYNTH, "qwen2.5-0.5b", "q8_0", s.dir / "tiny/huge.gguf"], check=True)
        try:
            s.chat("tiny:huge", extra_body={"timeout": 60})
            raise AssertionError("no error")
        except openai.BadRequestError as e:
            assert "raise --memory-limit" in e.message and "MiB" in e.message, e
        (s.dir / "tiny/huge.gguf").unlink()
        assert "tiny:huge" not in s.states()
        assert s.chat("twin:a").choices[0].message.content
        with urllib.request.urlopen(s.service.url + "/health") as reply:
            assert json.load(reply) == {"status": "ok"}


def test_many_at_once():
    """Requests for a model that is not there yet wait for one load."""
    with Shelf() as s:
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(
            s.chat("twin:b").choices[0].message.content)) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(answers) == 8 and len(set(answers)) == 1, answers
        text = urllib.request.urlopen(s.service.url + "/metrics").read().decode()
        assert 'terrace_model_loads_total{model_name="twin:b"} 1' in text


if __name__ == "__main__":
    sys.exit(run_tests(globals()) != 0)
