#!/usr/bin/env python3
"""What a gateway costs: Terrace, nginx and LiteLLM in front of the same upstream that does no work.

usage: bench/gateway.py [--seconds N] [--rounds N] [--litellm PROGRAM] [--json FILE]

Requests/s and streams/s (100 events each) by wrk, with all who take part on this machine, in turn;
of several rounds the best counts, as what disturbs only ever slows down; CPU time is that of the
gateway, or of the upstream for "direct". Latency is measured at half
of Terrace's own requests/s and at a rate that the slowest can follow, by a client that sends on a
schedule, so that a stall delays everything behind it (no coordinated omission). "Added" is the
difference to the same load without a gateway."""
import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from common import ROOT, machine

BODY = {"model": "m", "messages": [{"role": "system", "content": "You are a helpful assistant."},
                                   {"role": "user", "content": "Say hello to the bench."}]}
WRK = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer sk-bench"
wrk.body = '%s'
"""
NGINX = """daemon off;
master_process off;
worker_processes 1;
error_log /dev/null;
pid %(folder)s/nginx.pid;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path %(folder)s/body;
    proxy_temp_path %(folder)s/proxy;
    fastcgi_temp_path %(folder)s/fastcgi;
    uwsgi_temp_path %(folder)s/uwsgi;
    scgi_temp_path %(folder)s/scgi;
    client_body_buffer_size 64k;
    upstream engine { server 127.0.0.1:%(upstream)d; keepalive 512; keepalive_requests 1000000; }
    server {
        listen 127.0.0.1:%(port)d backlog=4096;
        keepalive_requests 1000000;
        location / {
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }
    }
}
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def post(port, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": "Bearer sk-bench"})
    with urllib.request.urlopen(request, timeout=20) as reply:
        return reply.read()


def wait_ready(name, port, process, seconds):
    until = time.monotonic() + seconds
    while True:
        try:
            assert b"Hello." in post(port, BODY)
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"bench/gateway.py: {name} does not answer")
            time.sleep(0.1)


@contextlib.contextmanager
def running(name, command, port, seconds=20):
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_ready(name, port, process, seconds)
        yield port, process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def terrace(folder, upstream):
    config = folder / "terrace.yaml"
    config.write_text(json.dumps({"backends": [
        {"name": "engine", "url": f"http://127.0.0.1:{upstream}", "models": ["m"],
         "max_requests": 4096}]}))
    port = free_port()
    return running("terrace", [ROOT / "build/terrace", "serve", "--model", "none", "--port", port,
                               "--config", config, "--state-dir", folder / "state",
                               "--log-level", "warn"], port)


def nginx(folder, upstream):
    config, port = folder / "nginx.conf", free_port()
    config.write_text(NGINX % {"folder": folder, "upstream": upstream, "port": port})
    return running("nginx", [shutil.which("nginx") or "/usr/sbin/nginx", "-p", folder, "-c",
                             config], port)


def litellm(program, folder, upstream):
    config, port = folder / "litellm.yaml", free_port()
    config.write_text(json.dumps({
        "model_list": [{"model_name": "m", "litellm_params": {
            "model": "openai/m", "api_base": f"http://127.0.0.1:{upstream}/v1",
            "api_key": "sk-bench"}}],
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
        "litellm_settings": {"telemetry": False}}))
    return running("litellm", [program, "--config", config, "--host", "127.0.0.1", "--port", port,
                               "--num_workers", 1], port, 180)


def cpu_us(group):
    """What a process group has used, in microseconds."""
    ticks = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks * 1e6 / os.sysconf("SC_CLK_TCK")


def wrk(port, body, connections, seconds, folder):
    script = folder / "wrk.lua"
    script.write_text(WRK % json.dumps(body, separators=(",", ":")).replace("'", "\\'"))
    done = subprocess.run(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script,
                           f"http://127.0.0.1:{port}/v1/chat/completions"],
                          capture_output=True, text=True, check=True)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", done.stdout)
    if bad:
        print(f"    {bad[0]}", flush=True)
    return (float(re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)[1]),
            int(re.search(r"(\d+) requests in", done.stdout)[1]))


