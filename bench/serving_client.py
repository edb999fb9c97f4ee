"""A client of streamed completions that costs little: what the client computes, the server lacks.

One request is one HTTP/1.0 connection, so that an answer is a head and then server-sent events
until the end. Events are only split and stamped with the time while they come; reading them as
JSON waits until someone asks, after the measurement.
"""
import asyncio
import gc
import json
import os
import re
import time

COUNT = re.compile(rb'"completion_tokens": ?(\d+)')


def run_first():
    """Runs as soon as it wakes, as if the client had a machine of its own: else it stands in line
    behind the server's computing, often until the next tick of the clock. Needs root. And collects
    no garbage, which of thousands of answers takes a processor for a tenth of a second."""
    gc.disable()
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        print("the client waits its turn behind the server: not root", flush=True)


class Answer(asyncio.Protocol):
    """One request and what came back. Times are those of time.perf_counter()."""

    def __init__(self, request, mark, leave_after):
        self.request, self.mark, self.leave_after = request, mark, leave_after
        self.sent = self.ended = None
        self.times = []  # one for each event that carries a token
        self.events = []
        self.error, self.left, self._rest, self._head = None, False, b"", None
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        now = time.perf_counter()
        data = self._rest + data
        if self._head is None:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self._rest = head
                return
            self._head = head
        *events, self._rest = data.replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            self.events.append(event)
            if self.mark in event:
                self.times.append(now)
        if self.leave_after is not None and len(self.times) >= self.leave_after:
            self.left = True
            self.transport.abort()

    def connection_lost(self, exc):
        self.ended = time.perf_counter()
        if not self.left:
            self.error = self._fault(exc)
        if not self.over.done():
            self.over.set_result(None)

    def _fault(self, exc):
        if exc:
            return f"connection lost: {exc}"
        if self._head is None or b" 200 " not in self._head.split(b"\r\n", 1)[0]:
            return ((self._head or b"no answer") + b" " + self._rest[:300]).decode(errors="replace")
        if not self.events or self.events[-1] != b"data: [DONE]" or self._rest:
            return "the stream ended before data: [DONE]"
        return None

    def leave(self):
        """The client goes away."""
        self.left = True
        self.transport.abort()

    @property
    def ttft(self):
        return self.times[0] - self.sent if self.times else None

    @property
    def total(self):
        return self.ended - self.sent

    @property
    def gaps(self):
        return [b - a for a, b in zip(self.times, self.times[1:])]

    def chunks(self):
        return [json.loads(e[6:]) for e in self.events if e.startswith(b"data: {")]

    def text(self):
        return "".join(c.get("text") or (c.get("delta") or {}).get("content") or ""
                       for chunk in self.chunks() for c in chunk["choices"])

    def usage(self):
        """(prompt tokens, of which cached, completion tokens) of the last chunk."""
        u = next((c["usage"] for c in reversed(self.chunks()) if c.get("usage")), None)
        if u is None:
            return 0, 0, 0
        details = u.get("prompt_tokens_details") or {}
        return u["prompt_tokens"], details.get("cached_tokens", 0), u["completion_tokens"]

    def counts(self):
        """What each event with a token says of the number of tokens so far (exact bodies only)."""
        return [int(COUNT.search(e)[1]) for e in self.events if self.mark in e]


def body(prompt, n_out, **more):
    """A greedy request for exactly n_out tokens; prompt is text, token ids, or chat messages."""
    chat = isinstance(prompt, list) and prompt and isinstance(prompt[0], dict)
    return {"messages" if chat else "prompt": prompt, "max_tokens": n_out, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}, **more}


def exact(request):
    """With log-probabilities every token has an event of its own, also one without text."""
    request["logprobs"] = True if "messages" in request else 0
    request["stream_options"]["continuous_usage_stats"] = True
    return request


PIECE, PEER_PIECE = b'"finish_reason":null', b'"finish_reason": null'  # as json.dumps writes it


def encode(request):
    """The request as it goes over the wire, and whether it asks for log-probabilities."""
    path = "/v1/chat/completions" if "messages" in request else "/v1/completions"
    data = json.dumps(request).encode()
    head = (f"POST {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n").encode()
    return head + data, "logprobs" in request


def begin(port, request, leave_after=None, source="127.0.0.1", sent=None, piece=PIECE):
    """Sends a request, or one that was encoded before; the result is an Answer at work and the task
    that waits for its end."""
    data, has_logprobs = request if isinstance(request, tuple) else encode(request)
    mark = b'"logprobs":{' if has_logprobs else piece
    answer = Answer(data, mark, leave_after)
    answer.sent = sent or time.perf_counter()
    return answer, asyncio.create_task(_exchange(port, answer, source))


async def _exchange(port, answer, source):
    try:
        await asyncio.get_running_loop().create_connection(
            lambda: answer, "127.0.0.1", port, local_addr=(source, 0))
    except OSError as e:
        answer.error, answer.ended = str(e), time.perf_counter()
        return answer
    await answer.over
    return answer


async def ask(port, request, **more):
    """The Answer, complete or with its error."""
    return await begin(port, request, **more)[1]


async def ask_all(port, requests, limit_s=None, piece=PIECE):
    """All at once. Those that are not over after limit_s are left; their error says so."""
    pairs = [begin(port, r, piece=piece) for r in requests]
    await asyncio.wait([task for _, task in pairs], timeout=limit_s)
    for answer, task in pairs:
        if not task.done():
            answer.leave()
            await task
            answer.error = f"not over after {limit_s} s"
    return [answer for answer, _ in pairs]
