#!/usr/bin/env python3
"""A program that speaks as much of vLLM's API as a gateway needs. usage: fake_vllm.py PORT [OPTIONS]

It answers chats for the model "small" and for adapters that were loaded, with "MODEL ROOT" as text,
one word an event and --delay seconds between them. With --child it has a child of its own, with
--stubborn neither of them heeds SIGTERM; with --escapee it has one that leaves the group, keeps the
output open and ends after three seconds. With --daemon it leaves two orphans in sessions of their
own: one ends at once, one says "tidied" when it gets SIGTERM; with --late it leaves one that heeds
nothing when it gets SIGTERM itself. All of them have PORT among their arguments. With --noise it
says more than a pipe holds, no line and no UTF-8, and then closes its output.
GET /calls tells what was asked: ["load NAME", ...]."""
import argparse
import http.server
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("--child", action="store_true")
parser.add_argument("--escapee", action="store_true")
parser.add_argument("--stubborn", action="store_true")
parser.add_argument("--daemon", action="store_true")
parser.add_argument("--late", action="store_true")
parser.add_argument("--noise", action="store_true")
parser.add_argument("--delay", type=float, default=0)
parser.add_argument("--name", default="base")
parser.add_argument("--no-lora", action="store_true")
parser.add_argument("--max-rank", type=int, default=16)
args = parser.parse_args()

adapters, calls, lock = {}, [], threading.Lock()
metrics = {"vllm:num_requests_running": 1, "vllm:num_requests_waiting": 2,
           "vllm:kv_cache_usage_perc": 0.25, "vllm:prompt_tokens_total": 30,
           "vllm:generation_tokens_total": 40, "vllm:prefix_cache_queries_total": 50,
           "vllm:prefix_cache_hits_total": 20}
page = None  # what /metrics says instead


def wrong(status, kind, message):
    return status, {"error": {"message": message, "type": kind, "code": status}}


def load(body):
    name, path = body["lora_name"], pathlib.Path(body["lora_path"])
    calls.append("load " + name)
    time.sleep(args.delay)
    if name in adapters:
        return wrong(400, "InvalidUserInput",
                     f"The lora adapter '{name}' has already been loaded. If you want to load the "
                     "adapter in place, set 'load_inplace' to True.")
    if not (path / "adapter_config.json").exists():
        return wrong(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
    rank = json.loads((path / "adapter_config.json").read_text())["r"]
    if rank > args.max_rank:
        return wrong(400, "BadRequestError",
                     f"LoRA rank {rank} is greater than max_lora_rank {args.max_rank}.")
    adapters[name] = str(path)
    return 200, f"Success: LoRA adapter '{name}' added successfully."


def unload(body):
    name = body["lora_name"]
    calls.append("unload " + name)
    if adapters.pop(name, None) is None:
        return wrong(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
    return 200, f"Success: LoRA adapter '{name}' removed successfully."


def models():
    cards = [{"id": "small", "object": "model", "root": args.name, "parent": None}]
    cards += [{"id": n, "object": "model", "root": p, "parent": "small"} for n, p in adapters.items()]
    return 200, {"object": "list", "data": cards}


def exposition():
    return page if page is not None else "".join(
        f'# TYPE {n} gauge\n{n}{{engine="0",model_name="small"}} {v}\n' for n, v in metrics.items())


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body):
        text = body if isinstance(body, str) else json.dumps(body)
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        with lock:
            known = {"/health": lambda: (200, ""), "/v1/models": models,
                     "/metrics": lambda: (200, exposition()), "/calls": lambda: (200, calls)}
            self.answer(*known.get(self.path, lambda: (404, {"detail": "Not Found"}))())

    def do_POST(self):
        global page
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/page":  # for tests: what /metrics says from now on
            page = body.decode()
            return self.answer(200, "ok")
        body = json.loads(body)
        admin = {} if args.no_lora else {"/v1/load_lora_adapter": load,
                                         "/v1/unload_lora_adapter": unload}
        if self.path in admin:
            with lock:
                answer = admin[self.path](body)
            return self.answer(*answer)
        if self.path != "/v1/chat/completions":
            return self.answer(404, {"detail": "Not Found"})
        return self.chat(body)

    def chat(self, body):
        model = body["model"]
        with lock:
            calls.append("chat " + model)
            root = args.name if model == "small" else adapters.get(model)
        if root is None:
            return self.answer(*wrong(404, "NotFoundError", f"The model `{model}` does not exist."))
        words = [model, root] + ["word"] * (body.get("max_tokens", 2) - 2)
        usage = {"prompt_tokens": 3, "completion_tokens": len(words)}
        if not body.get("stream"):
            time.sleep(args.delay)
            return self.answer(200, {
                "id": "x", "object": "chat.completion", "model": model, "usage": usage, "choices": [
                    {"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": " ".join(words)}}]})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for word in words:
            event = {"object": "chat.completion.chunk", "model": model,
                     "choices": [{"index": 0, "delta": {"content": word + " "}}]}
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            time.sleep(args.delay)
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True


ORPHAN = """import os, signal, sys, time
def end(*_):
    print("tidied", flush=True)
    os._exit(0)
if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
    signal.signal(signal.SIGTERM, end)
os.setsid()
if os.fork():
    os._exit(0)
time.sleep(float(sys.argv[2]))"""


def leave_orphan(seconds):
    subprocess.run([sys.executable, "-c", ORPHAN, str(args.port), str(seconds)], check=True)


def leave_late(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which is inherited
    leave_orphan(600)
    sys.exit(0)


if args.late:
    signal.signal(signal.SIGTERM, leave_late)
if args.stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if args.child:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(args.port)])
if args.daemon:
    leave_orphan(0)
    leave_orphan(600)
if args.escapee:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3)"], start_new_session=True)
server = http.server.ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
server.daemon_threads = True
print("serving", args.name, flush=True)
if args.noise:
    sys.stdout.buffer.write(b"\xff\x00\x1b[31m" * 30000 + b"\nenough")
    sys.stdout.flush()
    for output in 1, 2:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
server.serve_forever()
