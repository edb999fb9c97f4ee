#!/usr/bin/env python3
"""Every interface to adapters, on the real small model with a trained adapter and random ones: vLLM's,
SGLang's and llama-server's, the registry, the command line; and what survives kill -9."""
import concurrent.futures
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

import openai

from lora_files import random_adapter
from service import ROOT, TERRACE, Service, new_key, run_tests

ROOM = pathlib.Path(tempfile.mkdtemp(prefix="adapters-"))
ADAPTERS, STATE = ROOM / "root", ROOM / "state"
S = None       # the service
QUESTION = [{"role": "user", "content": "What is the capital of Italy?"}]
RANDOM = [f"r{i}" for i in range(6)]


def prepare():
    """The root with a trained adapter and random ones, and what must not be reached outside it."""
    ADAPTERS.mkdir()
    STATE.mkdir()
    shutil.copytree(ROOT / "tests/vectors/adapter/pirate", ADAPTERS / "pirate")
    shutil.copytree(ROOT / "tests/vectors/adapter/pirate", ROOM / "outside")
    for i, name in enumerate(RANDOM):
        random_adapter(ADAPTERS / name, seed=i, rank=2 << i % 4)
    random_adapter(ADAPTERS / "deep/er/r9", seed=9)
    shutil.copytree(ROOT / "tests/vectors/adapter/phi3_all", ADAPTERS / "other_base")
    (ADAPTERS / "empty").mkdir()
    shutil.copytree(ADAPTERS / "r0", ADAPTERS / "cut")
    file = ADAPTERS / "cut/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    (ADAPTERS / "link").symlink_to(ROOM / "outside")
    (ADAPTERS / "inner").symlink_to(ADAPTERS / "r1")


