#!/usr/bin/env python3
"""Answers of a backend that are given again: a second service with the real small model is the
backend, a gateway without a model remembers. Ends with "N passed, N failed"."""
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request

import openai

from service import Service, new_key, run_tests

QUESTION = [{"role": "user", "content": "Name three colours."}]


@contextlib.contextmanager
def pair(**more):
    """A backend that answers to "remote", and a gateway before it."""
    with tempfile.TemporaryDirectory() as folder, Service("--ctx", "1024") as up:
        config = pathlib.Path(folder) / "gateway.yaml"
        config.write_text(json.dumps({"backends": [
            {"name": "up", "url": up.url, "models": [{"name": "remote", "as": up.model}]}]}))
        with Service("--config", config, "--response-cache", "16MiB", file="none", **more) as g:
            g.config = config
            yield up, g


def client(s, key="none"):
    return openai.OpenAI(base_url=s.url + "/v1", api_key=key, max_retries=0, timeout=120)


def ask(s, content=None, **more):
    """(the answer or its chunks, x-terrace-cache, x-terrace-backend)"""
    more = {"temperature": 0, "max_tokens": 12, **more}
    messages = [{"role": "user", "content": content}] if content else QUESTION
    raw = client(s).chat.completions.with_raw_response.create(
        model="remote", messages=messages, **more)
    got = raw.parse()
    got = [c.model_dump() for c in got] if more.get("stream") else got.model_dump()
    return got, raw.headers["x-terrace-cache"], raw.headers["x-terrace-backend"]


def alike(a, b):
    """Equal but for what is new in each answer."""
    a, b = ([{**c} for c in (x if isinstance(x, list) else [x])] for x in (a, b))
    ids, times = ([{c.pop(k) for c in x} for x in (a, b)] for k in ("id", "created"))
    assert all(len(i) == 1 for i in ids + times) and ids[0] != ids[1] and max(times[0]) >= max(times[1])
    assert a == b, (a, b)


def answers(s):
    return s.metrics()["vllm:request_success_total{finished_reason=\"length\"}"]


def test_again():
    with pair() as (up, g):
        for form in ({}, {"stream": True, "stream_options": {"include_usage": True}}):
            last, how, where = ask(g, **form)
            assert (how, where) == ("miss", "up")
            for _ in range(3):  # from the record, then from the bytes
                again, how, where = ask(g, **form)
                assert (how, where) == ("hit", "up")
                alike(again, last)
                last = again
        assert last[-1]["usage"]["completion_tokens"] == 12
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        for more in ({"logprobs": True}, {"n": 2, "temperature": 1, "seed": 5}, {"stop": ["e"]},
                     {"tools": tools, "tool_choice": "none"}, {"user": "ann"}):
            try:
                assert [ask(g, **more)[1] for _ in range(2)] == ["miss", "hit"], more
            except openai.BadRequestError as e:
                assert "tools" in more and "tool" in str(e), e
        assert [ask(g, temperature=1)[1] for _ in range(2)] == ["bypass", "bypass"]
        before = answers(up)
        done = client(g).completions.with_raw_response.create(
            model="remote", prompt="One, two,", temperature=0, max_tokens=4)
        assert done.headers["x-terrace-cache"] == "miss" and answers(up) == before + 1

        # what is known is told although the backend is gone
        os.kill(up.pid, signal.SIGKILL)
        assert ask(g)[1] == "hit"
        try:
            ask(g, "And now?")
            raise AssertionError("answered")
        except openai.InternalServerError:
            pass


def test_one_run_for_many():
    with pair() as (up, g):
        question = {"model": "remote", "messages": QUESTION, "temperature": 0, "max_tokens": 100,
                    "ignore_eos": True}

        def fetch(stream):
            body = json.dumps({**question, "stream": stream}).encode()
            with urllib.request.urlopen(g.url + "/v1/chat/completions", body, 120) as reply:
                return stream, reply.headers["x-terrace-cache"], reply.read()

        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            got = list(pool.map(fetch, [i % 2 == 1 for i in range(20)]))
        assert answers(up) == 2  # one in each form
        names = re.compile(rb'"chatcmpl-[0-9a-f]{24}"|(?<="created":)\d{10}')
        assert len({(stream, names.sub(b"", body)) for stream, _, body in got}) == 2
        assert len({names.findall(body)[0] for _, _, body in got}) == 20
        assert sum(how == "miss" for _, how, _ in got) == 2, got
        cache = g.json("/v1/cache")
        assert cache["coalesced"] + cache["hits"] == 18 and cache["entries"] == 2, cache


