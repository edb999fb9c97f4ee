#!/usr/bin/env python3
"""Backends that speak Ollama's and Anthropic's own APIs, as the official OpenAI client sees them.
Upstreams are fakes that check each request, and make each answer, with the types of the official
packages (tests/vectors/upstream/make.py). Ends with "N passed, N failed"."""
import contextlib
import http.server
import json
import os
import pathlib
import sys
import tempfile
import threading

import openai

from backends import backend, gateway, wait_for
from service import ROOT, run_tests

sys.path.insert(0, str(ROOT / "tests/vectors/upstream"))
import make  # noqa: E402

CHAT = [{"role": "user", "content": "Weather?"}]
STREAMS = {"ollama": "application/x-ndjson", "anthropic": "text/event-stream",
           "openai": "text/event-stream"}
PATHS = {"ollama": {"/api/chat", "/api/generate"}, "anthropic": {"/v1/messages"},
         "openai": {"/v1/chat/completions"}}


class Fake(http.server.ThreadingHTTPServer):
    """An upstream. `reply` takes a request's body and gives (status, content type, pieces)."""
    daemon_threads = True

    def __init__(self, api):
        super().__init__(("127.0.0.1", 0), Handler)
        self.api, self.seen, self.wrong, self.left = api, [], [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_):
        self.left.set()  # the gateway has hung up

    def check(self, path, headers, body):
        assert path in PATHS[self.api], path
        if self.api == "ollama":
            make.check_ollama(body)
            assert headers["Authorization"] == "Bearer sk-up"
        elif self.api == "anthropic":
            make.check_anthropic(body)
            assert headers["x-api-key"] == "sk-up" and "Authorization" not in headers
            assert headers["anthropic-version"] == "2023-06-01"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def head(self, status, kind, *more):
        self.send_response(status)
        for name, value in (("Content-Type", kind), *more):
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self):
        known = {"openai": ["/v1/models"], "ollama": ["/api/version", "/v1/models"],
                 "anthropic": ["/v1/models?limit=1000"]}[self.server.api]
        if self.server.api == "anthropic" and self.headers["x-api-key"] != "sk-up":
            known = []
        body = json.dumps({"version": "0.12.6", "data": [{"type": "model", "id": "up"}]}).encode()
        self.head(200 if self.path in known else 404, "application/json",
                  ("Content-Length", str(len(body))))
        self.wfile.write(body)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            self.server.check(self.path, self.headers, body)
        except Exception as e:
            self.server.wrong.append(f"{body}: {e!r}")
        self.server.seen.append(body)
        status, kind, pieces = self.server.reply(body)
        self.head(status, kind, ("Transfer-Encoding", "chunked"))
        for piece in pieces:
            piece = piece.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


def ollama_says(*texts, calls=(), thinking=None, reason="stop"):
    """A reply of Ollama: whole or as a stream, as it is asked."""
    def reply(body):
        last = {"done_reason": reason, **make.COUNTS}
        if "prompt" in body:
            parts = [make.written(False, t) for t in texts] + [make.written(True, **last)]
            whole = make.written(True, "".join(texts), **last)
        else:
            parts = [make.line({"thinking": thinking})] if thinking else []
            parts += [make.line({"content": t}) for t in texts]
            parts += [make.line({"tool_calls": [c]}) for c in calls]
            parts += [make.line({}, True, **last)]
            whole = make.line({"content": "".join(texts), **({"thinking": thinking} if thinking
                              else {}), **({"tool_calls": list(calls)} if calls else {})},
                              True, **last)
        if body["stream"]:
            return 200, STREAMS["ollama"], [make.lines(p) for p in parts]
        return 200, "application/json; charset=utf-8", [json.dumps(whole)]
    return reply


def claude_says(*texts, uses=(), thinking=None, reason="end_turn"):
    def reply(body):
        blocks = [{"type": "thinking", "thinking": thinking, "signature": "s"}] if thinking else []
        blocks += [make.text("".join(texts))] if texts else []
        blocks += uses
        if not body["stream"]:
            whole = make.claudes(blocks, reason, cache_read_input_tokens=4)
            return 200, "application/json", [json.dumps(whole)]
        pieces = [make.start(cache_read_input_tokens=4), {"type": "ping"}]
        for i, b in enumerate(blocks):
            if b["type"] == "text":
                pieces += make.block(i, make.text(""), *map(make.says, texts))
            elif b["type"] == "thinking":
                pieces += make.block(i, {"type": "thinking", "thinking": "", "signature": ""},
                                     {"type": "thinking_delta", "thinking": thinking})
            else:
                whole = json.dumps(b["input"])
                pieces += make.block(i, {**b, "input": {}}, *(
                    {"type": "input_json_delta", "partial_json": s}
                    for s in (whole[:3], whole[3:])))
        return 200, STREAMS["anthropic"], [make.events(p) for p in pieces + make.last(reason)]
    return reply