def call(method, path, body=None, key=None):
    """(status, JSON or text)"""
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = "Bearer " + key
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(S.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            status, text = reply.status, reply.read()
            kind = reply.headers["Content-Type"]
    except urllib.error.HTTPError as e:
        status, text, kind = e.code, e.read(), e.headers["Content-Type"]
    return status, json.loads(text) if kind == "application/json" else text.decode()


def client():
    return openai.OpenAI(base_url=S.url + "/v1", api_key="none", max_retries=0, timeout=120)


def chat(model=None, n=24, **extra):
    done = client().chat.completions.create(model=model or S.model, messages=QUESTION, max_tokens=n,
                                            temperature=0, extra_body=extra)
    return done.choices[0].message.content


def clean():
    """Nothing is registered, nothing is scaled."""
    call("POST", "/lora-adapters", [])
    for alias in call("GET", "/v1/adapters/aliases")[1]["data"]:
        assert call("DELETE", "/v1/adapters/aliases/" + alias["alias"])[0] == 200
    for a in call("GET", "/v1/adapters")[1]["data"]:
        assert call("DELETE", "/v1/adapters/" + a["name"].replace("/", "%2F"))[0] == 200
    assert call("GET", "/v1/adapters")[1]["data"] == []


def add(name, path=None, status=201, **more):
    got, body = call("POST", "/v1/adapters", {"name": name, "path": str(path or ADAPTERS / name), **more})
    assert got == status, (got, body)
    return body


def ids():
    return [m["id"] for m in call("GET", "/v1/models")[1]["data"]]


# ---- vLLM ----

def vllm_error(reply, status, kind, message):
    assert reply == (status, {"error": {"message": message, "type": kind, "param": None,
                                        "code": status}}), reply


def test_vllm_texts():
    clean()
    missing = "Both 'lora_name' and 'lora_path' must be provided."
    for body in ({}, {"lora_name": "x"}, {"lora_path": "/x"}, {"lora_name": "", "lora_path": "p"},
                 {"lora_name": None, "lora_path": None}):
        vllm_error(call("POST", "/v1/load_lora_adapter", body), 400, "InvalidUserInput", missing)
    pirate = {"lora_name": "pirate", "lora_path": str(ADAPTERS / "pirate")}
    assert call("POST", "/v1/load_lora_adapter", pirate) == (
        200, "Success: LoRA adapter 'pirate' added successfully.")
    vllm_error(call("POST", "/v1/load_lora_adapter", pirate), 400, "InvalidUserInput",
               "The lora adapter 'pirate' has already been loaded. If you want to load the adapter "
               "in place, set 'load_inplace' to True.")
    assert call("POST", "/v1/load_lora_adapter", {**pirate, "load_inplace": True})[0] == 200
    status, body = call("POST", "/v1/load_lora_adapter", {"lora_name": "n", "lora_path": "nowhere"})
    assert status == 404 and body["error"]["type"] == "NotFoundError", body
    for path in ("empty", "cut", "other_base"):
        status, body = call("POST", "/v1/load_lora_adapter",
                            {"lora_name": "n", "lora_path": str(ADAPTERS / path)})
        assert status in (400, 404) and body["error"]["code"] == status, (path, status, body)
    assert "n" not in ids()
    for body in ({}, {"lora_name": ""}, {"lora_name": None}):
        vllm_error(call("POST", "/v1/unload_lora_adapter", body), 400, "InvalidUserInput",
                   "'lora_name' needs to be provided to unload a LoRA adapter.")
    assert call("POST", "/v1/unload_lora_adapter", {"lora_name": "pirate", "lora_int_id": 1}) == (
        200, "Success: LoRA adapter 'pirate' removed successfully.")
    vllm_error(call("POST", "/v1/unload_lora_adapter", {"lora_name": "pirate"}), 404, "NotFoundError",
               "The lora adapter 'pirate' cannot be found.")


def test_vllm_serves():
    clean()
    base = chat()
    assert call("POST", "/v1/load_lora_adapter",
                {"lora_name": "pirate", "lora_path": str(ADAPTERS / "pirate")})[0] == 200
    listed = call("GET", "/v1/models")[1]["data"]
    assert listed[0]["id"] == S.model and listed[0]["parent"] is None
    card = next(m for m in listed if m["id"] == "pirate")
    assert card["parent"] == S.model and card["root"] == str(ADAPTERS / "pirate"), card
    assert card["max_model_len"] == listed[0]["max_model_len"] and card["object"] == "model"
    assert client().models.retrieve("pirate").id == "pirate"
    done = client().chat.completions.create(model="pirate", messages=QUESTION, max_tokens=24,
                                            temperature=0)
    assert done.model == "pirate" and done.choices[0].message.content.startswith("Arr"), done
    stream = client().chat.completions.create(model="pirate", messages=QUESTION, max_tokens=24,
                                              temperature=0, stream=True)
    pieces = [c.choices[0].delta.content or "" for c in stream]
    assert "".join(pieces) == done.choices[0].message.content
    assert chat() == base and not base.startswith("Arr")
    tokens = [call("POST", "/tokenize", {"model": m, "prompt": "Arr, matey"})[1] for m in (S.model, "pirate")]
    assert tokens[0]["tokens"] == tokens[1]["tokens"]
    assert call("POST", "/v1/unload_lora_adapter", {"lora_name": "pirate"})[0] == 200
    assert "pirate" not in ids()
    try:
        chat("pirate")
        raise AssertionError("no error")
    except openai.NotFoundError as e:
        assert e.code == "model_not_found", e


def test_vllm_keeps_what_is_relied_on():
    clean()
    add("pirate")
    assert call("PUT", "/v1/adapters/aliases/support@prod", {"adapter": "pirate"})[0] == 200
    status, body = call("POST", "/v1/unload_lora_adapter", {"lora_name": "pirate"})
    assert status == 400 and "support@prod" in body["error"]["message"], body
    assert call("DELETE", "/v1/adapters/aliases/support@prod")[0] == 200
    assert call("POST", "/v1/unload_lora_adapter", {"lora_name": "pirate"})[0] == 200


# ---- SGLang ----

def test_sglang():
    clean()
    pirate = str(ADAPTERS / "pirate")
    assert call("POST", "/load_lora_adapter", {"lora_name": "p", "lora_path": pirate, "pinned": True}) == (
        200, {"success": True, "error_message": "", "loaded_adapters": {"p": pirate}})
    assert call("GET", "/v1/adapters/p")[1]["pin"] is True
    assert chat("p").startswith("Arr")
    status, body = call("POST", "/load_lora_adapter", {"lora_name": "p", "lora_path": pirate})
    assert status == 400 and not body["success"] and body["error_message"], body
    assert body["loaded_adapters"] == {"p": pirate}
    assert call("POST", "/unload_lora_adapter", {"lora_name": "p"}) == (
        200, {"success": True, "error_message": "", "loaded_adapters": {}})
    for path, body in (("/load_lora_adapter", {"lora_name": "p"}), ("/unload_lora_adapter", {}),
                       ("/unload_lora_adapter", {"lora_name": "p"}),
                       ("/load_lora_adapter", {"lora_name": "p", "lora_path": "/etc"})):
        status, body = call("POST", path, body)
        assert status == 400 and body["success"] is False and body["error_message"], body


# ---- llama-server ----

def test_llama_server():
    clean()
    base = chat()
    add("pirate")
    add("r2")
    listed = {a["name"]: a for a in call("GET", "/lora-adapters")[1]}
    assert all(a["scale"] == 0 for a in listed.values()), listed
    assert listed["pirate"]["path"] == str(ADAPTERS / "pirate")
    pirate, r2 = listed["pirate"]["id"], listed["r2"]["id"]
    by_name, half = chat("pirate"), chat(adapter="pirate:0.5")
    assert chat(lora=[{"id": pirate, "scale": 1.0}]) == by_name
    assert chat(lora=[{"id": pirate, "scale": 0.5}, {"id": r2, "scale": 0}]) == half
    assert call("POST", "/lora-adapters", [{"id": pirate, "scale": 1}]) == (200, {"success": True})
    assert {a["name"]: a["scale"] for a in call("GET", "/lora-adapters")[1]} == {"pirate": 1, "r2": 0}
    assert chat() == by_name, "a request that chooses nothing"
    assert chat(lora=[]) == base and chat(adapter=[]) == base, "and one that chooses none"
    assert chat("r2") == chat(adapter="r2") != by_name
    assert call("POST", "/lora-adapters", [{"id": r2, "scale": 0.25}])[0] == 200
    assert {a["name"]: a["scale"] for a in call("GET", "/lora-adapters")[1]} == {"pirate": 0, "r2": 0.25}
    assert call("POST", "/lora-adapters", [])[0] == 200
    assert chat() == base
    for bad in (b"{}", b"[", b"[1]", b'[{"id":99999,"scale":1}]', b'[{"id":0}]'):
        assert call("POST", "/lora-adapters", bad)[0] == 400, bad
    status, body = call("POST", "/v1/chat/completions",
                        {"messages": QUESTION, "lora": [{"id": 99999, "scale": 1}]})
    assert status == 400 and body["error"]["param"] == "lora", body


# ---- choosing ----

def test_choices():
    clean()
    base = chat()
    add("pirate")
    add("r1")
    assert call("PUT", "/v1/adapters/aliases/support@prod", {"adapter": "pirate"})[0] == 200
    by_name = chat("pirate")
    for same in (chat(adapter="pirate"), chat(adapter=["pirate"]), chat(adapter={"name": "pirate"}),
                 chat(adapter="pirate:1"), chat("support@prod"), chat(adapter="support@prod"),
                 chat(f"{S.model}:pirate"), chat("pirate@1"), chat("pirate", adapter=[])):
        assert same == by_name
    raw = client().chat.completions.with_raw_response.create(
        model="support@prod", messages=QUESTION, max_tokens=1, extra_body={"adapter": "r1:0.5"})
    assert "adapter=pirate@1,r1@1:0.5; " in raw.headers["x-terrace-route"], raw.headers
    both = chat(adapter=["pirate", "r1:0.5"])
    assert both == chat("pirate", adapter="r1:0.5") == chat("r1", n=24, adapter=[]) or both != by_name
    assert chat(adapter="pirate:0") == base
    done = client().completions.create(model="pirate", prompt="Hello", max_tokens=8, temperature=0)
    assert done.model == "pirate" and done.usage.completion_tokens == 8
    for name, status, code in (("nobody", 404, "adapter_not_found"), (["pirate"] * 2, 400, None),
                               (["r1", "pirate", "a", "b", "c"], 400, None)):
        got, body = call("POST", "/v1/chat/completions", {"messages": QUESTION, "adapter": name})
        assert got == status and body["error"]["code"] == code, body
        assert body["error"]["param"] == "adapter", body


def test_own_adapter():
    """A user's adapter comes without being named, and gives way to what is."""
    clean()
    base = chat()
    add("pirate")
    add("r1")
    status, body = call("PUT", "/v1/users/u%40example.org/adapter", {"adapter": "pirate"})
    assert status == 200 and body["data"] == [{"object": "adapter.user", "user": "u@example.org",
                                               "adapter": "pirate", "base_model": S.model}], body
    assert call("GET", "/v1/users/u%40example.org/adapter")[1] == body
    own = chat(user="u@example.org")
    assert own == chat("pirate") != base
    assert chat(user="somebody else") == base
    assert chat(user="u@example.org", adapter="r1") == chat("r1")
    assert chat(user="u@example.org", adapter=[]) == base
    assert call("DELETE", "/v1/users/u%40example.org/adapter")[0] == 200
    assert call("GET", "/v1/users/u%40example.org/adapter")[0] == 404
    assert call("DELETE", "/v1/users/u%40example.org/adapter")[0] == 404
    assert call("PUT", "/v1/users/u/adapter", {"adapter": "nobody"})[0] == 404
    assert chat(user="u@example.org") == base


def test_mixed_batch():
    """Answers under many adapters at once are those of one request alone."""
    clean()
    for name in RANDOM:
        add(name)
    add("pirate")
    models = [*RANDOM, "pirate", S.model] * 2
    alone = {m: chat(m, n=32) for m in set(models)}
    assert len(set(alone.values())) >= 6, alone
    with concurrent.futures.ThreadPoolExecutor(len(models)) as pool:
        together = list(pool.map(lambda m: chat(m, n=32), models))
    assert together == [alone[m] for m in models]
    metrics = S.metrics()
    assert metrics["terrace_adapters{state=\"resident\"}"] == 7, metrics
    assert metrics["terrace_adapter_hits_total"] >= 7 and metrics["terrace_adapter_bytes"] > 0, metrics
    assert any(k.startswith("vllm:lora_requests_info{max_lora=") for k in metrics)


def test_same_bytes():
    """With the response cache on, equal requests follow aliases, users and scales at once."""
    global S
    usual = S
    with Service("--adapter-root", ADAPTERS, "--response-cache", "16MiB") as S:
        for name in ("r0", "r1", "pirate"):
            add(name)
        alone = {m: chat(m) for m in (S.model, "r0", "r1", "pirate")}
        assert chat("r0") == alone["r0"] and S.metrics()['terrace_cache_requests_total{result="hit"}'] >= 1
        for name in ("r0", "r1", "r0"):
            assert call("PUT", "/v1/adapters/aliases/a@b", {"adapter": name})[0] == 200
            assert call("PUT", "/v1/users/ann/adapter", {"adapter": name})[0] == 200
            for _ in range(3):
                assert chat("a@b") == alone[name] and chat(user="ann") == alone[name]
        ids = {a["name"]: a["id"] for a in call("GET", "/lora-adapters")[1]}
        for name in ("r1", "pirate", "r1"):
            assert call("POST", "/lora-adapters", [{"id": ids[name], "scale": 1}])[0] == 200
            for _ in range(3):
                assert chat() == alone[name], name
        assert call("POST", "/lora-adapters", [])[0] == 200
        assert chat() == alone[S.model]
        add("r0", ADAPTERS / "r2", status=200)
        assert chat("a@b") == chat("r0") != alone["r0"]
    S = usual


def test_keys():
    """Roles, and the adapters that a key may name, whatever reference it uses."""
    global S
    usual, state = S, ROOM / "keys"
    state.mkdir()
    admin = new_key(state, "root", "--role", "admin")
    limited = new_key(state, "ann", "--adapters", "r*,*@prod")
    with Service("--adapter-root", ADAPTERS, state=state, key=admin) as S:
        for name in ("r0", "pirate"):
            assert call("POST", "/v1/adapters", {"name": name, "path": name}, key=admin)[0] == 201
        assert call("PUT", "/v1/adapters/aliases/p@prod", {"adapter": "pirate"}, key=admin)[0] == 200
        for method, path in (("POST", "/v1/adapters"), ("POST", "/v1/load_lora_adapter"),
                             ("POST", "/load_lora_adapter"), ("POST", "/lora-adapters"),
                             ("DELETE", "/v1/adapters/r0"), ("PUT", "/v1/users/ann/adapter")):
            assert call(method, path, {}, key=limited)[0] == 403, path
            assert call(method, path, {})[0] == 401, path
        lora = call("GET", "/lora-adapters", key=admin)[1]
        pirate = next(a["id"] for a in lora if a["name"] == "pirate")

        def seen(key):
            return [[a["name"] for a in call("GET", "/lora-adapters", key=key)[1]],
                    [a["name"] for a in call("GET", "/v1/adapters", key=key)[1]["data"]],
                    [m["id"] for m in call("GET", "/v1/models", key=key)[1]["data"] if m["parent"]]]
        assert seen(limited) == [["r0"]] * 3 and seen(admin) == [["pirate", "r0"]] * 3
        assert call("GET", "/v1/adapters/pirate", key=limited)[0] == 404
        assert call("GET", "/v1/adapters/pirate/versions", key=limited)[0] == 404
        assert call("GET", "/v1/adapters/p@prod", key=limited)[0] == 200
        for more, status in (({"model": "r0"}, 200), ({"adapter": "r0@1"}, 200),
                             ({"model": f"{S.model}:r0"}, 200), ({"adapter": "p@prod"}, 200),
                             ({"model": "pirate"}, 403), ({"adapter": ["r0", "pirate"]}, 403),
                             ({"model": f"{S.model}:pirate"}, 403), ({"adapter": "pirate@1"}, 403),
                             ({"lora": [{"id": pirate, "scale": 1}]}, 403)):
            got, body = call("POST", "/v1/chat/completions",
                             {"messages": QUESTION, "max_tokens": 2, **more}, key=limited)
            assert got == status, (more, body)
        env = {**os.environ, "TERRACE_API_KEY": limited}
        done = subprocess.run([TERRACE, "adapter", "rm", "r0", "--url", S.url], env=env,
                              capture_output=True, text=True)
        assert done.returncode == 1 and "admin" in done.stderr, done
    S = usual


# ---- the registry ----

def test_registry():
    clean()
    made = add("style", ADAPTERS / "r0", labels={"team": "data"}, owner="ann", pin=True)
    assert made["object"] == "adapter" and made["version"] == 1 and made["rank"] == 2, made
    assert made["base_model"] == S.model and made["labels"] == {"team": "data"} and made["pin"]
    assert made["owner"] == "ann" and len(made["digest"]) == 64 and made["bytes"] > 0
    again = add("style", ADAPTERS / "r1", status=200)
    assert again["version"] == 2 and again["labels"] == {"team": "data"}, again
    versions = call("GET", "/v1/adapters/style/versions")[1]
    assert versions["current"] == 2 and [v["version"] for v in versions["data"]] == [1, 2]
    assert versions["data"][0]["digest"] == made["digest"] != again["digest"]
    second = chat("style")
    status, body = call("POST", "/v1/adapters/style/rollback")
    assert status == 200 and body["version"] == 1 and body["digest"] == made["digest"], body
    first = chat("style")
    assert first != second and chat("style@2") == second, (first, second, chat("style@2"))
    assert call("POST", "/v1/adapters/style/rollback", {"version": 2})[1]["version"] == 2
    assert chat("style") == second
    assert call("POST", "/v1/adapters/style/rollback", {"version": 7})[0] == 404
    status, body = call("PATCH", "/v1/adapters/style", {"labels": {"stage": "test"}, "owner": ""})
    assert status == 200 and body["labels"] == {"stage": "test"} and body["owner"] == "", body
    assert call("POST", "/v1/adapters/style/unpin")[1]["pin"] is False
    assert call("POST", "/v1/adapters/style/pin")[1]["pin"] is True
    assert call("POST", "/v1/adapters/style/unpin")[0] == 200
    assert call("POST", "/v1/adapters/style/unload")[1]["state"] == "registered"
    assert call("POST", "/v1/adapters/style/load")[1]["state"] == "resident"
    card = call("GET", "/v1/adapters/style")[1]
    assert card["requests"] >= 4 and card["last_used"] >= card["created"], card
    assert call("DELETE", "/v1/adapters/style") == (
        200, {"object": "adapter", "name": "style", "deleted": True})
    for method, path in (("GET", ""), ("DELETE", ""), ("PATCH", ""), ("GET", "/versions"),
                         ("POST", "/load"), ("POST", "/unload"), ("POST", "/pin"), ("POST", "/rollback")):
        body = {} if method in ("PATCH", "POST") else None
        status, reply = call(method, "/v1/adapters/style" + path, body)
        assert status == 404 and reply["error"]["code"] == "adapter_not_found", (method, path, reply)


def test_list():
    clean()
    add("r0", labels={"team": "a", "n": "0"}, owner="ann")
    add("r1", labels={"team": "b"}, owner="bob")
    add("deep/r9", ADAPTERS / "deep/er/r9", labels={"team": "a"})
    assert call("POST", "/v1/adapters/r0/unload")[0] == 200
    assert call("POST", "/v1/adapters/deep%2Fr9/unload")[0] == 200
    assert call("POST", "/v1/adapters/r1/load")[0] == 200

    def names(query):
        return [a["name"] for a in call("GET", "/v1/adapters?" + query)[1]["data"]]
    assert names("") == ["deep/r9", "r0", "r1"]
    assert names("label=team%3Da") == ["deep/r9", "r0"] and names("label=n") == ["r0"]
    assert names("owner=bob") == ["r1"] and names("base=nothing") == []
    assert names("base=" + S.model) == ["deep/r9", "r0", "r1"]
    assert names("state=resident") == ["r1"], names("state=resident")
    assert names("after=r0") == ["r1"], names("after=r0")
    page = call("GET", "/v1/adapters?limit=2")[1]
    assert page["has_more"] and len(page["data"]) == 2
    assert call("GET", "/v1/adapters?state=odd")[0] == 400
    assert call("GET", "/v1/adapters?limit=x")[0] == 400
    assert call("GET", "/v1/adapters/deep/r9")[1]["name"] == "deep/r9"
    assert call("GET", "/v1/adapters/deep%2Fr9/versions")[1]["current"] == 1
    assert chat("deep/r9", n=4) is not None


def test_aliases():
    clean()
    add("r0")
    add("r1")
    assert call("PUT", "/v1/adapters/aliases/s@prod", {"adapter": "r0"}) == (
        200, {"object": "adapter.alias", "alias": "s@prod", "adapter": "r0"})
    assert chat("s@prod") == chat("r0")
    assert call("PUT", "/v1/adapters/aliases/s@prod", {"adapter": "r1", "version": 1})[1]["version"] == 1
    assert chat("s@prod") == chat("r1")
    assert call("GET", "/v1/adapters/r1")[1]["aliases"] == ["s@prod"]
    assert call("GET", "/v1/adapters/s@prod")[1]["name"] == "r1"
    assert [a["alias"] for a in call("GET", "/v1/adapters/aliases")[1]["data"]] == ["s@prod"]
    assert call("DELETE", "/v1/adapters/aliases/s@prod")[0] == 200
    assert call("DELETE", "/v1/adapters/aliases/s@prod")[0] == 404
    assert call("PUT", "/v1/adapters/aliases/s@prod", {"adapter": "nobody"})[0] == 404
    assert call("PUT", "/v1/adapters/aliases/r0", {"adapter": "r1"})[0] in (400, 409)


def test_bad_bodies():
    clean()
    for body, param in ((b"{", None), (b"[]", None), (b"{}", "name"), (b'{"name":"x"}', "path"),
                        (b'{"name":"x","path":"r0","pth":1}', "pth"),
                        (b'{"name":"x","path":"r0","labels":[]}', "labels"),
                        (b'{"name":"x","path":"r0","pin":1}', "pin"),
                        (b'{"name":"aliases","path":"r0"}', "name")):
        status, reply = call("POST", "/v1/adapters", body)
        assert status == 400 and reply["error"]["param"] == param, (body, reply)
    for name in ("", "../x", "/x", "a b", "x" * 129, ".x", "a\nb", "a@1"):
        status, reply = call("POST", "/v1/adapters", {"name": name, "path": str(ADAPTERS / "r0")})
        assert status == 400, (name, reply)
    assert call("POST", "/v1/adapters", {"name": S.model, "path": str(ADAPTERS / "r0")})[0] in (400, 409)
    assert call("POST", "/v1/adapters", {"name": "x", "path": str(ADAPTERS / "r0"),
                                         "base_model": "nothing"})[0] in (400, 404)
    assert call("GET", "/v1/adapters")[1]["data"] == []


def test_paths():
    """Nothing outside the root is opened, whatever the path looks like."""
    clean()
    outside = ROOM / "outside"
    for path in (str(outside), "../outside", str(ADAPTERS / "../outside"), str(ADAPTERS / "link"),
                 "link", f"{ADAPTERS}/r0/../../outside", "/etc", "/", "..", "/proc/self/root" + str(outside),
                 f"{ADAPTERS}-not/x", "//" + str(outside)):
        for route, body in (("/v1/adapters", {"name": "x", "path": path}),
                            ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": path}),
                            ("/load_lora_adapter", {"lora_name": "x", "lora_path": path})):
            status, reply = call("POST", route, body)
            assert status in (400, 403, 404), (route, path, status, reply)
    assert call("GET", "/v1/adapters")[1]["data"] == []
    for name in ("..%2f..%2fetc%2fpasswd", "%2e%2e", "x%00y", "%ff"):
        for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/load"), ("GET", "/versions")):
            assert call(method, f"/v1/adapters/{name}{tail}")[0] in (400, 404), (method, name, tail)
    assert add("relative", "r0")["path"] == str(ADAPTERS / "r0")
    assert add("nested", "deep/er/r9")["path"] == str(ADAPTERS / "deep/er/r9")
    assert add("inner", "inner")["path"] == str(ADAPTERS / "r1"), "a link that stays inside"


# ---- the command line ----

def terrace(*args, status=0):
    done = subprocess.run([TERRACE, "adapter", *map(str, args), "--url", S.url], capture_output=True,
                          text=True, timeout=120, cwd=ADAPTERS)
    assert done.returncode == status, (args, done)
    return done.stdout if status == 0 else done.stderr


def test_command_line():
    clean()
    assert "no adapters" in terrace("list")
    out = terrace("add", "sql", "./r0", "--labels", "team=data,stage=test", "--owner", "ann")
    assert out.startswith("sql: version 1, rank 2, "), out
    assert terrace("add", "sql", "r1").startswith("sql: version 2, ")
    lines = terrace("list").splitlines()
    assert lines[0].split()[:4] == ["NAME", "VERSION", "BASE", "STATE"], lines
    assert lines[1].split()[:3] == ["sql", "2", S.model], lines
    assert json.loads(terrace("list", "--json"))["data"][0]["labels"] == {"team": "data", "stage": "test"}
    assert "sql" in terrace("list", "--label", "team=data") and "no adapters" in terrace("list", "--owner", "x")
    assert "resident" in terrace("load", "sql") and "registered" in terrace("unload", "sql")
    terrace("pin", "sql")
    assert "pinned" in terrace("list")
    terrace("unpin", "sql")
    assert terrace("alias", "support@prod", "sql", "--version", 1) == "support@prod -> sql version 1\n"
    assert terrace("rollback", "sql").startswith("sql: version 1")
    assert len(terrace("versions", "sql").splitlines()) == 3
    assert terrace("assign", "ann", "sql") == f"ann -> sql on {S.model}\n"
    shown = terrace("show", "sql")
    assert "support@prod" in shown and "owner        ann" in shown, shown
    terrace("unassign", "ann")
    terrace("unalias", "support@prod")
    terrace("rm", "sql")
    for verb in ("show", "load", "rm", "versions"):
        assert "sql" in terrace(verb, "sql", status=1)
    assert "outside" in terrace("add", "x", ROOM / "outside", status=1)


# ---- kill -9 ----

def test_kill():
    """What was acknowledged is there again, and an alias still points right."""
    global S
    clean()
    add("style", ADAPTERS / "r0", labels={"k": "v"}, owner="ann")
    add("style", ADAPTERS / "r1", status=200)
    add("pirate")
    assert call("PUT", "/v1/adapters/aliases/s@prod", {"adapter": "style", "version": 1})[0] == 200
    assert call("PUT", "/v1/users/ann/adapter", {"adapter": "pirate"})[0] == 200
    answers = [chat("style"), chat("s@prod"), chat("pirate")]
    before = call("GET", "/v1/adapters")[1]["data"]
    os.kill(S.pid, signal.SIGKILL)
    S.__exit__()
    S = start()
    after = call("GET", "/v1/adapters")[1]["data"]
    lasting = ("name", "version", "digest", "path", "labels", "owner", "aliases", "base_model", "pin")
    assert [[a[k] for k in lasting] for a in after] == [[a[k] for k in lasting] for a in before]
    assert [chat("style"), chat("s@prod"), chat("pirate")] == answers
    assert chat(user="ann") == answers[2]
    assert call("GET", "/v1/adapters/style/versions")[1]["current"] == 2


def start():
    return Service("--adapter-root", ADAPTERS, state=STATE).__enter__()


def main():
    global S
    prepare()
    S = start()
    try:
        failed = run_tests(globals())
    finally:
        S.__exit__()
        shutil.rmtree(ROOM)
    if S.status != 0:
        print("the server ended badly:\n" + "".join(S.log[-20:]))
        failed += 1
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
