#!/usr/bin/env python3
"""Tool calls with OpenAI's client. The small model was not made for tools: a template teaches the
format, and a history of the same call lets it copy one."""
import json
import sys
import tempfile

import openai

from service import Service, run_tests

TEMPLATE = """{% if tools %}<|im_start|>system
Tools, called as <tool_call>{"name": ..., "arguments": {...}}</tool_call>: {{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOOL = {"type": "function", "function": {
    "name": "weather", "description": "The weather of a town.",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}}}
CALL = {"name": "weather", "arguments": json.dumps({"town": "Paris"})}


def history():
    turns = []
    for i in range(3):
        turns += [{"role": "user", "content": "What is the weather in Paris?"},
                  {"role": "assistant", "content": None,
                   "tool_calls": [{"id": f"call_{i}", "type": "function", "function": CALL}]},
                  {"role": "tool", "tool_call_id": f"call_{i}", "content": "sunny"}]
    return turns + [{"role": "user", "content": "What is the weather in Paris?"}]


def ask(**more):
    return CLIENT.chat.completions.create(model=MODEL, messages=history(), tools=[TOOL],
                                          max_tokens=60, temperature=0, **more)


def check(name, arguments, call_id):
    assert name == "weather" and json.loads(arguments) == {"town": "Paris"}, (name, arguments)
    assert call_id.startswith("call_")


def test_whole():
    choice = ask().choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
    call, = choice.message.tool_calls
    check(call.function.name, call.function.arguments, call.id)


def test_stream():
    with CLIENT.chat.completions.stream(model=MODEL, messages=history(), tools=[TOOL],
                                        max_tokens=60, temperature=0) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls", choice
    call, = choice.message.tool_calls
    check(call.function.name, call.function.arguments, call.id)


def test_none():
    choice = ask(tool_choice="none").choices[0]
    assert choice.finish_reason in ("stop", "length") and not choice.message.tool_calls
    for forced in ("required", {"type": "function", "function": {"name": "weather"}}):
        try:
            ask(tool_choice=forced)
            raise AssertionError("no error")
        except openai.BadRequestError as e:
            assert e.param == "tool_choice", e


if __name__ == "__main__":
    with tempfile.NamedTemporaryFile("w", suffix=".jinja") as f:
        f.write(TEMPLATE)
        f.flush()
        with Service("--chat-template", f.name, limit_s=300) as s:
            MODEL = s.model
            CLIENT = openai.OpenAI(base_url=s.url + "/v1", api_key="none", max_retries=0,
                                   timeout=120)
            failed = run_tests(globals())
    sys.exit(failed != 0)
