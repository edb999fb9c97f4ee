"""A restart with the small real model: personas come back from their files, and answer the same."""
import json
import pathlib
import re
import tempfile
import time
import urllib.request

from service import Service

SYSTEM = "You are the keeper of a lighthouse and answer as one who has seen many storms. " * 18
QUESTIONS = ["What do you see tonight?", "Is the lamp lit?"]


def call(s, method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(s.url + path, data, method=method),
                                timeout=120) as reply:
        return json.loads(reply.read() or b"null")


def persona(s):
    return call(s, "GET", "/v1/personas/keeper")


def wait_until(what, seconds=60):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def answers(s):
    """(text, cached tokens) of every question, greedily."""
    out = []
    for question in QUESTIONS:
        reply = call(s, "POST", "/v1/chat/completions", {
            "persona": "keeper", "temperature": 0, "max_tokens": 24, "ignore_eos": True,
            "messages": [{"role": "user", "content": question}]})
        out.append((reply["choices"][0]["message"]["content"],
                    reply["usage"]["prompt_tokens_details"]["cached_tokens"]))
    return out


def computed(s):
    return s.metrics()["terrace_engine_computed_tokens_total"]


def start(state, *args):
    return Service("--memory-limit", "500MiB", "--ctx", "1024", *args, limit_s=300, state=state)


def prompt_tokens(s):
    wait_until(lambda: persona(s)["status"] == "ready")
    return persona(s)["prompt_tokens"]


def test_personas_outlive_a_restart():
    with tempfile.TemporaryDirectory() as state:
        with start(state) as s:
            made = call(s, "POST", "/v1/personas", {"name": "keeper", "system": SYSTEM})
            assert made["status"] == "ready" and made["prompt_tokens"] > 300, made
            first = answers(s)
        assert s.status == 0
        assert all(cached == made["prompt_tokens"] for _, cached in first), first
        with start(state) as s:
            assert prompt_tokens(s) == made["prompt_tokens"]
            assert computed(s) == 0, "the persona was computed again"
            began = time.monotonic()
            assert answers(s) == first
            print(f"persona of {made['prompt_tokens']} tokens read back; answers equal, "
                  f"{computed(s):.0f} tokens computed for them in {time.monotonic() - began:.1f} s")
            wait_until(lambda: persona(s)["kept_bytes"])
        file = pathlib.Path(state, "personas/keeper.kv")
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
        with start(state) as s:
            # what came before the damage is good
            assert 0 < prompt_tokens(s) - computed(s) < made["prompt_tokens"]
            assert any(re.search("keeper is computed again.*damaged", line) for line in s.log)
            assert answers(s) == first
            wait_until(lambda: persona(s)["kept_bytes"])
        with start(state, "--kv-type", "q8_0") as s:
            assert prompt_tokens(s) == computed(s)
            assert any("made of another prompt, or by another model" in line for line in s.log)
        with start(state, "--kv-type", "q8_0", "--persona-spill", "0") as s:
            assert prompt_tokens(s) == computed(s)
        assert s.status == 0
