#!/usr/bin/env python3
"""Personas with OpenAI's client: registered once, used by name, exact in usage and metrics."""
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request

import openai

from lora_files import random_adapter
from service import Service, run_tests

URL, MODEL = os.environ["TERRACE_URL"], os.environ["TERRACE_MODEL_ID"]
CLIENT = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=120)
SYSTEM = "You are a patient teacher of mathematics. " * 12


def call(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(URL + path, data, method=method),
                                timeout=120) as reply:
        return json.loads(reply.read() or b"null")


def chat(question, messages=(), **more):
    return CLIENT.chat.completions.create(
        model=MODEL, messages=[*messages, {"role": "user", "content": question}],
        max_tokens=8, temperature=0, **more)


def test_use():
    made = call("POST", "/v1/personas", {"name": "teacher", "system": SYSTEM})
    assert made["status"] == "ready" and made["pinned_bytes"] > 0, made
    by_name = chat("What is a prime?", extra_body={"persona": "teacher"})
    assert by_name.usage.prompt_tokens_details.cached_tokens == made["prompt_tokens"]
    spelled = chat("What is a prime?", [{"role": "system", "content": SYSTEM}])
    assert spelled.usage.prompt_tokens == by_name.usage.prompt_tokens
    assert spelled.choices[0].message.content == by_name.choices[0].message.content
    other = chat("Name a shape.", extra_body={"persona": "teacher"}, stream=True,
                 stream_options={"include_usage": True})
    usage = [chunk.usage for chunk in other if chunk.usage][0]
    assert usage.prompt_tokens_details.cached_tokens >= made["prompt_tokens"]
    listed = call("GET", "/v1/personas")["data"]
    assert [p["name"] for p in listed] == ["teacher"]


def test_reset():
    call("POST", "/v1/personas", {"name": "brief", "system": "Answer in one word."})
    call("POST", "/reset_prefix_cache")
    assert chat("Hello", extra_body={"persona": "brief"}).choices[0].message.content
    assert call("DELETE", "/v1/personas")["deleted"]
    assert call("GET", "/v1/personas")["data"] == []


def test_adapter():
    """A persona under an adapter; its prompt follows the adapter's version."""
    with tempfile.TemporaryDirectory() as room:
        versions = [random_adapter(f"{room}/v{i}", seed=i, rank=2) for i in range(2)]
        with Service("--adapter-root", room) as s:
            def cached(question, **more):
                done = s.json("/v1/chat/completions", {
                    "persona": "teacher", "messages": [{"role": "user", "content": question}],
                    "max_tokens": 4, "temperature": 0, **more})
                return done["usage"]["prompt_tokens_details"]["cached_tokens"]

            s.json("/v1/adapters", {"name": "style", "path": str(versions[0])})
            made = s.json("/v1/personas", {"name": "teacher", "system": SYSTEM, "adapter": "style"})
            assert made["status"] == "ready" and made["adapter"] == "style", made
            assert cached("What is a prime?") == made["prompt_tokens"]
            assert cached("What is a prime?", adapter=[]) < made["prompt_tokens"]
            s.json("/v1/adapters", {"name": "style", "path": str(versions[1])})
            while s.json("/v1/personas/teacher")["status"] != "ready":
                time.sleep(0.05)
            assert cached("What is a prime?") == made["prompt_tokens"]


def test_unknown():
    try:
        chat("Hello", extra_body={"persona": "nobody"})
        raise AssertionError("no error")
    except openai.NotFoundError as e:
        assert e.param == "persona" and e.code == "persona_not_found", e
    try:
        call("GET", "/v1/personas/nobody")
        raise AssertionError("no error")
    except urllib.error.HTTPError as e:
        assert e.code == 404


if __name__ == "__main__":
    sys.exit(run_tests(globals()) != 0)
