"""The official openai package for Python against a running server (TERRACE_URL)."""
import os
import re
import threading
import time
import urllib.request

import openai

from service import run_tests

URL, MODEL = os.environ["TERRACE_URL"], os.environ["TERRACE_MODEL_ID"]
client = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=120)
HELLO = [{"role": "user", "content": "Say hello in one short sentence."}]


def chat(messages=HELLO, **kw):
    return client.chat.completions.create(model=MODEL, messages=messages,
                                          **{"temperature": 0, "max_tokens": 16, **kw})


def warm(make):
    """The second of two equal requests: its prompt is cached, as it will be for those after it. A
    cold prompt is computed in other pieces, which may turn a near tie between two tokens."""
    make()
    return make()


def refused(kind, param, **kw):
    try:
        chat(**kw)
    except kind as e:
        assert e.param == param, (e.param, param)
        assert param is None or param.split("[")[0] in e.message, e.message
        return e
    raise AssertionError(f"accepted: {kw}")


def test_models():
    models = client.models.list().data
    assert models[0].id == MODEL and models[0].object == "model"
    assert client.models.retrieve(MODEL).id == MODEL


def test_chat():
    r = chat()
    assert r.object == "chat.completion" and r.id.startswith("chatcmpl-") and r.model == MODEL
    assert abs(r.created - time.time()) < 600
    c = r.choices[0]
    assert c.message.role == "assistant" and c.message.content and c.index == 0
    assert c.finish_reason in ("stop", "length")
    u = r.usage
    assert u.prompt_tokens > 10 and 0 < u.completion_tokens <= 16
    assert u.total_tokens == u.prompt_tokens + u.completion_tokens
    assert 0 <= u.prompt_tokens_details.cached_tokens < u.prompt_tokens


def test_stream_equals_response():
    whole = warm(lambda: chat(max_tokens=40))
    chunks = list(chat(max_tokens=40, stream=True))
    assert len({c.id for c in chunks}) == 1 and len({c.created for c in chunks}) == 1
    assert all(c.object == "chat.completion.chunk" for c in chunks)
    first, last = chunks[0].choices[0], chunks[-1].choices[0]
    assert first.delta.role == "assistant" and first.delta.content == ""
    assert all(c.choices[0].delta.role is None for c in chunks[1:])
    assert last.delta.content is None and last.finish_reason == whole.choices[0].finish_reason
    assert all(c.choices[0].finish_reason is None for c in chunks[:-1])
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.choices[0].message.content


def test_stream_usage():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].usage.completion_tokens > 0
    assert chunks[-1].usage.prompt_tokens == chat().usage.prompt_tokens


def test_cached_tokens():
    long = [{"role": "user", "content": f"{time.time()} " + "word " * 200}]
    second = warm(lambda: chat(long, max_tokens=2))
    assert second.usage.prompt_tokens_details.cached_tokens > 150, second.usage
    salted = chat(long, max_tokens=2, extra_body={"cache_salt": "other"})
    assert salted.usage.prompt_tokens_details.cached_tokens == 0


def test_n():
    r = warm(lambda: chat(n=3, temperature=1.5, seed=7))
    assert [c.index for c in r.choices] == [0, 1, 2]
    assert len({c.message.content for c in r.choices}) > 1
    again = chat(n=3, temperature=1.5, seed=7)
    assert [c.message.content for c in r.choices] == [c.message.content for c in again.choices]
    assert r.usage.prompt_tokens == chat().usage.prompt_tokens
    texts = ["", "", ""]
    for chunk in chat(n=3, temperature=1.5, seed=7, stream=True):
        for c in chunk.choices:
            texts[c.index] += c.delta.content or ""
    assert texts == [c.message.content for c in r.choices]


def test_stop():
    count = [{"role": "user", "content": "Count from 1 to 9, separated by commas."}]
    whole = warm(lambda: chat(count, max_tokens=60)).choices[0].message.content
    word = re.findall(r"\w+", whole)[2]
    r = chat(count, max_tokens=60, stop=["no such text", word])
    assert r.choices[0].message.content == whole[:whole.index(word)]
    assert r.choices[0].finish_reason == "stop" and r.choices[0].stop_reason == word
    kept = chat(count, max_tokens=60, stop=word, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].message.content == whole[:whole.index(word) + len(word)]


def test_length():
    r = chat(max_tokens=3, extra_body={"ignore_eos": True})
    assert r.choices[0].finish_reason == "length" and r.usage.completion_tokens == 3
    r = chat(max_tokens=openai.omit, max_completion_tokens=2, extra_body={"ignore_eos": True})
    assert r.usage.completion_tokens == 2


def test_logprobs():
    r = warm(lambda: chat(logprobs=True, top_logprobs=4))
    rows = r.choices[0].logprobs.content
    text = b"".join(bytes(t.bytes) for t in rows).decode()
    assert text == r.choices[0].message.content, (text, r.choices[0].message.content)
    for t in rows:
        assert t.logprob <= 0 and len(t.top_logprobs) == 4
        assert t.top_logprobs[0].token == t.token  # greedy takes the likeliest
        lps = [a.logprob for a in t.top_logprobs]
        assert lps == sorted(lps, reverse=True)
    streamed = [t for c in chat(logprobs=True, top_logprobs=4, stream=True) for x in c.choices
                if x.logprobs for t in x.logprobs.content]
    assert [t.token for t in streamed] == [t.token for t in rows]


