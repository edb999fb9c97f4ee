"""A terrace server for tests: on a free port, with the real small model, ended by its pid."""
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import tempfile
import threading
import traceback
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TERRACE = pathlib.Path(os.environ.get("TERRACE", ROOT / "build/terrace"))
MODEL = "smollm2:135m"


def model_path():
    """The model's file, fetched at first use."""
    given = os.environ.get("TERRACE_TEST_MODEL")
    if given:
        return given
    done = subprocess.run([TERRACE, "pull", MODEL], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().strip()


def new_key(state, name, *options):
    """Makes a key in the database of a state folder."""
    done = subprocess.run([TERRACE, "key", "create", name, "--state-dir", state, *map(str, options)],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return done.stdout.decode().strip()


class Service:
    """`with Service() as s:` serves until the block ends; s.url is without a path. The model is the
    small real one unless a file is given; state is a folder that outlives the service; key is what
    the questions of this class are asked with; preexec runs in the process before the program."""

    def __init__(self, *args, limit_s=600, file=None, state=None, key=None,
                 preexec=None):
        self.args, self.limit_s, self.log, self.lines = args, limit_s, [], queue.Queue()
        self.file, self.kept_state, self.key, self.preexec = file, state, key, preexec

    def __enter__(self):
        model = self.file or model_path()
        self.state = tempfile.TemporaryDirectory()
        command = [TERRACE, "serve", "--model", model, "--port", "0", "--response-cache", "0",
                   "--state-dir", str(self.kept_state or self.state.name), *map(str, self.args)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                                        preexec_fn=self.preexec)
        threading.Thread(target=self._read, daemon=True).start()
        self.killer = threading.Timer(self.limit_s, self.process.kill)
        self.killer.daemon = True
        self.killer.start()
        self.pid = self.process.pid
        self.url = self._wait_ready()
        self.port = int(self.url.rsplit(":", 1)[1])
        self.model = next((m["id"] for m in self.json("/v1/models")["data"]), None)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.status = self.process.wait()
        self.killer.cancel()
        self.state.cleanup()

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line.decode(errors="replace"))
            self.lines.put(self.log[-1])
        self.lines.put(None)

    def _wait_ready(self):
        while (line := self.lines.get()) is not None:
            if found := re.search(r"ready: .* on (http://[\w.:\[\]]+)", line):
                return found[1]
        raise RuntimeError("the server did not start:\n" + "".join(self.log[-20:]))

    def json(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(self._request(path, data), timeout=120) as reply:
            return json.load(reply)

    def _request(self, path, data=None):
        headers = {"Authorization": "Bearer " + self.key} if self.key else {}
        return urllib.request.Request(self.url + path, data, headers)

    def metrics(self):
        """Samples by name and labels, the labels of the model left out."""
        with urllib.request.urlopen(self._request("/metrics"), timeout=60) as reply:
            text = reply.read().decode()
        samples = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = re.sub(r'model_name="(?:[^"\\]|\\.)*",engine="0",?', "", name)
                samples[name.replace("{}", "")] = float(value)
        return samples


def run_tests(tests):
    """Runs the functions of a dictionary that begin with test_; prints and counts."""
    passed = failed = 0
    for name, test in list(tests.items()):
        if not name.startswith("test_"):
            continue
        try:
            test()
            passed += 1
        except Exception:
            failed += 1
            print(f"--- {name}\n{traceback.format_exc()}")
    print(f"{passed} passed, {failed} failed", flush=True)
    return failed
