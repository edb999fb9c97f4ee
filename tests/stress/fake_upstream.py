#!/usr/bin/env python3
"""A server that misbehaves on command. usage: fake_upstream.py PORT NAME [API]; API is the dialect:
openai, ollama or anthropic.

A request whose last message is "REQUEST N" is answered with N words, "REQUEST/NAME/i" each, so that
the reader can tell which words are missing, twice or somebody else's. Standard input takes a mode a
line: ok, hang (takes requests and never answers), garbage (any wrong answer), deny (401,
quoting the key). Standard output tells
every chat request as "chat TIME MODE" (seconds of Unix time)."""
import asyncio
import json
import random
import sys
import time

PORT, NAME, API = int(sys.argv[1]), sys.argv[2], (sys.argv[3:] or ["openai"])[0]
PATH = {"openai": "/v1/chat/completions", "ollama": "/api/chat", "anthropic": "/v1/messages"}[API]
mode = "ok"
rng = random.Random(PORT)


def answer(status, kind, body):
    return (f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            ).encode() + body


def words(content):
    request, n = content.split()
    return [f"{request}/{NAME}/{i}" for i in range(int(n))]


def asked(query):
    content = query["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def whole(said):
    if API == "ollama":
        return json.dumps({"message": {"role": "assistant", "content": " ".join(said)}, "done": True,
                           "done_reason": "stop", "prompt_eval_count": 3,
                           "eval_count": len(said)}).encode()
    if API == "anthropic":
        return json.dumps({"type": "message", "content": [{"type": "text", "text": " ".join(said)}],
                           "stop_reason": "end_turn",
                           "usage": {"input_tokens": 3, "output_tokens": len(said)}}).encode()
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [
        {"index": 0, "finish_reason": "stop",
         "message": {"role": "assistant", "content": " ".join(said)}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": len(said)}}).encode()


def event(text):
    if API == "ollama":
        return json.dumps({"message": {"content": text}, "done": False}).encode() + b"\n"
    if API == "anthropic":
        return (b"event: content_block_delta\ndata: " + json.dumps(
            {"type": "content_block_delta", "index": 0,
             "delta": {"type": "text_delta", "text": text}}).encode() + b"\n\n")
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [
        {"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


HEAD = (b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n" %
        (b"application/x-ndjson" if API == "ollama" else b"text/event-stream"))
LAST = {"openai": b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
                  b"data: [DONE]\n\n",
        "ollama": b'{"message":{"content":""},"done":true,"done_reason":"stop"}\n',
        "anthropic": b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n'}[API]


async def stream(w, said, cut=None):
    """cut: after so many events the stream breaks off in the middle of one."""
    w.write(HEAD)
    for i, word in enumerate(said):
        e = event(word)
        if cut is not None and i == cut:
            w.write(chunk(e[:len(e) // 2]))
            await w.drain()
            return False
        w.write(chunk(e))
        await w.drain()
        await asyncio.sleep(0.002)
    w.write(chunk(LAST) + b"0\r\n\r\n")
    await w.drain()
    return True


async def misbehave(w, said, streams):
    """One of many wrong answers; the connection ends after it."""
    body = whole(said)
    wrong = [
        bytes(rng.randrange(256) for _ in range(200)),
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Le",
        answer(500, "application/json", b'{"error":{"message":"out of memory"}}'),
        answer(503, "text/plain", b"busy"),
        answer(200, "application/json", body[:len(body) // 2]),
        answer(200, "text/html", b"<html>welcome</html>"),
        answer(200, "application/json", body)[:-10],
        answer(302, "text/plain", b""),
        b"",
    ]
    if streams:
        which = rng.randrange(4)
        if which == 0:
            return await stream(w, said, cut=rng.randrange(len(said) + 1))
        if which == 1:
            n = rng.randrange(len(said))
            w.write(HEAD + b"".join(chunk(event(s)) for s in said[:n]) +
                    chunk(b"data: " + bytes(rng.randrange(32, 127) for _ in range(50)) + b"\n\n"))
            return await w.drain()
        if which == 2: # ends well, but without its last event
            w.write(HEAD + b"".join(chunk(event(s)) for s in said[:3]) + b"0\r\n\r\n")
            return await w.drain()
    w.write(rng.choice(wrong))
    await w.drain()


async def serve(r, w):
    try:
        while True:
            head = (await r.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            size = [line.split(":")[1] for line in head.lower().split("\r\n")
                    if line.startswith("content-length:")]
            body = await r.readexactly(int(size[0])) if size else b""
            chat = path == PATH
            if chat:
                print("chat", time.time(), mode, flush=True)
            if mode == "hang":
                await asyncio.sleep(3600)
            if mode == "deny" and chat:
                w.write(answer(401, "application/json", json.dumps({"error": {
                    "message": "wrong key in: " + head}}).encode()))
                await w.drain()
                continue
            if not chat:
                bad = mode == "garbage" and rng.random() < 0.5
                w.write(b"what?\r\n" if bad else
                        answer(200, "application/json", b'{"object":"list","data":[]}'))
                await w.drain()
                if bad:
                    return
                continue
            query = json.loads(body)
            said = words(asked(query))
            if mode == "garbage" and rng.random() < 0.8:
                await misbehave(w, said, query.get("stream"))
                return
            if query.get("stream"):
                await stream(w, said)
            else:
                w.write(answer(200, "application/json", whole(said)))
                await w.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        w.close()


async def commands():
    global mode
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        mode = line.decode().strip()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", PORT)
    print("listening", flush=True)
    async with server:
        await commands()  # ends with standard input


asyncio.run(main())
