#!/usr/bin/env python3
"""Makes cases.json: what OpenAI's requests are in the APIs of Ollama and Anthropic, and what their
answers are in OpenAI's. Nothing here comes from Terrace: each side of a case is checked with the
types of that side's official package.

usage: make.py [FILE] (pip install ollama==0.6.3 anthropic==2.12.0 openai==3.54.0)"""
import json
import pathlib
import sys

import anthropic.types as at
import ollama._types as ot
from anthropic.types.message_create_params import (MessageCreateParamsNonStreaming,
                                                   MessageCreateParamsStreaming)
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

# Sampling that the package's newest version leaves to the models that take it, and an option that
# Ollama's server knows and the package does not name.
SAMPLING = {"temperature", "top_p", "top_k"}
OPTIONS = set(ot.Options.model_fields) | {"min_p"}

USER = [{"role": "user", "content": "Hi"}]
HEAD = {"id": "chatcmpl-12ab", "created": 1700000000, "model": "m", "system_fingerprint": None}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Today's weather",
                                         "parameters": SCHEMA}}
PNG = "iVBORw0KGgo="
CALL = {"id": "call_1", "type": "function",
        "function": {"name": "weather", "arguments": "{\"city\":\"Oslo\"}"}}
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "reasoning_content": "I must look.",
         "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "user", "content": "And?"}]
LOOK = [{"role": "user", "content": [{"type": "text", "text": "What is it?"},
                                     {"type": "image_url", "image_url":
                                      {"url": "data:image/png;base64," + PNG}},
                                     {"type": "text", "text": "Say."}]}]


# ---- requests ----

def ollama_chat(**more):
    return {"model": "up", "stream": False, "messages": USER, **more}


def ollama_text(**more):
    return {"model": "up", "stream": False, "prompt": "One,", "raw": True,
            "options": {"num_predict": 16}, **more}


def claude(**more):
    return {"model": "up", "stream": False, "max_tokens": 4096,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], **more}


def text(s):
    return {"type": "text", "text": s}


