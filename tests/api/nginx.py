#!/usr/bin/env python3
"""Malformed and smuggling requests when nginx stands in front of Terrace, and when it stands behind
Terrace's gateway: whoever parses first, the one behind must see nothing but whole, wanted requests.
Ends with "N passed, N failed"."""
import json
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

from service import Service, run_tests

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 3}
NEXT = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def post(framing, body):
    return f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}{NEXT}"


# what each of these hides is NEXT: a parser that ends the first message elsewhere would see it
CASES = {
    "length and chunked": post("Content-Length: 4\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
    "chunked and length": post("Transfer-Encoding: chunked\r\nContent-Length: 4", "0\r\n\r\n"),
    "unknown coding": post("Transfer-Encoding: xchunked", "0\r\n\r\n"),
    "gzip, chunked": post("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"),
    "chunked twice": post("Transfer-Encoding: chunked, chunked", "0\r\n\r\n"),
    "two codings": post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "0\r\n\r\n"),
    "space before the colon": post("Transfer-Encoding : chunked", "0\r\n\r\n"),
    "tab before chunked": post("Transfer-Encoding:\tchunked\r\nContent-Length: 4", "0\r\n\r\n"),
    "vertical tab in a coding": post("Transfer-Encoding: \x0bchunked", "0\r\n\r\n"),
    "coding on 1.0": post("Transfer-Encoding: chunked", "0\r\n\r\n").replace("/1.1", "/1.0", 1),
    "two lengths": post("Content-Length: 2\r\nContent-Length: 3", "abc"),
    "a length twice": post("Content-Length: 2\r\nContent-Length: 2", "ab"),
    "length list": post("Content-Length: 2, 2", "ab"),
    "length +2": post("Content-Length: +2", "ab"),
    "length -2": post("Content-Length: -2", "ab"),
    "length 0x2": post("Content-Length: 0x2", "ab"),
    "length 2 2": post("Content-Length: 2 2", "ab"),
    "no digits": post("Content-Length:", ""),
    "length over 64 bits": post("Content-Length: 18446744073709551618", "ab"),
    "chunk size 0x2": post("Transfer-Encoding: chunked", "0x2\r\nab\r\n0\r\n\r\n"),
    "chunk size over 64 bits": post("Transfer-Encoding: chunked",
                                    "10000000000000002\r\nab\r\n0\r\n\r\n"),
    "chunk longer than its size": post("Transfer-Encoding: chunked", "2\r\nabc\r\n0\r\n\r\n"),
    "bare line feed after a chunk size": post("Transfer-Encoding: chunked", "2\nab\r\n0\r\n\r\n"),
    "bare line feed after a chunk": post("Transfer-Encoding: chunked", "2\r\nab\n0\r\n\r\n"),
    "folded trailer": post("Transfer-Encoding: chunked", "0\r\nA: b\r\n c\r\n\r\n"),
    "trailers ended by CR": post("Transfer-Encoding: chunked", "0\r\nA: b\r\n\rX\r\n\r\n"),
    "NUL in a value": post("A: b\0c\r\nContent-Length: 2", "ab"),
    "CR hides a coding": post("A: b\rTransfer-Encoding: chunked", "0\r\n\r\n"),
    "fold hides a length": post("A: b\r\n Content-Length: 2", "ab"),
    "head ended by CR": "GET / HTTP/1.1\r\nHost: a\r\n\rX" + NEXT,
    "line without a colon": post("abc\r\nContent-Length: 2", "ab"),
    "header without a name": post(": b\r\nContent-Length: 2", "ab"),
    "two Hosts": post("Host: b\r\nContent-Length: 2", "ab"),
    "HTTP/9.9": "GET / HTTP/9.9\r\nHost: a\r\n\r\n" + NEXT,
    "HTTP/2 preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + NEXT,
    "space in the target": "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT,
    "CONNECT": "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT,
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Nginx:
    """nginx on a free port in front of `port`; `with Nginx(port) as n:` ends it."""

    def __init__(self, port):
        self.upstream = port

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.port = free_port()
        root = pathlib.Path(self.folder.name)
        self.log = root / "access.log"
        (root / "nginx.conf").write_text(f"""
worker_processes 1; daemon off; pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log {self.log}; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;
  fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
  upstream terrace {{ server 127.0.0.1:{self.upstream}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{self.port};
    location / {{
      proxy_pass http://terrace; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host localhost; proxy_buffering off; proxy_request_buffering off;
    }}
  }}
}}
""")
        self.process = subprocess.Popen(["nginx", "-p", root, "-c", root / "nginx.conf"],
                                        stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return self
            except OSError:
                assert time.monotonic() < until and self.process.poll() is None
                time.sleep(0.05)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        self.folder.cleanup()


def send(port, data):
    """All that comes back until the other side closes, or is silent for a while."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
        s.sendall(data.encode("latin-1"))
        s.settimeout(1.0)
        out = b""
        try:
            while piece := s.recv(65536):
                out += piece
        except (TimeoutError, ConnectionResetError):
            pass
        return out


def ask(port, model):
    data = json.dumps({**CHAT, "model": model})
    answer = send(port, f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                        f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n{data}")
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]
    return answer


def not_found(s):
    """Requests that Terrace saw for paths that it does not have."""
    return sum(v for k, v in s.metrics().items() if k.startswith("terrace_http_requests_total")
               and 'route="-"' in k)


def test_nginx_in_front():
    with Service() as s, Nginx(s.port) as n:
        for name, data in CASES.items():
            before = not_found(s)
            answer = send(n.port, data)
            # nginx may take the first message as whole and answer the second one by itself asking
            # us: then the client did send two. What must not be is one message that nginx sees and
            # two that we see.
            seen = n.log.read_text().count("/smuggled")
            got = not_found(s) - before
            n.log.write_text("")
            assert got <= seen, f"{name}: {got:.0f} came through, nginx saw {seen}: {answer[:200]}"
        ask(n.port, s.model)


def test_nginx_behind_the_gateway():
    with Service() as far, Nginx(far.port) as n, tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "terrace.yaml"
        config.write_text("backends:\n  - {name: far, kind: openai, models: [far], "
                          f"url: 'http://127.0.0.1:{n.port}'}}\n")
        with Service("--config", config, "--response-cache", "8MiB") as s:
            for name, data in CASES.items():
                answer = send(s.port, data.replace("/v1/chat", "/v1/chat"))
                statuses = re.findall(rb"^HTTP/1\.[01] (\d+)", answer, re.M)
                assert all(st[0:1] in b"45" for st in statuses), f"{name}: {answer[:200]}"
                log = n.log.read_text()
                assert "smuggled" not in log, f"{name}: {log}"
            far_before = far.metrics()["vllm:generation_tokens_total"]
            far_model = far.model
            config.write_text(config.read_text().replace(
                "models: [far]", f"models: [{{name: far, as: '{far_model}'}}]"))
            s.json("/v1/reload", {})
            answers = [ask(s.port, "far") for _ in range(3)]  # the first is kept
            assert [a.count(b"x-terrace-cache: hit") for a in answers] == [0, 1, 1]
            assert far.metrics()["vllm:generation_tokens_total"] == far_before + 3


sys.exit(run_tests(dict(globals())) != 0)