SAYS = {"ollama": ollama_says, "anthropic": claude_says}


@contextlib.contextmanager
def serving(*apis, args=(), **more):
    """Fakes, one of each name, all of which serve "m", and a gateway in front of them."""
    fakes = [Fake(api) for api in apis]
    with tempfile.TemporaryDirectory() as folder:
        key = pathlib.Path(folder) / "key"
        key.write_text("sk-up\n")
        rows = [backend(f"{f.api}-{i}", f.url, api=f.api, key_file=str(key),
                        kind="anthropic" if f.api == "anthropic" else "ollama" if f.api == "ollama"
                        else "openai", models=[{"name": "m", "as": "up"}])
                for i, f in enumerate(fakes)]
        with gateway(rows, *args, balance={"policy": "round-robin", **more}) as g:
            client = openai.OpenAI(base_url=g.url + "/v1", api_key="none", max_retries=0)
            g.ask = lambda **q: client.chat.completions.create(
                **{"model": "m", "messages": CHAT, **q})
            g.client = client
            try:
                yield g, *fakes
            finally:
                for f in fakes:
                    f.shutdown()
                    f.server_close()
    assert g.status == 0, g.log[-20:]
    assert not any(f.wrong for f in fakes), [f.wrong for f in fakes]


def collect(stream):
    """A stream as one answer: text, reasoning, calls, finish reason, usage."""
    text, reasoning, calls, finish, usage, ids = "", "", [], None, None, set()
    for chunk in stream:
        ids.add(chunk.id)
        usage = chunk.usage or usage
        for c in chunk.choices:
            text += c.delta.content or ""
            reasoning += getattr(c.delta, "reasoning_content", None) or ""
            calls += c.delta.tool_calls or []
            finish = c.finish_reason or finish
    assert len(ids) == 1 and ids.pop().startswith("chatcmpl-")
    return text, reasoning, calls, finish, usage


def test_chat():
    for api, prompt in (("ollama", 9), ("anthropic", 13)):
        with serving(api) as (g, fake):
            fake.reply = SAYS[api]("Rain, ", "é", thinking="Hm.")
            raw = g.client.chat.completions.with_raw_response.create(
                model="m", messages=CHAT, max_tokens=7, temperature=0.5)
            got = raw.parse()
            assert raw.headers["x-terrace-backend"] == api + "-0"
            assert got.model == "m" and got.choices[0].finish_reason == "stop"
            assert got.choices[0].message.content == "Rain, é"
            assert got.choices[0].message.reasoning_content == "Hm."
            assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (prompt, 2)
            stream = g.ask(stream=True, stream_options={"include_usage": True})
            text, reasoning, _, finish, usage = collect(stream)
            assert (text, reasoning, finish) == ("Rain, é", "Hm.", "stop")
            assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, 2)
            assert collect(g.ask(stream=True))[4] is None
            assert [b["stream"] for b in fake.seen] == [False, True, True]
            # the books know what was used, whether the client asked or not
            m = g.metrics()
            label = f'{{backend="{api}-0"}}'
            assert m["terrace_backend_prompt_tokens_total" + label] == 3 * prompt
            assert m["terrace_backend_completion_tokens_total" + label] == 6


def test_completion():
    with serving("ollama") as (g, fake):
        fake.reply = ollama_says(" two,", " three", reason="length")
        got = g.client.completions.create(model="m", prompt="One,", max_tokens=4)
        assert got.choices[0].text == " two, three" and got.choices[0].finish_reason == "length"
        chunks = list(g.client.completions.create(model="m", prompt="One,", stream=True))
        assert "".join(c.choices[0].text for c in chunks) == " two, three"
        assert fake.seen[0]["raw"] and fake.seen[1]["options"] == {"num_predict": 16}


def test_tools():
    first = {"ollama": ollama_says(calls=[make.OCALL]),
             "anthropic": claude_says(uses=[make.USE], reason="tool_use")}
    for api, reply in first.items():
        with serving(api) as (g, fake):
            for stream in (False, True):
                fake.reply = reply
                if stream:
                    _, _, calls, finish, _ = collect(g.ask(tools=[make.TOOL], stream=True))
                else:
                    choice = g.ask(tools=[make.TOOL]).choices[0]
                    calls, finish = choice.message.tool_calls, choice.finish_reason
                assert finish == "tool_calls" and calls[0].id
                assert calls[0].function.name == "weather"
                assert json.loads(calls[0].function.arguments) == {"city": "Oslo"}
                fake.reply = SAYS[api]("Rain.")
                call = {"id": calls[0].id, "type": "function", "function":
                        {"name": "weather", "arguments": calls[0].function.arguments}}
                got = g.ask(tools=[make.TOOL], messages=CHAT + [
                    {"role": "assistant", "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": call["id"], "content": "rain"}])
                assert got.choices[0].message.content == "Rain."
                said = fake.seen[-1]["messages"]
                if api == "ollama":
                    assert said[2]["tool_name"] == "weather", said
                else:
                    assert said[2]["content"][0]["tool_use_id"] == call["id"], said