def test_logit_bias():
    ids = client.post("/../tokenize", cast_to=object, body={"content": "Hello"})["tokens"]
    r = chat(max_tokens=2, logit_bias={str(ids[0]): 100})
    assert r.choices[0].message.content == "HelloHello"


def test_continue_final_message():
    r = chat(HELLO + [{"role": "assistant", "content": "Hello there, my"}],
             extra_body={"continue_final_message": True, "add_generation_prompt": False})
    assert r.choices[0].message.content


def test_roles_and_parts():
    r = chat([{"role": "developer", "content": "Answer briefly."},
              {"role": "user", "content": [{"type": "text", "text": "Hi"},
                                           {"type": "text", "text": "there"}]},
              {"role": "assistant", "content": "Hello"},
              {"role": "user", "content": "Bye"}])
    assert r.choices[0].message.content


def test_completions():
    r = warm(lambda: client.completions.create(model=MODEL, prompt="The capital of France is",
                                               max_tokens=8, temperature=0, logprobs=2))
    assert r.object == "text_completion" and "Paris" in r.choices[0].text
    lp = r.choices[0].logprobs
    n = len(lp.tokens)
    assert n == len(lp.token_logprobs) == len(lp.top_logprobs) == len(lp.text_offset)
    assert lp.text_offset[0] == 0 and all(len(t) == 2 for t in lp.top_logprobs)
    text = "".join(c.choices[0].text for c in client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=8, temperature=0, stream=True))
    assert text == r.choices[0].text
    two = client.completions.create(model=MODEL, prompt=["One two three", "A b c"], n=2, echo=True,
                                    max_tokens=4, temperature=0)
    assert [c.index for c in two.choices] == [0, 1, 2, 3]
    assert two.choices[1].text.startswith("One two three")
    assert two.choices[2].text.startswith("A b c")
    ids = client.post("/../tokenize", cast_to=object, body={"prompt": "The capital of"})["tokens"]
    by_ids = client.completions.create(model=MODEL, prompt=ids, max_tokens=4, temperature=0)
    assert by_ids.usage.prompt_tokens == len(ids)


def test_tokenize_round_trip():
    for text in ("Hello world", " two  spaces\n\ttab", "naïve café 日本語 🙂", "<|im_end|>"):
        got = client.post("/../tokenize", cast_to=object,
                          body={"model": MODEL, "prompt": text, "add_special_tokens": False})
        assert got["count"] == len(got["tokens"])
        back = client.post("/../detokenize", cast_to=object, body={"tokens": got["tokens"]})
        assert back["prompt"] == text, (back, text)


def test_errors():
    e = refused(openai.BadRequestError, "temperature", temperature=3)
    assert e.type == "invalid_request_error" and e.status_code == 400
    refused(openai.BadRequestError, "n", n=17)
    refused(openai.BadRequestError, "messages[0].role", messages=[{"role": "x", "content": ""}])
    refused(openai.BadRequestError, "response_format", response_format={"type": "json_object"})
    refused(openai.BadRequestError, "top_logprobs", top_logprobs=2)
    # the template of this model has no place for them
    refused(openai.BadRequestError, "tools",
            tools=[{"type": "function", "function": {"name": "f"}}])
    refused(openai.BadRequestError, "messages[0].content[0]", messages=[{
        "role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}])
    e = refused(openai.BadRequestError, "messages",
                messages=[{"role": "user", "content": "word " * 20000}])
    assert e.code == "context_length_exceeded"
    # in a stream, errors found before the first token have their status too
    refused(openai.BadRequestError, "top_p", top_p=0, stream=True)


def test_unknown_model():
    try:
        client.chat.completions.create(model="no-such", messages=HELLO)
    except openai.NotFoundError as e:
        assert e.code == "model_not_found" and e.param == "model"
        return
    raise AssertionError("accepted")


def running():
    with urllib.request.urlopen(URL + "/metrics") as r:
        text = r.read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
               if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting")))


def wait_idle():
    until = time.monotonic() + 60
    while running():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_cancel_stream():
    """A client that closes its stream takes the request out of the engine at once."""
    wait_idle()
    stream = chat(stream=True, max_tokens=4000, extra_body={"ignore_eos": True})
    for i, _ in enumerate(stream):
        if i == 5:
            break
    assert running() == 1
    start = time.monotonic()
    stream.close()
    wait_idle()
    assert time.monotonic() - start < 5  # 4000 tokens take longer by far


def test_cancel_waiting():
    """The same for one that waits for a whole response."""
    wait_idle()
    impatient = client.with_options(timeout=0.3)
    try:
        impatient.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4000,
                                          extra_body={"ignore_eos": True})
        raise AssertionError("answered")
    except openai.APITimeoutError:
        wait_idle()


def test_many_at_once():
    want = warm(lambda: chat(max_tokens=12)).choices[0].message.content
    got = [None] * 8

    def one(i):
        got[i] = chat(max_tokens=12).choices[0].message.content

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(g[:4] == want[:4] for g in got), (want, got)


raise SystemExit(run_tests(dict(globals())) != 0)