def full_load(row, what, body, where, connections, seconds, folder):
    """The best rate of all rounds, and the least CPU time a request, which others disturb less."""
    port, group = where
    before = cpu_us(group)
    rate, n = wrk(port, body, connections, seconds, folder)
    used = (cpu_us(group) - before) / max(n, 1)
    row[what + "_s"] = max(row.get(what + "_s", 0), rate)
    row[what + "_cpu_us"] = min(row.get(what + "_cpu_us", used), used)


async def worker(port, request, begin, step, end, times):
    """One connection: its requests are due every `step` seconds; late ones are sent at once, and
    their time counts from when they were due."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    due = begin
    while due < end:
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        sent = max(due, time.perf_counter()) if wait > 0 else due
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"(?i)content-length: *(\d+)", head)
        await reader.readexactly(int(size[1]))
        times.append(time.perf_counter() - sent)
        due += step
    writer.close()


async def on_schedule(port, rate, seconds, connections):
    data = json.dumps(BODY).encode()
    request = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
               b"Authorization: Bearer sk-bench\r\nContent-Length: %d\r\n\r\n" % len(data)) + data
    times = []
    begin = time.perf_counter() + 0.2
    step = connections / rate
    await asyncio.gather(*(worker(port, request, begin + i * step / connections, step,
                                  begin + seconds, times) for i in range(connections)))
    times.sort()
    return {"n": len(times), "p50_ms": times[len(times) // 2] * 1e3,
            "p99_ms": times[int(len(times) * 0.99)] * 1e3}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seconds", type=int, default=5)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--rate", type=int, default=40, help="requests/s of the second latency run")
    p.add_argument("--litellm", help="its program, as VENV/bin/litellm")
    p.add_argument("--json", type=pathlib.Path)
    o = p.parse_args()
    facts = machine()
    upstream = free_port()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        up = stack.enter_context(running("upstream", [ROOT / "build/bench/bench-http", upstream, 10],
                                         upstream))
        ports = {"direct": up, "terrace": stack.enter_context(terrace(folder, upstream)),
                 "nginx": stack.enter_context(nginx(folder, upstream))}
        if o.litellm:
            ports["litellm"] = stack.enter_context(litellm(o.litellm, folder, upstream))
        rows = {name: {} for name in ports}
        for _ in range(o.rounds):
            for name, where in ports.items():
                full_load(rows[name], "requests", BODY, where, 32, o.seconds, folder)
                full_load(rows[name], "streams", {**BODY, "stream": True}, where, 100, o.seconds,
                          folder)
        client_rate = 3000  # what the client below can send with half a core
        half = min(rows["terrace"]["requests_s"] / 2, client_rate)
        for label, rate, names in (("half_load", half, [n for n in ports if n != "litellm"]),
                                   ("slow", o.rate, list(ports))):
            for _ in range(o.rounds):
                for name in names:
                    got = asyncio.run(on_schedule(ports[name][0], rate, o.seconds, 16))
                    best = rows[name].setdefault(label, got)
                    if got["p99_ms"] < best["p99_ms"]:
                        rows[name][label] = got
            for name in names:
                for q in ("p50_ms", "p99_ms"):
                    rows[name][label]["added_" + q] = rows[name][label][q] - rows["direct"][label][q]
    result = {"machine": facts, "half_load_rate": half, "slow_rate": o.rate, "rows": rows}
    if o.json:
        o.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"half load: {half:.0f} requests/s; slow: {o.rate}")
    for name, r in rows.items():
        line = (f"{name:8} {r['requests_s']:7.0f} requests/s ({r['requests_cpu_us']:.0f} us CPU) "
                f"{r['streams_s']:6.0f} streams/s ({r['streams_cpu_us']:.0f} us)")
        for label in ("half_load", "slow"):
            if label in r:
                v = r[label]
                line += (f"   {label}: p50 {v['p50_ms']:.3f} (+{v['added_p50_ms']:.3f}) "
                         f"p99 {v['p99_ms']:.3f} (+{v['added_p99_ms']:.3f}) ms")
        print(line)


if __name__ == "__main__":
    main()
