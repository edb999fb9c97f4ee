#!/usr/bin/env python3
"""Answers that are given again, with OpenAI's client on a server of its own."""
import concurrent.futures
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import openai

from lora_files import random_adapter
from service import TERRACE, Service, new_key, run_tests

SERVER = CLIENT = None


def chat(content="Name three colours.", **more):
    """(the answer, what x-terrace-cache says)"""
    more.setdefault("temperature", 0)
    raw = CLIENT.chat.completions.with_raw_response.create(
        messages=[{"role": "user", "content": content}], max_tokens=12,
        **{"model": SERVER.model, **more})
    return raw.parse(), raw.headers.get("x-terrace-cache")


def same(a, b):
    """Equal but for what is new in each answer."""
    a, b = a.model_dump(), b.model_dump()
    assert a.pop("id") != b.pop("id")
    a.pop("created"), b.pop("created")
    assert a == b, f"{a}\n{b}"


def streamed(content="Name three colours.", **more):
    stream, how = chat(content, stream=True, stream_options={"include_usage": True}, **more)
    chunks = list(stream)
    assert len({c.id for c in chunks}) == 1
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    return text, chunks[-1].usage, how


def stats():
    return SERVER.json("/v1/cache")


def drop(query=""):
    with urllib.request.urlopen(urllib.request.Request(
            SERVER.url + "/v1/cache" + query, method="DELETE"), timeout=60) as reply:
        return json.load(reply)["dropped"]


def test_again():
    first, how = chat()
    assert how == "miss", how
    for _ in range(3):  # from the events, then from the bytes
        again, how = chat()
        assert how == "hit", how
        same(first, again)
    for _ in range(3):
        text, usage, how = streamed()
        assert how == "hit" and text == first.choices[0].message.content
        assert usage == first.usage


def test_streamed_first():
    text, usage, how = streamed("Name two rivers.")
    assert how == "miss"
    again, how = chat("Name two rivers.")
    assert how == "hit" and again.choices[0].message.content == text and again.usage == usage


def test_forms():
    for more in ({"logprobs": True, "top_logprobs": 3}, {"n": 3, "temperature": 0.9, "seed": 5},
                 {"stop": ["e"]}, {"temperature": 0.7, "seed": -1}):
        first, how = chat("Tell me a story.", **more)
        assert how == "miss", more
        again, how = chat("Tell me a story.", **more)
        assert how == "hit", more
        same(first, again)


def test_one_run_for_many():
    before = stats()
    done = SERVER.metrics()["vllm:request_success_total{finished_reason=\"length\"}"]
    question = {"messages": [{"role": "user", "content": "Count to a hundred."}], "temperature": 0,
                "max_tokens": 100, "ignore_eos": True}

    def ask(stream):
        body = json.dumps({**question, "stream": stream}).encode()
        with urllib.request.urlopen(SERVER.url + "/v1/chat/completions", body, 120) as reply:
            return reply.headers["x-terrace-cache"], reply.read()

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, [i % 2 == 1 for i in range(20)]))
    after = stats()
    assert after["misses"] == before["misses"] + 1, (before, after)
    assert after["coalesced"] + after["hits"] == before["coalesced"] + before["hits"] + 19
    done = SERVER.metrics()["vllm:request_success_total{finished_reason=\"length\"}"] - done
    assert done == 1, done
    texts = {json.loads(a)["choices"][0]["message"]["content"] for _, a in answers if a[:1] == b"{"}
    for _, a in answers:
        if a[:1] != b"{":
            chunks = [json.loads(e[6:]) for e in a.split(b"\n\n") if e.startswith(b"data: {")]
            texts.add("".join(c["choices"][0]["delta"].get("content", "") for c in chunks))
    assert len(texts) == 1, texts


def test_controls():
    def how(cache=None, **more):
        more["extra_body"] = {"cache": cache} if cache else None
        return chat("What is a prime?", **more)[1]
    assert [how(), how(), how({"no-cache": True})] == ["miss", "hit", "bypass"]
    assert [how({"namespace": "a"}), how({"namespace": "a"})] == ["miss", "hit"]
    assert [how({"no-store": True}, seed=1, temperature=1) for _ in range(2)] == ["miss", "miss"]
    assert [how(temperature=1), how(temperature=1)] == ["bypass", "bypass"]
    assert [how({"ttl": 60}, temperature=1) for _ in range(2)] == ["miss", "hit"]
    assert how(extra_headers={"cache-control": "no-cache"}) == "bypass"
    try:
        how({"ttl": "soon"})
        raise AssertionError("no error")
    except openai.BadRequestError as e:
        assert e.param == "cache.ttl", e


def test_users_apart():
    assert [chat("Hello", user=u)[1] for u in "aabab"] == ["miss", "hit", "miss", "hit", "hit"]
    assert drop("?tenant=user:a") == 1
    assert [chat("Hello", user=u)[1] for u in "ab"] == ["miss", "hit"]


