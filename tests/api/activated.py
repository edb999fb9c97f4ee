#!/usr/bin/env python3
"""An activated adapter on the small real model: what comes before its invocation is the base's, also
in the prefix cache. The pirate of the vectors, called by the assistant's header. Ends with "N passed,
N failed"."""
import json
import pathlib
import shutil
import sys
import tempfile
import time
import urllib.error

from service import ROOT, Service, run_tests

PIRATE = ROOT / "tests/vectors/adapter/pirate"
SYSTEM = "You are the keeper of a lighthouse, and answer in one short sentence. " * 12


def ask(s, model, salt=None):
    """The text, the prompt's tokens, and how many of them were in the cache."""
    body = {"model": model, "temperature": 0, "max_tokens": 20, "messages": [
        {"role": "system", "content": SYSTEM}, {"role": "user", "content": "Who are you?"}]}
    if salt:
        body["cache_salt"] = salt
    reply = s.json("/v1/chat/completions", body)
    usage = reply["usage"]
    return (reply["choices"][0]["message"]["content"], usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"])


def make_activated(s, folder):
    ids = s.json("/tokenize", {"prompt": "<|im_start|>assistant\n", "add_special_tokens": False})
    shutil.copytree(PIRATE, folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()),
                                  "alora_invocation_tokens": ids["tokens"]}))
    return len(ids["tokens"])


def test_base_prefix_is_shared():
    with tempfile.TemporaryDirectory() as root:
        with Service("--adapter-root", root, "--memory-limit", "500MiB", "--ctx", "2048") as s:
            n_header = make_activated(s, pathlib.Path(root) / "pirate")
            s.json("/v1/adapters", {"name": "pirate", "path": "pirate"})
            base, n_prompt, _ = ask(s, s.model)
            first, _, cached = ask(s, "pirate")
            assert first != base, first
            assert cached == n_prompt - n_header, (cached, n_prompt, n_header)
            again, _, cached = ask(s, "pirate")
            assert (again, cached) == (first, n_prompt - 1)
            alone, _, cached = ask(s, "pirate", salt="nobody else's")
            assert (alone, cached) == (first, 0)
            assert ask(s, s.model)[0] == base
        assert s.status == 0


def test_a_persona_outlives_a_restart():
    """Its prompt is read from its file, and a chat that activates the adapter says the same."""
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as state:
        options = ("--adapter-root", root, "--memory-limit", "500MiB", "--ctx", "2048")

        def answer(s):
            reply = s.json("/v1/chat/completions", {
                "persona": "keeper", "temperature": 0, "max_tokens": 20,
                "messages": [{"role": "user", "content": "Who are you?"}]})
            cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
            return reply["choices"][0]["message"]["content"], cached

        def wait(s, field, value):
            until = time.monotonic() + 60
            while not value(s.json("/v1/personas/keeper")[field]):
                assert time.monotonic() < until
                time.sleep(0.05)

        with Service(*options, state=state) as s:
            make_activated(s, pathlib.Path(root) / "pirate")
            s.json("/v1/adapters", {"name": "pirate", "path": "pirate"})
            made = s.json("/v1/personas", {"name": "keeper", "system": SYSTEM, "adapter": "pirate"})
            wait(s, "kept_bytes", bool)
            first = answer(s)
            assert first[0] != ask(s, s.model)[0] and first[1] == made["prompt_tokens"] > 100, first
        with Service(*options, state=state) as s:
            wait(s, "status", lambda status: status == "ready")
            assert any("persona keeper: " in line and "tokens from" in line for line in s.log)
            assert answer(s) == first, first
        assert s.status == 0


def test_it_must_fit_the_vocabulary():
    with tempfile.TemporaryDirectory() as root:
        folder = pathlib.Path(root) / "pirate"
        shutil.copytree(PIRATE, folder)
        config = folder / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()),
                                      "alora_invocation_tokens": [10**6]}))
        with Service("--adapter-root", root, "--memory-limit", "500MiB", "--ctx", "512") as s:
            try:
                s.json("/v1/adapters", {"name": "pirate", "path": "pirate"})
                raise AssertionError("it was taken")
            except urllib.error.HTTPError as e:
                assert e.code == 400 and b"alora_invocation_tokens" in e.read()
        assert s.status == 0


if __name__ == "__main__":
    sys.exit(run_tests(dict(globals())) != 0)
