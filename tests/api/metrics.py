#!/usr/bin/env python3
"""/metrics against Prometheus' own linter, and against what was asked of the server."""
import json
import os
import re
import subprocess
import sys
import urllib.request

from service import run_tests

URL, MODEL = os.environ["TERRACE_URL"], os.environ["TERRACE_MODEL_ID"]

# What the linter holds against names that are vLLM's, not ours to choose.
VLLM_ONLY = re.compile(r"^vllm:\S+ (metric names should not contain ':'"
                       r"|non-counter metrics should not have \"_total\" suffix)$")


def fetch(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(URL + path, data, timeout=120) as reply:
        return reply.read().decode()


def samples():
    out = {}
    for line in fetch("/metrics").splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = re.sub(r'model_name="(?:[^"\\]|\\.)*",engine="0",?', "", name)
            out[name.replace("{}", "")] = float(value)
    return out


def test_promtool():
    text = fetch("/metrics")
    done = subprocess.run(["promtool", "check", "metrics"], input=text.encode(),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = [line for line in done.stdout.decode().splitlines() if not VLLM_ONLY.match(line)]
    assert not said, "\n".join(said)
    assert done.returncode in (0, 3), done.returncode  # 3: only the linter complained
    assert "terrace_" in text


def test_counts():
    prompt = "Count what this request brings: one, two, three, four, five, six, seven"
    ask = {"model": MODEL, "prompt": prompt, "max_tokens": 7, "ignore_eos": True}
    before = samples()
    usage = json.loads(fetch("/v1/completions", ask))["usage"]
    again = json.loads(fetch("/v1/completions", ask))["usage"]
    after = samples()

    def grown(name):
        return after[name] - before.get(name, 0)

    tokens = usage["prompt_tokens"]
    cached = (usage["prompt_tokens_details"]["cached_tokens"] +
              again["prompt_tokens_details"]["cached_tokens"])
    assert again["prompt_tokens_details"]["cached_tokens"] == tokens - 1
    assert grown("vllm:prompt_tokens_total") == 2 * tokens
    assert grown("vllm:generation_tokens_total") == 14
    for name in ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total",
                 "vllm:prompt_tokens_cached_total",
                 'vllm:prompt_tokens_by_source_total{source="local_cache_hit"}'):
        assert grown(name) == cached, name
    for name in ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"):
        assert grown(name) == 2 * tokens, name
    assert grown('vllm:prompt_tokens_by_source_total{source="local_compute"}') == 2 * tokens - cached
    assert grown('vllm:request_success_total{finished_reason="length"}') == 2
    assert grown("vllm:request_params_max_tokens_sum") == 14
    assert grown("vllm:request_max_num_generation_tokens_sum") == 14
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds",
                 "request_queue_time_seconds", "request_inference_time_seconds",
                 "request_prefill_time_seconds", "request_decode_time_seconds",
                 "request_prompt_tokens", "request_generation_tokens", "request_params_n",
                 "request_time_per_output_token_seconds"):
        assert grown(f"vllm:{name}_count") == 2, name
    assert grown("vllm:inter_token_latency_seconds_count") > 0
    assert grown('terrace_http_requests_total{method="POST",route="/v1/completions",status="200"}') == 2
    assert grown("terrace_engine_step_seconds_total") > 0
    assert after["terrace_resident_bytes"] > 1 << 20
    assert grown("vllm:iteration_tokens_total_count") == grown("terrace_engine_steps_total") > 0
    assert grown("vllm:iteration_tokens_total_sum") == 2 * tokens - cached + 2 * 6
    assert after['vllm:iteration_tokens_total_bucket{le="+Inf"}'] == \
        after["vllm:iteration_tokens_total_count"]
    assert sum(after[f'vllm:num_requests_waiting_by_reason{{reason="{r}"}}']
               for r in ("capacity", "deferred")) == after["vllm:num_requests_waiting"]
    info = [name for name in after if name.startswith("vllm:lora_requests_info{")]
    assert re.search(r'max_lora="\d+",running_lora_adapters="[^"]*",waiting_lora_adapters="[^"]*"',
                     info[0]), info
    config = [name for name in after if name.startswith("vllm:cache_config_info{")]
    blocks = int(re.search(r'num_gpu_blocks="(\d+)"', config[0])[1])
    assert sum(after[f'terrace_kv_blocks{{state="{s}"}}']
               for s in ("free", "cached", "held")) == blocks


def test_speculation():
    ask = {"model": MODEL, "prompt": "The quick brown fox jumps over the lazy dog. " * 6,
           "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    before = samples()
    plain = json.loads(fetch("/v1/completions", {**ask, "speculate": False}))
    between = samples()
    guessed = json.loads(fetch("/v1/completions", {**ask, "speculate": True}))
    after = samples()
    assert plain["choices"][0]["text"] == guessed["choices"][0]["text"]
    drafts = "vllm:spec_decode_num_drafts_total"
    accepted = "vllm:spec_decode_num_accepted_tokens_total"
    assert between[drafts] == before[drafts] and after[accepted] > between[accepted]


if __name__ == "__main__":
    sys.exit(run_tests(globals()) != 0)
