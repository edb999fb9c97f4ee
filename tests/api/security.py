"""Who may do what: every route as every role, other tenants, keys that must be nowhere, pages of
other origins, TLS. The matrix follows from `terrace serve --routes`. Starts services of its own."""
import http.client
import json
import os
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import warnings

from lora_files import random_adapter
from service import TERRACE, Service, new_key, run_tests

STATE, ADAPTERS = tempfile.TemporaryDirectory(), tempfile.TemporaryDirectory()
random_adapter(pathlib.Path(ADAPTERS.name) / "theirs", seed=1)
SMALL = ["--memory-limit", "600MiB", "--ctx", "1024", "--log-level", "debug"]
LONG = "The harvest of the year was better than anybody had hoped for. " * 20
SECRET = "xyzzy-plugh-prompt"


def key_command(*args):
    subprocess.run([TERRACE, "key", *args, "--state-dir", STATE.name], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


KEYS = {
    "admin": new_key(STATE.name, "root", "--role", "admin", "--tenant", "acme"),
    "metrics": new_key(STATE.name, "prometheus", "--role", "metrics"),
    "user": new_key(STATE.name, "alice", "--tenant", "acme",
                    "--adapters", "acme-*"),
    "acme admin": new_key(STATE.name, "anna", "--role", "admin", "--tenant", "acme",
                          "--adapters", "acme-*"),
    "narrow admin": new_key(STATE.name, "nora", "--role", "admin", "--tenant", "acme",
                            "--adapters", "umbrella-*"),
    "other admin": new_key(STATE.name, "mallory-admin", "--role", "admin", "--tenant", "umbrella"),
    "other user": new_key(STATE.name, "mallory", "--tenant", "umbrella", "--adapters", "umbrella-*"),
    "revoked": new_key(STATE.name, "gone", "--role", "admin"),
    "limited": new_key(STATE.name, "fussy", "--models", "nothing*,other"),
    "wrong": "tk-" + "A" * 43,
}
key_command("revoke", "gone")
SERVICE = Service(*SMALL, "--allow-origin", "https://chat.example", "--adapter-root",
                  ADAPTERS.name, state=STATE.name,
                  key=KEYS["admin"]).__enter__()
attempts = 0


def ask(method, path, who=None, body=None, headers=None, port=None, source=None):
    """Status, headers and body. Failed attempts are limited by address, so they come from many."""
    global attempts
    attempts += 1
    source = source or f"127.0.{1 + attempts // 20 // 200}.{1 + attempts // 20 % 200}"
    connection = http.client.HTTPConnection("127.0.0.1", port or SERVICE.port, timeout=60,
                                            source_address=(source, 0))
    headers = dict(headers or {})
    if who:
        headers["Authorization"] = "Bearer " + KEYS[who]
    data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
    connection.request(method, path, data, headers)
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    return reply.status, {k.lower(): v for k, v in reply.getheaders()}, text.decode()


def chat(who, text, **more):
    status, headers, body = ask("POST", "/v1/chat/completions", who, {
        "messages": [{"role": "user", "content": text}], "max_tokens": 2, "temperature": 0, **more})
    return status, headers, json.loads(body)


# ---- who may do what ----

def routes():
    done = subprocess.run([TERRACE, "serve", "--routes"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def expected(role, who):
    if role == "public":
        return "open"
    if who in (None, "wrong", "revoked"):
        return 401
    return "open" if who in ("admin", role) else 403


def test_matrix():
    n = 0
    for route in routes():
        path = route["path"].replace("*", "no-such-thing")
        for who in (None, "wrong", "revoked", "metrics", "user", "admin"):
            body = b"{}" if route["method"] in ("POST", "PUT", "PATCH") else None
            status, headers, text = ask(route["method"], path, who, body)
            want = expected(route["role"], who)
            got = status if status in (401, 403) else "open"
            assert got == want, f"{route} as {who}: {status}, expected {want}: {text[:200]}"
            if status == 401:
                assert headers["www-authenticate"] == "Bearer"
                assert json.loads(text)["error"]["code"] == "invalid_api_key"
            n += 1
    print(f"{n} of {len(routes())} routes x 6 identities as expected")


def test_public_routes_are_few():
    public = {r["path"] for r in routes() if r["role"] == "public"}
    assert public == {"/health", "/v1/health", "/ping"}, public


def test_outside_the_table():
    """Nothing but the table answers, however a path is spelled."""
    for path in ("/", "/metrics/", "//metrics", "/./metrics", "/health/../metrics", "/%6detrics",
                 "/health/%2e%2e/metrics", "/v1/models/..%2f..%2fmetrics", "/v1//models", "/V1/models",
                 "/metrics%00", "/metrics;x=1", "/v1/personas/..", "/v1/personas/%2e%2e%2fx",
                 "/health%2f..%2fmetrics", "/etc/passwd", "/v1/models/../../etc/passwd", "/.git/config"):
        for who in (None, "user"):
            status, _, text = ask("GET", path, who)
            assert status in (400, 401, 403, 404), (path, who, status)
            assert "vllm:" not in text and "root:" not in text
        assert ask("GET", path, "admin")[0] in (400, 404), path


def test_no_body_is_read_for_strangers():
    """401 comes although the body never does."""
    status, _, _ = ask("POST", "/v1/chat/completions", None, b"", {"Content-Length": "50000000"})
    assert status == 401


def test_other_headers():
    for name in ("x-api-key", "api-key"):
        assert ask("GET", "/v1/models", headers={name: KEYS["user"]})[0] == 200
    for value in ("Basic " + KEYS["user"], KEYS["user"], "Bearer", "Bearer ", "Bearer x" + KEYS["user"]):
        assert ask("GET", "/v1/models", headers={"Authorization": value})[0] == 401
    assert ask("GET", "/v1/models?api_key=" + KEYS["user"])[0] == 401


def test_allowed_models():
    status, _, body = chat("limited", "Hi")
    assert status == 403 and body["error"]["param"] == "model", body
    assert ask("POST", "/tokenize", "limited", {"prompt": "Hi"})[0] == 403
    assert json.loads(ask("GET", "/v1/models", "limited")[2])["data"] == []
    assert ask("GET", "/v1/models/" + SERVICE.model.replace("/", "%2f"), "limited")[0] == 404


# ---- tenants ----

def test_other_tenant_gets_nothing():
    made = ask("POST", "/v1/personas", "admin", {"name": "secret", "system": SECRET + LONG})
    assert made[0] == 200, made
    mine = chat("user", "What?", persona="secret")
    assert mine[0] == 200 and mine[2]["usage"]["prompt_tokens_details"]["cached_tokens"] > 200, mine
    for who in ("other user", "other admin"):
        status, _, text = ask("GET", "/v1/personas", who)
        assert status == 200 and json.loads(text)["data"] == []
        assert ask("GET", "/v1/personas/secret", who)[0] == 404
        assert ask("GET", "/v1/personas/secret@acme", who)[0] == 404
        assert chat(who, "What?", persona="secret")[0] == 404
        assert chat(who, "What?", persona="secret@acme")[0] == 400
    assert ask("DELETE", "/v1/personas/secret", "other user")[0] == 403
    assert ask("DELETE", "/v1/personas/secret", "other admin")[0] == 404
    assert ask("POST", "/v1/personas?tenant=../../x", "admin", {"name": "a", "system": "b"})[0] == 400
    # the text itself, spelled out, has been computed for acme: who else sends it must not notice
    theirs = {"role": "system", "content": SECRET + LONG}, {"role": "user", "content": "What?"}
    status, headers, text = ask("POST", "/v1/chat/completions", "other user",
                                {"messages": theirs, "max_tokens": 2, "temperature": 0})
    assert json.loads(text)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, text
    assert headers.get("x-terrace-cache") in (None, "miss", "bypass"), headers
    for salt in ("@acme@", "acme@", "@acme"):
        assert chat("other user", "What?", cache_salt=salt)[0] == 400
    assert chat("user", "Tell! " + LONG)[2]["usage"]["prompt_tokens_details"]["cached_tokens"] < 50
    assert chat("user", "Tell! " + LONG)[2]["usage"]["prompt_tokens_details"]["cached_tokens"] > 200


def test_remote_answers_of_other_tenants():
    """What a backend has told one tenant, another can neither get nor see that it was told."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "key").write_text(KEYS["user"])
        (root / "gateway.yaml").write_text(json.dumps({"backends": [{
            "name": "up", "url": SERVICE.url, "key_file": str(root / "key"),
            "models": [{"name": "far", "as": SERVICE.model}]}]}))
        keys = {who: new_key(root / "state", who, "--tenant", tenant, "--role", role)
                for who, tenant, role in (("ann", "acme", "user"), ("ben", "acme", "user"),
                                          ("eve", "umbrella", "user"), ("boss", "acme", "admin"))}
        with Service("--config", root / "gateway.yaml", "--response-cache", "8MiB", file="none",
                     state=root / "state", key=keys["boss"]) as s:
            def hear(who, headers=None, **more):
                status, got, _ = ask("POST", "/v1/chat/completions", None, {
                    "model": "far", "messages": [{"role": "user", "content": SECRET}],
                    "max_tokens": 2, "temperature": 0, **more},
                    {"Authorization": "Bearer " + keys[who], **(headers or {})}, s.port)
                assert status in (200, 400), status
                return got.get("x-terrace-cache") if status == 200 else status
            assert [hear("ann"), hear("ben"), hear("ben", user="x")] == ["miss", "hit", "hit"]
            assert hear("eve") == "miss"
            for i, more in enumerate(({"user": "ann"}, {"user": "key:acme"}, {"cache_salt": "acme"},
                                      {"cache": {"namespace": "acme"}}, {"metadata": {"key": "acme"}})):
                assert hear("eve", temperature=0.5, seed=i, **more) == "miss", more
                assert hear("ann", temperature=0.5, seed=i) == "miss", more
            assert hear("eve", cache_salt="@acme@") == 400
            assert hear("ann", max_tokens=1) == "miss"
            assert hear("eve", {"x-terrace-tenant": "key:acme"}, max_tokens=1) == "miss"
            for method in ("GET", "DELETE"):
                assert ask(method, "/v1/cache", None, None,
                           {"Authorization": "Bearer " + keys["eve"]}, s.port)[0] == 403
            assert KEYS["user"] not in "".join(s.log) and SECRET not in "".join(s.log)


def test_adapters_of_other_tenants():
    status, _, text = ask("POST", "/v1/adapters", "admin", {"name": "acme-a", "path": "theirs"})
    assert status in (200, 201), text
    assert ask("PUT", "/v1/adapters/aliases/acme-prod", "admin", {"adapter": "acme-a"})[0] == 200
    assert ask("PUT", "/v1/users/ann/adapter", "admin", {"adapter": "acme-a"})[0] == 200
    plain, adapted = (chat("user", "Name a colour.", max_tokens=12, **more)[2]["choices"]
                      for more in ({}, {"adapter": "acme-a"}))
    assert plain != adapted
    assert chat("user", "Name a colour.", max_tokens=12, user="ann")[2]["choices"] == adapted
    # neither by its name, nor by an alias, nor as a model, nor as somebody's own
    for more in ({"adapter": "acme-a"}, {"adapter": "acme-prod"}, {"model": "acme-a"},
                 {"model": SERVICE.model + ":acme-a"}, {"adapter": "acme-a@1"}, {"lora": [{"id": 0}]}):
        status, _, body = chat("other user", "Name a colour.", **more)
        assert status in (400, 403, 404), (more, status, body)
    for user in ("ann", "@acme/ann"):
        got = chat("other user", "Name a colour.", max_tokens=12, user=user)[2]["choices"]
        assert got == plain, user
    for path in ("/v1/adapters", "/v1/models", "/v1/adapters/aliases", "/lora-adapters"):
        status, _, text = ask("GET", path, "other user")
        assert status == 200 and "acme" not in text, (path, text)
        assert "acme-a" in ask("GET", path, "user")[2], path
    for path in ("/v1/adapters/acme-a", "/v1/adapters/acme-prod", "/v1/adapters/acme-a/versions",
                 "/v1/models/acme-a"):
        assert ask("GET", path, "other user")[0] == 404, path
        assert ask("GET", path, "user")[0] in (200, 404), path
    assert ask("GET", "/v1/users/ann/adapter", "other admin")[0] == 404
    for path in ("../theirs", "/etc", "theirs/../..", "theirs/../../x"):
        status, _, text = ask("POST", "/v1/adapters", "admin", {"name": "bad", "path": path})
        assert status in (400, 403, 404), (path, status, text)
    for name in ("../x", "..", "a\u0000b", "x" * 300):
        assert ask("POST", "/v1/adapters", "admin", {"name": name, "path": "theirs"})[0] == 400, name


def test_personas_under_adapters_of_others():
    """An admin's key with patterns neither makes nor removes personas under other adapters, whether
    they are there or not, by their name or by an alias."""
    assert ask("POST", "/v1/adapters", "admin", {"name": "acme-p", "path": "theirs"})[0] == 201
    assert ask("PUT", "/v1/adapters/aliases/acme-next", "admin", {"adapter": "acme-p"})[0] == 200

    def make(who, adapter):
        return ask("POST", "/v1/personas", who, {"name": "styled", "system": "Be brief.", "adapter": adapter})

    def remove(who, adapter):
        return ask("DELETE", "/v1/personas?adapter=" + adapter, who)

    def refused(got):
        error = json.loads(got[2])["error"]
        assert (got[0], error["param"], error["code"]) == (403, "adapter", "not_allowed"), got
        return error["message"]

    for adapter in ("acme-p", "acme-next", "acme-p@1", ["acme-p"], "acme-none"):
        refused(make("narrow admin", adapter))
    assert "`acme-p`" in refused(make("narrow admin", [{"name": "acme-p", "scale": 0.5}]))
    assert ask("GET", "/v1/personas/styled", "admin")[0] == 404
    made = make("acme admin", "acme-next")
    assert made[0] == 200 and json.loads(made[2])["adapter"] == "acme-next", made
    for adapter in ("acme-p", "acme-next", "acme-none"):
        refused(remove("narrow admin", adapter))
    assert json.loads(remove("narrow admin", "umbrella-x")[2])["count"] == 0
    assert ask("GET", "/v1/personas/styled", "admin")[0] == 200
    status, _, text = remove("acme admin", "acme-p")  # that the alias leads to
    assert status == 200 and json.loads(text)["count"] == 1, text


def usage(who, query):
    status, _, text = ask("GET", "/v1/usage?" + query, who)
    return status, json.loads(text)


def test_usage_of_other_tenants():
    chat("user", "Count me.")
    until = time.monotonic() + 30
    while True:
        status, all_rows = usage("admin", "group_by=tenant,key")
        names = {r["key_name"] for r in all_rows["data"]}
        if "alice" in names or time.monotonic() > until:
            break
        time.sleep(0.05)
    assert {"alice", "mallory"} <= names, all_rows
    status, rows = usage("other user", "group_by=tenant,key")
    assert status == 200 and {r["tenant"] for r in rows["data"]} == {"umbrella"}, rows
    assert usage("other user", "tenant=acme")[0] == 403
    assert usage("other user", "tenant=acme&tenant=umbrella")[0] == 403
    assert usage("user", "group_by=nonsense")[0] == 400
    assert usage("user", "from=tomorrow")[0] == 400


def test_audit():
    ask("POST", "/reset_prefix_cache", "admin")
    ask("POST", "/reset_prefix_cache", "user")
    until = time.monotonic() + 30
    while True:
        _, _, text = ask("GET", "/v1/audit?limit=1000", "admin")
        rows = [(r["key_name"], r["action"], r["status"]) for r in json.loads(text)["data"]]
        if ("alice", "POST /reset_prefix_cache", 403) in rows or time.monotonic() > until:
            break
        time.sleep(0.05)
    assert ("root", "POST /reset_prefix_cache", 200) in rows, rows[:5]
    assert ("alice", "POST /reset_prefix_cache", 403) in rows, rows[:5]
    assert ("", "key create alice", 0) in rows


# ---- keys that change, and attempts ----

def becomes(who, status, seconds=10):
    until = time.monotonic() + seconds
    while ask("GET", "/v1/models", who)[0] != status:
        assert time.monotonic() < until, f"{who} does not become {status}"
        time.sleep(0.1)


def test_changes_are_noticed():
    KEYS["new"] = new_key(STATE.name, "newcomer")
    becomes("new", 200)
    done = subprocess.run([TERRACE, "key", "rotate", "newcomer", "--grace", "1h", "--state-dir",
                           STATE.name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    KEYS["rotated"] = done.stdout.decode().strip()
    becomes("rotated", 200)
    assert ask("GET", "/v1/models", "new")[0] == 200  # for the time of grace
    key_command("revoke", "newcomer")
    becomes("new", 401)
    assert ask("GET", "/v1/models", "rotated")[0] == 401


def test_attempts_are_limited():
    source = "127.1.2.3"
    statuses = [ask("GET", "/v1/models", "wrong", source=source)[0] for _ in range(40)]
    assert statuses == [401] * 30 + [429] * 10, statuses
    status, headers, _ = ask("GET", "/v1/models", "wrong", source=source)
    assert 0 < int(headers["retry-after"]) <= 60
    assert ask("GET", "/v1/models", "user", source=source)[0] == 200


# ---- pages ----

def test_pages():
    preflight = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "authorization,content-type"}
    status, headers, _ = ask("OPTIONS", "/v1/chat/completions", headers=preflight)
    assert status == 204 and headers["access-control-allow-origin"] == "https://chat.example"
    assert "authorization" in headers["access-control-allow-headers"]
    status, headers, _ = ask("GET", "/v1/models", "user", headers={"Origin": "https://chat.example"})
    assert status == 200 and headers["access-control-allow-origin"] == "https://chat.example"
    assert "Origin" in headers["vary"]
    for origin in ("https://evil.example", "null", "https://chat.example.evil.example", "file://"):
        status, headers, _ = ask("GET", "/v1/models", "user", headers={"Origin": origin})
        assert status == 403 and "access-control-allow-origin" not in headers, origin
        status, headers, _ = ask("OPTIONS", "/v1/models", headers={**preflight, "Origin": origin})
        assert status == 403 and "access-control-allow-origin" not in headers, origin


def test_names_pointed_here():
    """Without keys a page that points its own name here gets nothing."""
    with Service(*SMALL) as s:
        assert ask("GET", "/v1/models", headers={"Host": "localhost:1"}, port=s.port)[0] == 200
        assert ask("GET", "/v1/models", headers={"Host": "evil.example"}, port=s.port)[0] == 403
        assert ask("GET", "/health", headers={"Host": "evil.example"}, port=s.port)[0] != 403


def test_other_addresses_need_keys():
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run([TERRACE, "serve", "--model", "none.gguf", "--host", "0.0.0.0", "--port",
                               "0", "--state-dir", empty], stderr=subprocess.PIPE, timeout=60)
        assert done.returncode == 1 and b"terrace key create" in done.stderr, done.stderr
        new_key(empty, "a")
        done = subprocess.run([TERRACE, "serve", "--model", "/no/such.gguf", "--host", "0.0.0.0",
                               "--port", "0", "--state-dir", empty], stderr=subprocess.PIPE, timeout=60)
        assert b"terrace key create" not in done.stderr, done.stderr  # it is the model that lacks


# ---- what must not be anywhere ----

def memory_holds(pid, texts):
    """Which of the texts are in memory that the process can write."""
    found = set()
    with open(f"/proc/{pid}/mem", "rb") as mem:
        for line in open(f"/proc/{pid}/maps"):
            area = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if not area:
                continue
            start, end = (int(x, 16) for x in area.groups())
            tail = b""
            for at in range(start, end, 16 << 20):
                mem.seek(at)
                try:
                    data = tail + mem.read(min(16 << 20, end - at))
                except OSError:
                    break
                found |= {t for t in texts if t.encode() in data}
                tail = data[-64:]
    return found


def test_keys_are_nowhere():
    for who in ("user", "admin", "wrong"):
        ask("GET", "/v1/models", who)
        chat(who, SECRET)
        ask("POST", "/v1/chat/completions", who, b"{" + SECRET.encode())
        _, _, text = ask("GET", "/v1/models", who, headers={"x-api-key": KEYS[who]})
        assert KEYS[who] not in text
    ask("GET", "/" + "x" * 100, "user")
    found = memory_holds(SERVICE.pid, list(KEYS.values()))
    assert not found, {who for who, k in KEYS.items() if k in found}
    log = "".join(SERVICE.log)
    assert not [who for who, k in KEYS.items() if k in log or k[11:] in log]
    assert SECRET not in log
    for path in pathlib.Path(STATE.name).rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0, path
            data = path.read_bytes()
            assert not [who for who, k in KEYS.items() if k.encode() in data], path


# ---- what is wrong with a request is said by name ----

def test_validation():
    user = {"messages": [{"role": "user", "content": "Hi"}]}
    deep = "[" * 200 + "]" * 200
    bad = [
        ({**user, "temperature": 9}, "temperature"), ({**user, "n": 0}, "n"), ({**user, "n": 17}, "n"),
        ({**user, "max_tokens": -1}, "max_tokens"), ({**user, "stop": ["x"] * 17}, "stop"),
        ({**user, "stop": ["x" * 1025]}, "stop"), ({**user, "logit_bias": {"x": 1}}, "logit_bias"),
        ({**user, "user": "x" * 5000}, "user"), ({**user, "user": 5}, "user"),
        ({**user, "stream_options": {}}, "stream_options"), ({**user, "timeout": 0}, "timeout"),
        ({**user, "persona": "../../etc/passwd"}, "persona"),
        ({**user, "chat_template_kwargs": []}, "chat_template_kwargs"),
        ({**user, "tools": [{"type": "function", "function": {"name": "bad name"}}]},
         "tools[0].function.name"),
        ({**user, "tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]},
         "tools[0].function.parameters"),
        ({**user, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}] * 129},
         "tools"),
        ({**user, "model": "x" * 600}, "model"), ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x"}] * 16385}, "messages"),
    ]
    wrong = []
    for body, field in bad:
        status, _, text = ask("POST", "/v1/chat/completions", "user", body)
        got = json.loads(text).get("error", {})
        if status != 400 or got["param"] != field:
            wrong.append((field, status, got))
    assert not wrong, "\n".join(map(str, wrong))
    raw = [b"", b"{", b"[]", b"nonsense", b'{"messages": "\xff\xfe"}', b'{"a": 1, "a": 2}',
           b'{"x": ' + deep.encode() + b"}", b'{"temperature": NaN}', b'{"n": 1e400}', b"\x00",
           b'{"messages": [{"role": "user", "content": "\\ud800"}]}']
    for body in raw:
        status, _, text = ask("POST", "/v1/chat/completions", "user", body)
        assert status == 400 and json.loads(text)["error"]["message"], (body[:40], status, text)


# ---- TLS ----

def handshake(port, lowest, highest, ciphers=None):
    warnings.simplefilter("ignore", DeprecationWarning)  # the old versions are the point
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers((ciphers or "ALL") + ":@SECLEVEL=0")
    context.minimum_version, context.maximum_version = lowest, highest
    with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
        try:
            with context.wrap_socket(plain) as s:
                return s.version(), s.cipher()[0]
        except (ssl.SSLError, OSError):
            return None


def test_tls():
    v = ssl.TLSVersion
    with tempfile.TemporaryDirectory() as folder:
        cert, key = folder + "/cert.pem", folder + "/key.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key,
                        "-out", cert, "-days", "2", "-subj", "/CN=localhost"], check=True,
                       stderr=subprocess.DEVNULL)
        command = [TERRACE, "serve", "--model", SERVICE.file or os.environ.get("TERRACE_TEST_MODEL")
                   or "smollm2:135m", "--port", "0", "--tls-cert", cert, "--tls-key", key,
                   "--state-dir", folder, *SMALL]
        p = subprocess.Popen(command, stderr=subprocess.PIPE)
        try:
            for line in p.stderr:
                if found := re.search(rb"ready: .* on https://\S+:(\d+)", line):
                    break
            port = int(found[1])
            assert handshake(port, v.TLSv1_3, v.TLSv1_3)[0] == "TLSv1.3"
            assert handshake(port, v.TLSv1_2, v.TLSv1_2)[1].startswith("ECDHE-")
            assert handshake(port, v.TLSv1, v.TLSv1_1) is None
            for weak in ("AES128-SHA", "AES256-GCM-SHA384", "ECDHE-RSA-AES128-SHA", "DHE-RSA-AES128-SHA",
                         "ECDHE-RSA-AES256-SHA384", "NULL-SHA", "ADH-AES128-SHA"):
                assert handshake(port, v.TLSv1_2, v.TLSv1_2, weak) is None, weak
        finally:
            p.terminate()
            p.wait()


only = {k: v for k, v in globals().items() if not sys.argv[1:] or k in sys.argv[1:]}
failed = run_tests(only)
SERVICE.__exit__()
sys.exit(failed != 0)