# name, fields of the client's request beside model and messages, Ollama's body, Anthropic's body;
# a string instead of a body: the field that is refused.
CHATS = [
    ("plain", {}, ollama_chat(), claude()),
    ("stream", {"stream": True, "stream_options": {"include_usage": True}},
     ollama_chat(stream=True), claude(stream=True)),
    ("counts on the way", {"stream": True, "stream_options": {"continuous_usage_stats": True}},
     "stream_options.continuous_usage_stats", "stream_options.continuous_usage_stats"),
    ("limit", {"max_tokens": 9}, ollama_chat(options={"num_predict": 9}), claude(max_tokens=9)),
    ("newer limit", {"max_completion_tokens": 9, "max_tokens": None},
     ollama_chat(options={"num_predict": 9}), claude(max_tokens=9)),
    ("sampling", {"temperature": 0.5, "top_p": 0.9, "top_k": 40},
     ollama_chat(options={"temperature": 0.5, "top_p": 0.9, "top_k": 40}),
     claude(temperature=0.5, top_p=0.9, top_k=40)),
    ("top_k is off", {"top_k": -1}, ollama_chat(options={"top_k": 0}), claude()),
    ("hot", {"temperature": 1.5}, ollama_chat(options={"temperature": 1.5}), "temperature"),
    ("seed", {"seed": 0}, ollama_chat(options={"seed": 0}), "seed"),
    ("penalties", {"frequency_penalty": 0.5, "presence_penalty": -1, "repetition_penalty": 1.1,
                   "min_p": 0.05},
     ollama_chat(options={"frequency_penalty": 0.5, "presence_penalty": -1, "repeat_penalty": 1.1,
                          "min_p": 0.05}), "frequency_penalty"),
    ("no penalty", {"presence_penalty": 0},
     ollama_chat(options={"presence_penalty": 0}), claude()),
    ("one stop", {"stop": "END"}, ollama_chat(options={"stop": ["END"]}),
     claude(stop_sequences=["END"])),
    ("stops", {"stop": ["a", "b"]}, ollama_chat(options={"stop": ["a", "b"]}),
     claude(stop_sequences=["a", "b"])),
    ("json", {"response_format": {"type": "json_object"}}, ollama_chat(format="json"),
     "response_format"),
    ("schema", {"response_format": {"type": "json_schema", "json_schema":
                                    {"name": "x", "schema": SCHEMA, "strict": True}}},
     ollama_chat(format=SCHEMA),
     claude(output_config={"format": {"type": "json_schema", "schema": SCHEMA}})),
    ("text format", {"response_format": {"type": "text"}}, ollama_chat(), claude()),
    ("effort", {"reasoning_effort": "minimal"}, ollama_chat(think="low"),
     claude(thinking={"type": "adaptive"}, output_config={"effort": "low"})),
    ("no effort", {"reasoning_effort": "none"}, ollama_chat(think=False),
     claude(thinking={"type": "disabled"})),
    ("own words of Ollama", {"think": True, "num_ctx": 8192, "keep_alive": "10m", "seed": 3,
                             "options": {"num_gpu": 1, "seed": 4}},
     ollama_chat(think=True, keep_alive="10m",
                 options={"num_ctx": 8192, "seed": 3, "num_gpu": 1}), "think"),
    ("own words of Anthropic", {"thinking": {"type": "enabled", "budget_tokens": 2048}},
     "thinking", claude(thinking={"type": "enabled", "budget_tokens": 2048})),
    ("user", {"user": "ann", "metadata": {"a": "b"}, "store": False}, ollama_chat(),
     claude(metadata={"user_id": "ann"})),
    ("who it is", {"user": "ann", "safety_identifier": "bob"}, ollama_chat(),
     claude(metadata={"user_id": "ann"})),
    ("who it is, by one name", {"safety_identifier": "bob"}, ollama_chat(),
     claude(metadata={"user_id": "bob"})),
    ("a continued answer", {"continue_final_message": True, "add_generation_prompt": False,
                            "messages": USER + [{"role": "assistant", "content": "Hel"}]},
     ollama_chat(messages=USER + [{"role": "assistant", "content": "Hel"}]),
     claude(messages=[{"role": "user", "content": [text("Hi")]},
                      {"role": "assistant", "content": [text("Hel")]}])),
    ("no answer", {"add_generation_prompt": False}, "add_generation_prompt",
     "add_generation_prompt"),
    ("what Terrace acts on", {"timeout": 5, "priority": 2, "cache": {"no-cache": True},
                              "cache_salt": "x"}, ollama_chat(), claude()),
    ("tools", {"tools": [TOOL], "tool_choice": "auto"}, ollama_chat(tools=[TOOL]),
     claude(tools=[{"name": "weather", "description": "Today's weather", "input_schema": SCHEMA}],
            tool_choice={"type": "auto"})),
    ("a tool without parameters", {"tools": [{"type": "function", "function": {"name": "f"}}]},
     ollama_chat(tools=[{"type": "function", "function": {"name": "f"}}]),
     claude(tools=[{"name": "f", "input_schema": {"type": "object"}}])),
    ("no tool", {"tools": [TOOL], "tool_choice": "none"}, ollama_chat(),
     claude(tools=[{"name": "weather", "description": "Today's weather", "input_schema": SCHEMA}],
            tool_choice={"type": "none"})),
    ("one call at a time", {"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls",
     claude(tools=[{"name": "weather", "description": "Today's weather", "input_schema": SCHEMA}],
            tool_choice={"type": "auto", "disable_parallel_tool_use": True})),
    ("a forced call", {"tools": [TOOL], "tool_choice": "required"}, "tool_choice",
     claude(tools=[{"name": "weather", "description": "Today's weather", "input_schema": SCHEMA}],
            tool_choice={"type": "any"})),
    ("a chosen call", {"tools": [TOOL], "tool_choice":
                       {"type": "function", "function": {"name": "weather"}}}, "tool_choice",
     claude(tools=[{"name": "weather", "description": "Today's weather", "input_schema": SCHEMA}],
            tool_choice={"type": "tool", "name": "weather"})),
    ("a conversation", {"messages": TALK},
     ollama_chat(messages=[
         {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"},
         {"role": "assistant", "content": "", "thinking": "I must look.", "tool_calls": [
             {"id": "call_1", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
         {"role": "tool", "content": "rain", "tool_call_id": "call_1", "tool_name": "weather"},
         {"role": "user", "content": "And?"}]),
     claude(system=[text("Be brief.")], messages=[
         {"role": "user", "content": [text("Weather?")]},
         {"role": "assistant", "content": [
             {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Oslo"}}]},
         {"role": "user", "content": [
             {"type": "tool_result", "tool_use_id": "call_1", "content": [text("rain")]},
             text("And?")]}])),
    ("neighbours", {"messages": [
        {"role": "developer", "content": "A"}, {"role": "system", "content": "B"},
        {"role": "user", "content": "C"}, {"role": "user", "content": ""},
        {"role": "user", "content": "D"}, {"role": "assistant", "content": ""},
        {"role": "system", "content": "E"}, {"role": "user", "content": "F"}]},
     ollama_chat(messages=[
         {"role": "system", "content": "A"}, {"role": "system", "content": "B"},
         {"role": "user", "content": "C"}, {"role": "user", "content": ""},
         {"role": "user", "content": "D"}, {"role": "assistant", "content": ""},
         {"role": "system", "content": "E"}, {"role": "user", "content": "F"}]),
     claude(system=[text("A"), text("B")], messages=[
         {"role": "user", "content": [text("C"), text("D")]},
         {"role": "system", "content": [text("E")]},
         {"role": "user", "content": [text("F")]}])),
    ("an image", {"messages": LOOK},
     ollama_chat(messages=[{"role": "user", "content": "What is it?\nSay.", "images": [PNG]}]),
     claude(messages=[{"role": "user", "content": [
         text("What is it?"),
         {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
         text("Say.")]}])),
    ("an image elsewhere", {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}]}]},
     "messages[0].content[0]",
     claude(messages=[{"role": "user", "content": [
         {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}}]}])),
    ("kept there", {"messages": [{"role": "system", "content": [
        {"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral"}}]}] + USER,
                    "tools": [{**TOOL, "cache_control": {"type": "ephemeral"}}]},
     ollama_chat(messages=[{"role": "system", "content": "Long."}] + USER,
                 tools=[{**TOOL, "cache_control": {"type": "ephemeral"}}]),
     claude(system=[{**text("Long."), "cache_control": {"type": "ephemeral"}}],
            tools=[{"name": "weather", "description": "Today's weather", "input_schema": SCHEMA,
                    "cache_control": {"type": "ephemeral"}}])),
    ("sound", {"messages": [{"role": "user", "content": [
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}]},
     "messages[0].content[0]", "messages[0].content[0]"),
    ("no image", {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
     "messages[0].content[0]", "messages[0].content[0]"),
    ("several answers", {"n": 2}, "n", "n"),
    ("one answer", {"n": 1}, ollama_chat(), claude()),
    ("logprobs", {"logprobs": True}, "logprobs", "logprobs"),
    ("no logprobs", {"logprobs": False}, ollama_chat(), claude()),
    ("bias", {"logit_bias": {"5": 1}}, "logit_bias", "logit_bias"),
    ("no bias", {"logit_bias": {}}, ollama_chat(), claude()),
    ("an adapter", {"adapter": "pirate"}, "adapter", "adapter"),
    ("no end", {"ignore_eos": True}, "ignore_eos", "ignore_eos"),
    ("unknown", {"wizardry": 7}, "wizardry", "wizardry"),
    ("unknown and null", {"wizardry": None}, ollama_chat(), claude()),
]
TEXTS = [
    ("plain", {}, ollama_text()),
    ("one in a list", {"prompt": ["One,"], "max_tokens": 5},
     ollama_text(options={"num_predict": 5})),
    ("several", {"prompt": ["a", "b"]}, "prompt"),
    ("token ids", {"prompt": [1, 2]}, "prompt"),
    ("between", {"suffix": "three"},
     {"model": "up", "stream": False, "prompt": "One,", "suffix": "three",
      "options": {"num_predict": 16}}),
    ("echo", {"echo": True}, "echo"),
    ("best of", {"best_of": 2}, "best_of"),
]


def check_ollama(body):
    chat = "messages" in body
    kind = ot.ChatRequest if chat else ot.GenerateRequest
    kind.model_validate({k: v for k, v in body.items() if k != "messages"})
    assert set(body) <= set(kind.model_fields), body
    assert set(body.get("options", {})) <= OPTIONS, body
    ot.Options.model_validate(body.get("options", {}))
    for m in body.get("messages", []):
        # what the package calls an Image goes out as its base64 text
        images = [{"value": i} for i in m.get("images", [])]
        said = ot.Message.model_validate({**m, **({"images": images} if images else {})})
        assert said.model_dump().get("images") in (None, m.get("images")), m
        # ids are in the server's types (api/types.go), not in the package's
        assert set(m) <= set(ot.Message.model_fields) | {"tool_call_id"}, m


def check_anthropic(body):
    kind = MessageCreateParamsStreaming if body["stream"] else MessageCreateParamsNonStreaming
    TypeAdapter(kind).validate_python(body)
    assert set(body) <= set(kind.__annotations__) | set(
        at.message_create_params.MessageCreateParamsBase.__annotations__) | SAMPLING, body


def asks():
    out = []

    def add(api, endpoint, name, request, expected, check):
        row = {"name": f"{api}: {name}", "api": api, "endpoint": endpoint, "request": request}
        if isinstance(expected, str):
            row["refused"] = expected
        else:
            check(expected)
            row["expected"] = expected
        out.append(row)

    for name, more, for_ollama, for_anthropic in CHATS:
        request = {"model": "m", "messages": USER, **more}
        add("ollama", "chat", name, request, for_ollama, check_ollama)
        add("anthropic", "chat", name, request, for_anthropic, check_anthropic)
    for name, more, expected in TEXTS:
        request = {"model": "m", "prompt": "One,", **more}
        add("ollama", "completion", name, request, expected, check_ollama)
    add("anthropic", "completion", "none", {"model": "m", "prompt": "One,"}, "prompt", None)
    return out


# ---- answers ----

def usage(prompt, completion, cached=0):
    return {"prompt_tokens": prompt, "completion_tokens": completion,
            "total_tokens": prompt + completion, "prompt_tokens_details": {"cached_tokens": cached}}


def whole(message, finish, used, **more):
    body = {**HEAD, "object": "chat.completion", "choices": [
        {"index": 0, "message": {"role": "assistant", "refusal": None, **message},
         "logprobs": None, "finish_reason": finish, **more}], "usage": used}
    ChatCompletion.model_validate(body)
    return body


def call(arguments, id_="call_12ab_0", index=None, name="weather"):
    row = {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
    return row if index is None else {"index": index, **row}


def line(message, done=False, **more):
    body = {"model": "up", "created_at": "2026-01-02T03:04:05.6Z",
            "message": {"role": "assistant", "content": "", **message}, "done": done, **more}
    ot.ChatResponse.model_validate(body)
    return body


def written(done, response="", **more):
    body = {"model": "up", "created_at": "2026-01-02T03:04:05.6Z", "response": response,
            "done": done, **more}
    ot.GenerateResponse.model_validate(body)
    return body


def claudes(content, stop_reason, stop_sequence=None, **used):
    body = {"id": "msg_1", "type": "message", "role": "assistant", "model": "up",
            "content": content, "stop_reason": stop_reason, "stop_sequence": stop_sequence,
            "usage": {"input_tokens": 9, "output_tokens": 2, **used}}
    at.Message.model_validate(body)
    return body


OCALL = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
COUNTS = {"prompt_eval_count": 9, "eval_count": 2, "total_duration": 5000}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}


def answers():
    said = {"content": "Hello"}
    done = {"content": "One,", "object": "text_completion"}
    rows = [
        ("ollama", "chat", line(said, True, done_reason="stop", **COUNTS),
         whole(said, "stop", usage(9, 2))),
        ("ollama", "chat", line(said, True, done_reason="length", **COUNTS),
         whole(said, "length", usage(9, 2))),
        ("ollama", "chat", line({"thinking": "Hm.", "content": "Hello"}, True, eval_count=3),
         whole({"content": "Hello", "reasoning_content": "Hm."}, "stop", usage(0, 3))),
        ("ollama", "chat", line({"tool_calls": [OCALL, {"id": "own", **OCALL}]}, True, **COUNTS),
         whole({"content": None, "tool_calls": [call('{"city":"Oslo"}'),
                                                call('{"city":"Oslo"}', "own")]},
               "tool_calls", usage(9, 2))),
        ("ollama", "completion", written(True, " two", done_reason="length", **COUNTS),
         {**HEAD, "object": "text_completion", "choices": [
             {"index": 0, "text": " two", "logprobs": None, "finish_reason": "length"}],
          "usage": usage(9, 2)}),
        ("anthropic", "chat", claudes([text("Hel"), text("lo")], "end_turn"),
         whole(said, "stop", usage(9, 2))),
        ("anthropic", "chat", claudes([text("Hello")], "max_tokens", cache_read_input_tokens=4,
                                      cache_creation_input_tokens=3),
         whole(said, "length", usage(16, 2, 4))),
        ("anthropic", "chat", claudes([text("Hello")], "stop_sequence", "END"),
         whole(said, "stop", usage(9, 2), stop_reason="END")),
        ("anthropic", "chat", claudes([text("Hello")], "refusal"),
         whole(said, "content_filter", usage(9, 2))),
        ("anthropic", "chat", claudes([{"type": "thinking", "thinking": "Hm.", "signature": "s"},
                                       USE], "tool_use"),
         whole({"content": None, "reasoning_content": "Hm.",
                "tool_calls": [call('{"city":"Oslo"}', "toolu_1")]}, "tool_calls", usage(9, 2))),
    ]
    out = [{"api": a, "endpoint": e, "body": json.dumps(b), "expected": x} for a, e, b, x in rows]
    wrong = [
        ("ollama", "{}"), ("ollama", "[]"), ("ollama", "Hello"), ("ollama", ""),
        ("ollama", json.dumps(line(said))), ("ollama", '{"error":"out of memory"}'),
        ("ollama", '{"done":true,"message":{"tool_calls":[{"function":{"name":"f"}}]}}'),
        ("ollama", '{"done":1,"message":{"content":""}}'), ("ollama", '{"done":true,"message":7}'),
        ("anthropic", "{}"), ("anthropic", '{"content":[],"stop_reason":null}'),
        ("anthropic", '{"content":[{}],"stop_reason":"end_turn"}'),
        ("anthropic", '{"content":[{"type":"tool_use"}],"stop_reason":"tool_use"}'),
        ("anthropic", '{"type":"error","error":{"type":"api_error","message":"out of memory"}}'),
    ]
    for api, body in wrong:
        row = {"api": api, "endpoint": "chat", "body": body}
        row["error"] = "out of memory" if "memory" in body else "garbled"
        out.append(row)
    return out


# ---- streams ----

def chunk(delta, finish=None, **more):
    row = {**HEAD, "object": "chat.completion.chunk", "choices": [
        {"index": 0, "delta": delta, "finish_reason": finish, **more}]}
    ChatCompletionChunk.model_validate(row)
    return row


def counted(chunks, used):
    last = {**HEAD, "object": "chat.completion.chunk", "choices": [], "usage": used}
    ChatCompletionChunk.model_validate(last)
    return [{**c, "usage": None} for c in chunks] + [last]


ROLE = chunk({"role": "assistant", "content": ""})


def lines(*events):
    return "".join(json.dumps(e) + "\n" for e in events)


def events(*list_):
    """Anthropic's, each of the official type."""
    for e in list_:
        if e["type"] not in ("ping", "error", "news"):
            TypeAdapter(at.RawMessageStreamEvent).validate_python(e)
    return "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in list_)


def start(**used):
    message = claudes([], None, **{"output_tokens": 1, **used})
    return {"type": "message_start", "message": message}


def block(index, block_, *deltas):
    yield {"type": "content_block_start", "index": index, "content_block": block_}
    for d in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": d}
    yield {"type": "content_block_stop", "index": index}


def says(s):
    return {"type": "text_delta", "text": s}


def last(reason, sequence=None, **used):
    return [{"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": sequence},
             "usage": {"output_tokens": 2, **used}}, {"type": "message_stop"}]


def streams():
    hello = [ROLE, chunk({"content": "Hel"}), chunk({"content": "lo é\n"}), chunk({}, "stop")]
    end = line({}, True, done_reason="stop", **COUNTS)
    empty = {"type": "text", "text": ""}
    good = [
        ("ollama", "chat", {}, lines(line({"content": "Hel"}), line({"content": "lo é\n"}), end),
         hello),
        ("ollama", "chat", {"stream_options": {"include_usage": True}},
         lines(line({"content": "Hel"}), line({"content": "lo é\n"}), end) + "\n\nanything",
         counted(hello, usage(9, 2))),
        ("ollama", "chat", {}, lines(
            line({"thinking": "Hm."}), line({"tool_calls": [OCALL]}), line({"tool_calls": [OCALL]}),
            end),
         [ROLE, chunk({"reasoning_content": "Hm."}),
          chunk({"tool_calls": [call('{"city":"Oslo"}', index=0)]}),
          chunk({"tool_calls": [call('{"city":"Oslo"}', "call_12ab_1", 1)]}),
          chunk({}, "tool_calls")]),
        ("ollama", "chat", {}, lines(line({}, True, done_reason="load")),
         [ROLE, chunk({}, "stop")]),
        ("ollama", "completion", {}, lines(written(False, " two"), written(True, **COUNTS)),
         [{**HEAD, "object": "text_completion", "choices": [
             {"index": 0, "text": t, "finish_reason": f}]} for t, f in ((" two", None),
                                                                       ("", "stop"))]),
        ("anthropic", "chat", {}, events(
            start(), {"type": "ping"}, *block(0, empty, says("Hel"), says("lo é\n")),
            {"type": "news"}, *last("end_turn")), hello),
        ("anthropic", "chat", {"stream_options": {"include_usage": True}}, events(
            start(cache_read_input_tokens=4), *block(0, empty, says("Hel"), says("lo é\n")),
            *last("end_turn")), counted(hello, usage(13, 2, 4))),
        ("anthropic", "chat", {}, events(
            start(), *block(0, {"type": "thinking", "thinking": "", "signature": ""},
                            {"type": "thinking_delta", "thinking": "Hm."},
                            {"type": "signature_delta", "signature": "s"}),
            *block(1, empty, says("Look:")),
            *block(2, {**USE, "input": {}}, *({"type": "input_json_delta", "partial_json": j}
                                              for j in ("", '{"city":', '"Oslo"}'))),
            *block(3, {**USE, "id": "toolu_2", "input": {}}), *last("tool_use")),
         [ROLE, chunk({"reasoning_content": "Hm."}), chunk({"content": "Look:"}),
          chunk({"tool_calls": [call('{"city":"Oslo"}', "toolu_1", 0)]}),
          chunk({"tool_calls": [call("{}", "toolu_2", 1)]}), chunk({}, "tool_calls")]),
        ("anthropic", "chat", {}, events(start(), *block(0, empty, says("Hel")),
                                         *last("stop_sequence", "END")),
         [ROLE, chunk({"content": "Hel"}), chunk({}, "stop", stop_reason="END")]),
        ("anthropic", "chat", {}, events(start(), *last("max_tokens")).replace("\n", "\r\n"),
         [ROLE, chunk({}, "length")]),
    ]
    out = [{"api": a, "endpoint": e, "request": {"stream": True, **r}, "text": t,
            "expected": x} for a, e, r, t, x in good]
    one = line({"content": "Hel"})
    wrong = [
        ("ollama", lines(one) + '{"error":"out of memory"}\n', "out of memory"),
        ("ollama", lines(one) + '{"message":\n', "garbled"),
        ("ollama", lines(one) + "7\n", "garbled"),
        ("ollama", '{"message":{"content":"\\ud800"},"done":false}\n', "garbled"),
        ("ollama", '{"done":false}\n', "garbled"),
        ("ollama", "data: {}\n\n", "garbled"),
        ("anthropic", events(start(), {"type": "error", "error":
                                       {"type": "overloaded_error", "message": "Overloaded"}}),
         "Overloaded"),
        ("anthropic", lines(one), "garbled"),
        ("anthropic", "data: [1]\n\n", "garbled"),
        ("anthropic", "data: {}\n\n", "garbled"),
        ("anthropic", events(start(), {"type": "message_stop"}), "garbled"),
        ("anthropic", "<html>\n", "garbled"),
        ("anthropic", 'data: {"type":"content_block_start","content_block":{"type":"tool_use"}}\n',
         "garbled"),
    ]
    out += [{"api": a, "endpoint": "chat", "request": {"stream": True}, "text": t, "error": w}
            for a, t, w in wrong]
    return out


def errors():
    return [
        {"api": "ollama", "status": 404, "body": '{"error":"model \'x\' not found"}',
         "message": "model 'x' not found", "type": "invalid_request_error"},
        {"api": "anthropic", "status": 400, "body": json.dumps(
            {"type": "error", "error": {"type": "invalid_request_error", "message": "too long"},
             "request_id": "req_1"}), "message": "too long", "type": "invalid_request_error"},
        {"api": "ollama", "status": 404, "body": "404 page not found", "message": None},
        {"api": "anthropic", "status": 400, "body": '{"error":"x"}', "message": None},
    ]


def main():
    out = {"asks": asks(), "answers": answers(), "streams": streams(), "errors": errors()}
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else (
        pathlib.Path(__file__).resolve().parent / "cases.json")
    kinds = [f'"{k}": [\n' + ",\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "]"
             for k, rows in out.items()]
    path.write_text("{" + ",\n".join(kinds) + "}\n")
    print({k: len(v) for k, v in out.items()})


if __name__ == "__main__":
    main()