def test_drop():
    chat("Good bye")
    assert drop("?model=nothing") == 0
    assert drop(f"?model={SERVER.model}") > 0
    assert stats()["entries"] == 0 and stats()["bytes"] == 0
    assert chat("Good bye")[1] == "miss"


def change(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(
            SERVER.url + path, data, {"Content-Type": "application/json"}, method=method), timeout=120):
        pass


def test_adapters():
    """One question under what a name means at the moment: never an answer of what it meant before."""
    def ask(model):
        answer, how = chat("What is the capital of Italy?", model=model)
        assert answer.model == model
        return answer.choices[0].message.content, how

    plain, _ = ask(SERVER.model)
    for name in ("r0", "r1"):
        change("POST", "/v1/adapters", {"name": name, "path": name})
    answers = {name: ask(name) for name in ("r0", "r1")}
    assert len({plain, *(text for text, _ in answers.values())}) == 3, answers
    assert [how for _, how in answers.values()] == ["miss", "miss"]
    for name in ("r0", "r1", "r0"):
        change("PUT", "/v1/adapters/aliases/a@now", {"adapter": name})
        for _ in range(3):  # from the events, then from the bytes
            assert ask("a@now") == (answers[name][0], "hit")
    change("POST", "/v1/adapters", {"name": "r0", "path": "r1"})
    assert [ask("r0") for _ in range(2)] == [(answers["r1"][0], "hit")] * 2
    change("POST", "/v1/adapters/r0/rollback", {})
    assert ask("r0") == (answers["r0"][0], "hit")
    assert drop("?adapter=r1") == 1
    assert ask("r1") == (answers["r1"][0], "miss") and ask(SERVER.model)[1] == "hit"


def keyed(service, key, **more):
    """A chat with a key: (status, what the cache did)."""
    body = {"messages": [{"role": "user", "content": "Hello?"}], "temperature": 0, "max_tokens": 4, **more}
    try:
        with urllib.request.urlopen(urllib.request.Request(
                service.url + "/v1/chat/completions", json.dumps(body).encode(),
                {"Authorization": "Bearer " + key}), timeout=60) as reply:
            return reply.status, reply.headers["x-terrace-cache"]
    except urllib.error.HTTPError as e:
        return e.code, None


def usage(service, name):
    rows = service.json("/v1/usage?group_by=key")["data"]
    return next((r for r in rows if r["key_name"] == name), {})


def test_keys():
    """Tenants never share, keys of one tenant do; a hit is in the books and costs no tokens."""
    with tempfile.TemporaryDirectory() as state:
        key = {name: new_key(state, name, "--tenant", tenant, *more) for name, tenant, *more in (
            ("ann", "acme", "--tpm", 60), ("bob", "acme"), ("eve", "umbrella"), ("root", "acme", "--role", "admin"))}
        with Service("--response-cache", "1MiB", "--ctx", "512", "--memory-limit", "400MiB",
                     state=state, key=key["root"]) as s:
            assert [keyed(s, key[k]) for k in ("ann", "ann", "bob", "bob", "bob")] == [
                (200, "miss")] + [(200, "hit")] * 4
            assert [keyed(s, key["eve"], **{"cache_salt": "x"} if i else {}) for i in (0, 1, 0)] == [
                (200, "miss"), (200, "miss"), (200, "hit")]
            assert keyed(s, key["bob"], user="u1") == keyed(s, key["bob"], user="u2") == (200, "hit")
            assert {keyed(s, key["ann"]) for _ in range(20)} == {(200, "hit")}
            assert keyed(s, key["ann"], max_tokens=60)[0] == 429  # its minute is used by the first
            until = time.monotonic() + 30
            while (row := usage(s, "eve")).get("requests") != 3:
                assert time.monotonic() < until, row
            assert row["completion_tokens"] == 12 and row["prompt_tokens"] % 3 == 0, row
            subprocess.run([TERRACE, "key", "revoke", "bob", "--state-dir", state], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            until = time.monotonic() + 30
            while keyed(s, key["bob"])[0] != 401:
                assert time.monotonic() < until


def main():
    global SERVER, CLIENT
    with tempfile.TemporaryDirectory() as root, Service(
            "--response-cache", "16MiB", "--ctx", "1024", "--memory-limit", "600MiB",
            "--adapter-root", root) as s:
        for seed in range(2):
            random_adapter(pathlib.Path(root) / f"r{seed}", seed=seed)
        SERVER = s
        CLIENT = openai.OpenAI(base_url=s.url + "/v1", api_key="none", max_retries=0, timeout=120)
        return run_tests(globals()) != 0


if __name__ == "__main__":
    sys.exit(main())