def test_what_only_a_backend_does():
    """Images, schemas and forced calls, none of which the gateway's own engine takes."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": make.SCHEMA}}
    with serving("ollama") as (g, fake):
        fake.reply = ollama_says("{}")
        g.ask(messages=make.LOOK, response_format=schema, reasoning_effort="low", seed=3,
              extra_body={"keep_alive": "1m"})
        body = fake.seen[0]
        assert body["format"] == make.SCHEMA and body["think"] == "low"
        assert body["messages"][0]["images"] == [make.PNG] and body["keep_alive"] == "1m"
    with serving("anthropic") as (g, fake):
        fake.reply = claude_says("{}")
        g.ask(messages=make.LOOK, response_format=schema, tools=[make.TOOL],
              tool_choice="required")
        body = fake.seen[0]
        assert body["output_config"]["format"]["schema"] == make.SCHEMA
        assert body["tool_choice"] == {"type": "any"} and body["max_tokens"] == 4096


def fails(what, kind, *words):
    try:
        what()
    except kind as e:
        assert all(w in str(e) for w in words) and "127.0.0.1" not in str(e), e
        return e
    raise AssertionError("taken")


def test_what_it_cannot_say():
    with serving("ollama") as (g, fake):
        for field, value in (("n", 2), ("logprobs", True), ("logit_bias", {"5": 1}),
                             ("tool_choice", "required")):
            e = fails(lambda: g.ask(tools=[make.TOOL], **{field: value}), openai.BadRequestError,
                      field, "ollama")
            assert e.param == field
        fails(lambda: g.ask(extra_body={"wizardry": 1}), openai.BadRequestError, "wizardry")
        assert not fake.seen
    with serving("anthropic") as (g, fake):
        fails(lambda: g.client.completions.create(model="m", prompt="a"), openai.BadRequestError,
              "completions")


def test_another_backend_can():
    """Who has no words for a request is passed over, and no failure is counted."""
    with serving("ollama", "openai", retries=0) as (g, first, second):
        first.reply = ollama_says("from the first")
        answer = make.whole({"content": "from the second"}, "stop", make.usage(1, 1))
        second.reply = lambda body: (200, "application/json", [json.dumps(answer)])
        for _ in range(3):
            got = g.ask(logit_bias={"5": 1})
            assert got.choices[0].message.content == "from the second"
        assert not first.seen and all(b["logit_bias"] for b in second.seen)
        m = g.metrics()
        assert m.get('terrace_backend_outcomes_total{backend="ollama-0",outcome="failed"}', 0) == 0


def test_errors():
    with serving("ollama") as (g, fake):
        fake.reply = lambda body: (404, "application/json", ['{"error":"model \'up\' not found"}'])
        fails(g.ask, openai.NotFoundError, "model 'up' not found")
        fake.reply = lambda body: (401, "application/json", ['{"error":"who?"}'])
        fails(g.ask, openai.InternalServerError, "refuses our key")
        fake.reply = lambda body: (400, "text/html", ["<html>"])
        fails(g.ask, openai.InternalServerError, "not JSON")
    with serving("anthropic") as (g, fake):
        fake.reply = lambda body: (400, "application/json", [json.dumps(
            {"type": "error", "error": {"type": "invalid_request_error",
                                        "message": "prompt is too long"}})])
        fails(g.ask, openai.BadRequestError, "prompt is too long")
        fake.reply = lambda body: (429, "application/json", ["{}"])
        fails(g.ask, openai.RateLimitError)


def test_garbage():
    """What is no answer of the dialect is a clear 502, or the end of the stream with an error."""
    hello = make.line({"content": "Hello"})
    done = make.line({}, True, **make.COUNTS)
    ndjson, event = STREAMS["ollama"], STREAMS["anthropic"]
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    hi = [make.start(), *make.block(0, make.text(""), make.says("Hello"))]
    cases = [
        ("ollama", False, "application/json", ["{}"], "garbled"),
        ("ollama", False, "application/json", [json.dumps(hello)], "garbled"),
        ("ollama", False, ndjson, [make.lines(hello, done)], "garbled"),
        ("ollama", True, "application/json", [json.dumps(done)], "garbled"),
        ("ollama", True, ndjson, ["<html>\n"], "garbled"),
        ("ollama", True, ndjson, ['{"error":"out of memory"}\n'], "out of memory"),
        ("ollama", True, ndjson, [make.lines(hello), '{"error":"out of memory"}\n'], "memory"),
        ("ollama", True, ndjson, [make.lines(hello)], "ended"),
        ("ollama", True, ndjson, [make.lines(hello), '{"mess'], "ended"),
        ("anthropic", False, "application/json", ['{"content":1}'], "garbled"),
        ("anthropic", True, event, [make.events(*hi, overloaded)], "Overloaded"),
        ("anthropic", True, event, [make.events(*hi)], "ended"),
        ("anthropic", True, event, [make.events(*hi), "data: [DONE]\n\n"], "garbled"),
    ]
    for api in ("ollama", "anthropic"):
        with serving(api, retries=0) as (g, fake):
            for its, stream, kind, pieces, word in cases:
                if its != api:
                    continue
                fake.reply = lambda body: (200, kind, pieces)
                wait_for(lambda: g.json("/v1/backends")["data"][0]["state"] == "healthy")
                fails(lambda: collect(g.ask(stream=True)) if stream else g.ask(), openai.APIError,
                      api + "-0", word)
                fake.reply = SAYS[api]("Fine.")
                wait_for(lambda: g.json("/v1/backends")["data"][0]["state"] != "ejected")
                assert g.ask().choices[0].message.content == "Fine."


def test_failover():
    """Before the first word another backend answers, of whatever dialect; nothing is spliced."""
    with serving("ollama", "anthropic", retries=2, retry_share=10) as (g, first, second):
        second.reply = claude_says("from the second")
        for bad in ((500, "application/json", ["{}"]),
                    (200, STREAMS["ollama"], ['{"error":"out of memory"}\n']),
                    (200, STREAMS["ollama"], ["what?\n"])):
            first.reply = lambda body: bad
            for _ in range(2):
                assert collect(g.ask(stream=True))[0] == "from the second"
        assert first.seen and len(second.seen) == 6


def test_cancel():
    for api, piece in (("ollama", make.lines(make.line({"content": "word "}))),
                       ("anthropic", make.events({"type": "content_block_delta", "index": 0,
                                                  "delta": make.says("word ")}))):
        with serving(api) as (g, fake):
            def endless(body):
                def pieces():
                    yield make.events(make.start()) if api == "anthropic" else piece
                    while True:
                        yield piece
                return 200, STREAMS[api], pieces()
            fake.reply = endless
            stream = g.ask(stream=True)
            assert next(iter(stream)).choices[0].delta.role == "assistant"
            stream.close()
            assert fake.left.wait(30), "the upstream was not told"
            wait_for(lambda: g.json("/v1/backends")["data"][0]["requests"] == 0)


def test_given_again():
    """The response cache keeps what the client got, not what the backend said."""
    for api in ("ollama", "anthropic"):
        with serving(api, args=("--response-cache", "8MiB")) as (g, fake):
            for stream in (False, True):
                fake.reply = SAYS[api]("Rain, ", "é", thinking="Hm.")
                seen = []
                for _ in range(2):
                    raw = g.client.chat.completions.with_raw_response.create(
                        model="m", messages=CHAT, temperature=0, stream=stream)
                    got = raw.parse()
                    got = collect(got) if stream else got.choices[0].message
                    seen.append((raw.headers["x-terrace-cache"], got))
                    fake.reply = SAYS[api]("Sun.")
                assert [s[0] for s in seen] == ["miss", "hit"], seen
                assert seen[0][1] == seen[1][1], seen
            assert len(fake.seen) == 2


def test_models_that_it_names():
    """A backend of the kind anthropic lists its models itself."""
    os.environ["TEST_DIALECT_KEY"] = "sk-up"
    fake = Fake("anthropic")
    fake.reply = claude_says("Hello")
    with gateway([backend("claude", fake.url + "/v1", kind="anthropic",
                          key_env="TEST_DIALECT_KEY")]) as g:
        wait_for(lambda: "up" in [m["id"] for m in g.json("/v1/models")["data"]])
        got = g.json("/v1/chat/completions", {"model": "up", "messages": CHAT})
        assert got["choices"][0]["message"]["content"] == "Hello"
    fake.shutdown()
    fake.server_close()
    assert g.status == 0 and not fake.wrong, (g.log[-20:], fake.wrong)


if __name__ == "__main__":
    sys.exit(run_tests(dict(globals())) != 0)