def test_reload():
    with pair() as (up, g):
        assert [ask(g)[1] for _ in range(3)] == ["miss", "hit", "hit"]
        g.json("/v1/reload", {})
        assert ask(g)[1] == "hit"  # it is the same backend
        config = json.loads(g.config.read_text())
        config["backends"][0]["name"] = "other"
        g.config.write_text(json.dumps(config))
        g.json("/v1/reload", {})
        assert ask(g)[1:] == ("miss", "other")
        assert ask(g)[1:] == ("hit", "other")


def keyed(s, key, path="/v1/chat/completions", method=None, **more):
    """(status, what the cache did, the body)"""
    body = {"model": "remote", "messages": QUESTION, "temperature": 0, "max_tokens": 4, **more}
    data = None if method else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(
                s.url + path, data, {"Authorization": "Bearer " + key}, method=method),
                timeout=60) as reply:
            return reply.status, reply.headers["x-terrace-cache"], reply.read()
    except urllib.error.HTTPError as e:
        return e.code, e.headers["x-terrace-cache"], e.read()


def usage(s, name):
    return next((r for r in s.json("/v1/usage?group_by=key")["data"] if r["key_name"] == name), {})


def test_keys():
    """Tenants never share, keys of one tenant do; a hit is in the books and costs no tokens."""
    with tempfile.TemporaryDirectory() as state:
        key = {name: new_key(state, name, "--tenant", tenant, *more) for name, tenant, *more in (
            ("ann", "acme", "--tpm", 60), ("bob", "acme"), ("eve", "umbrella"),
            ("far", "acme", "--models", "other"), ("root", "acme", "--role", "admin"))}
        with pair(state=state, key=key["root"]) as (up, g):
            def how(name, **more):
                return keyed(g, key[name], **more)[:2]
            assert [how(k) for k in ("ann", "ann", "bob", "bob", "bob")] == [
                (200, "miss")] + [(200, "hit")] * 4
            assert [how("eve", **more) for more in ({}, {"cache_salt": "x"}, {})] == [
                (200, "miss"), (200, "miss"), (200, "hit")]
            assert how("bob", user="u1") == how("bob", user="u2") == (200, "hit")
            assert how("far")[0] == 403  # whose key may not use the model
            assert {how("ann") for _ in range(20)} == {(200, "hit")}
            assert how("ann", max_tokens=60)[0] == 429  # its minute is used by the first
            until = time.monotonic() + 30
            while (row := usage(g, "bob")).get("requests") != 5:
                assert time.monotonic() < until, row
            assert row["completion_tokens"] == 20 and row["prompt_tokens"] > 0, row
            status, _, body = keyed(g, key["root"], "/v1/cache?tenant=key:umbrella", "DELETE")
            assert status == 200 and json.loads(body) == {"dropped": 2}, body
            assert how("eve") == (200, "miss") and how("bob") == (200, "hit")


def begin(s, key, **more):
    """A stream of which the first bytes have come."""
    connection = http.client.HTTPConnection("127.0.0.1", s.port, timeout=120)
    connection.request("POST", "/v1/chat/completions", json.dumps(
        {"model": "remote", "messages": QUESTION, "temperature": 0, "stream": True, **more}),
        {"Authorization": "Bearer " + key})
    reply = connection.getresponse()
    assert reply.status == 200 and reply.read(10)
    return connection, reply


def test_who_began_pays():
    """Also when he has left, and others hear the end."""
    with tempfile.TemporaryDirectory() as state:
        key = {name: new_key(state, name, "--tenant", "acme", *more) for name, *more in (
            ("ann", ), ("bob", "--tpm", 1000), ("root", "--role", "admin"))}
        with pair(state=state, key=key["root"]) as (up, g):
            more = {"max_tokens": 300, "ignore_eos": True, "stream_options": {"include_usage": True}}
            first, _ = begin(g, key["bob"], **more)
            _, other = begin(g, key["ann"], **more)
            assert other.headers["x-terrace-cache"] == "coalesced"
            first.close()
            text = other.read()
            assert text.endswith(b"data: [DONE]\n\n") and text.count(b"\n\n") > 50
            until = time.monotonic() + 30
            while not (row := usage(g, "bob")) or not usage(g, "ann"):
                assert time.monotonic() < until
                time.sleep(0.05)
            assert row["completion_tokens"] == 300, row
            body = {"model": "remote", "prompt": "x", "max_tokens": 700}
            assert keyed(g, key["bob"], "/v1/completions", **body)[0] == 429


if __name__ == "__main__":
    sys.exit(run_tests(dict(globals())) != 0)
