"""Framing as it is on the wire, over raw sockets against a running server (TERRACE_URL)."""
import json
import os
import re
import socket

from service import run_tests

HOST, PORT = os.environ["TERRACE_URL"].removeprefix("http://").split(":")
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 5}


def connect():
    return socket.create_connection((HOST, int(PORT)), timeout=120)


def post(path, body, version="1.1", headers=""):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
            f"Content-Length: {len(data)}\r\n\r\n").encode() + data


def read_head(f):
    status = int(f.readline().split()[1])
    headers = {}
    while (line := f.readline()) not in (b"\r\n", b""):
        name, value = line.decode().split(":", 1)
        headers[name.lower()] = value.strip()
    return status, headers


def read_body(f, headers):
    if headers.get("transfer-encoding") != "chunked":
        return f.read(int(headers["content-length"])) if "content-length" in headers else f.read()
    body = b""
    while (n := int(f.readline(), 16)) > 0:
        body += f.read(n)
        assert f.readline() == b"\r\n"
    assert f.readline() == b"\r\n"
    return body


def ask(data):
    with connect() as s:
        s.sendall(data)
        f = s.makefile("rb")
        status, headers = read_head(f)
        return status, headers, read_body(f, headers)


def events(body):
    """Every event is one data line and one empty line, and nothing else is there."""
    text = body.decode()
    assert text.endswith("\n\n")
    parts = text[:-2].split("\n\n")
    for p in parts:
        assert re.fullmatch(r"data: [^\n]+", p), p
    return [p.removeprefix("data: ") for p in parts]


def test_response_has_length():
    status, headers, body = ask(post("/v1/chat/completions", CHAT))
    assert status == 200 and headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body)
    assert json.loads(body)["usage"]["completion_tokens"] == 5


def test_stream_framing():
    status, headers, body = ask(post("/v1/chat/completions", {
        **CHAT, "stream": True, "stream_options": {"include_usage": True}}))
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    assert headers["transfer-encoding"] == "chunked" and "content-length" not in headers
    data = events(body)
    assert data[-1] == "[DONE]"
    chunks = [json.loads(d) for d in data[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["delta"] == {}
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 5


def test_stream_http10():
    """Without chunks the end of the connection is the end of the stream."""
    status, headers, body = ask(post("/v1/chat/completions", {**CHAT, "stream": True}, "1.0"))
    assert status == 200 and "transfer-encoding" not in headers
    assert events(body)[-1] == "[DONE]"


def test_two_on_one_connection():
    with connect() as s:
        f = s.makefile("rb")
        for stream in (True, False, True):
            s.sendall(post("/v1/chat/completions", {**CHAT, "stream": stream}))
            status, headers = read_head(f)
            body = read_body(f, headers)
            assert status == 200 and (events(body)[-1] == "[DONE]" if stream else json.loads(body))


def test_pipelined():
    with connect() as s:
        s.sendall(post("/v1/chat/completions", {**CHAT, "stream": True}) +
                  b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        f = s.makefile("rb")
        status, headers = read_head(f)
        assert events(read_body(f, headers))[-1] == "[DONE]"
        status, headers = read_head(f)
        assert status == 200 and json.loads(read_body(f, headers)) == {"status": "ok"}


def test_request_id():
    _, headers, _ = ask(post("/v1/chat/completions", CHAT, headers="X-Request-ID: abc-1\r\n"))
    assert headers["x-request-id"] == "abc-1"


def test_malformed_json():
    for body in (b"", b"{", b"[]", b'{"messages":[]}', b"\xff\xfe", b'{"a":"\xff"}', b"[" * 5000):
        status, headers, reply = ask(post("/v1/chat/completions", body))
        error = json.loads(reply)["error"]
        assert status == 400 and error["type"] == "invalid_request_error" and error["message"]


def test_large_body():
    """Over the limit of inline parsing, so it goes through the pool; too long for the context."""
    status, _, reply = ask(post("/v1/chat/completions", {
        **CHAT, "messages": [{"role": "user", "content": "word " * 200000}]}))
    assert status == 400 and json.loads(reply)["error"]["code"] == "context_length_exceeded"


def test_half_close():
    """A client that shuts its side down has left: nothing is owed to it, and the server goes on."""
    with connect() as s:
        s.sendall(post("/v1/chat/completions", {**CHAT, "max_tokens": 3000, "ignore_eos": True}))
        s.shutdown(socket.SHUT_WR)
        s.makefile("rb").read()
    status, _, _ = ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 200


raise SystemExit(run_tests(dict(globals())) != 0)
