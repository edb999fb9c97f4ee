#!/usr/bin/env python3
"""Load over HTTP with streaming on a server of its own; prints figures beside the bounds they have.

usage: bench/serving.py SCENARIO [--quick] [--model NAME] [options]

Writes bench/results/serving-SCENARIO.json and a Markdown table, for an idle machine; --quick is a
small run that shows whether the scenario works (into build/bench, figures mean nothing). The client
shares the processors with the server and is made to cost little (serving_client.py).
"""
import argparse

import serving_adapters
import serving_cache
import serving_long
import serving_models
import serving_speed

PHI3, SMOLLM2 = "phi3-mini:q4_k_m", "smollm2"


def sizes(text):
    return [int(n) for n in text.split(",")]


# scenario: function, what it does, model, {option: (type, full, quick, help)}
SCENARIOS = {
    "personas": (serving_speed.personas, "users of one persona, here and in the peer", PHI3, {
        "memory": (str, "8GiB", "2GiB", "memory limit"),
        "clients": (int, 8, 4, "users at once"),
        "gen": (int, 16, 8, "tokens of an answer"),
        "rounds": (int, 3, 1, "rounds, each with a persona of its own"),
        "peer": (int, 1, 0, "1: run llama-cpp-python's server too, 0: leave it out")}),
    "batch": (serving_speed.batch, "decode speed by the number of clients", PHI3, {
        "memory": (str, "8GiB", "2GiB", "memory limit"),
        "sizes": (sizes, [1, 2, 4, 8, 16], [1, 4, 8], "numbers of clients"),
        "gen": (int, 48, 32, "tokens of an answer"),
        "rounds": (int, 3, 1, "rounds over all numbers")}),
    "adapters": (serving_adapters.adapters, "streams with an adapter each, here and in the peer", PHI3, {
        "memory": (str, "8GiB", "2GiB", "memory limit"),
        "bench-memory": (str, "12GiB", "2GiB", "memory limit in process, where 32 adapters are held"),
        "budget": (str, "600MiB", "100MiB", "of it for adapters"),
        "clients": (int, 8, 4, "streams and adapters"),
        "gen": (int, 48, 32, "tokens of an answer"),
        "rounds": (int, 3, 1, "rounds, with adapters and without in turn"),
        "shapes": (str, "1/1,8/8,32/32", "1/1,4/4", "batch/adapters in process, with commas between"),
        "peer": (int, 1, 0, "1: run llama-cpp-python too, 0: leave it out")}),
    "smooth": (serving_speed.smooth, "gaps of running streams beside a long prompt", PHI3, {
        "memory": (str, "8GiB", "2GiB", "memory limit"),
        "clients": (int, 4, 4, "streams"),
        "long": (int, 4000, 1500, "tokens of the prompt"),
        "gen": (int, 2000, 2000, "most tokens of a stream"),
        "quiet": (int, 30, 3, "seconds before the prompt comes")}),
    "fair": (serving_speed.fair, "one tenant floods, another asks once a second", PHI3, {
        "memory": (str, "8GiB", "2GiB", "memory limit"),
        "flood": (int, 16, 8, "long requests at all times"),
        "long": (int, 1500, 600, "tokens of their prompts"),
        "requests": (int, 60, 8, "short requests, one a second"),
        "quiet": (int, 5, 1, "seconds of flood before the first one")}),
    "cache": (serving_long.cache, "conversations: prefix cache on, off and small", SMOLLM2, {
        # so little that it bounds the pool, from which the limit of the small pool is worked out
        "memory": (str, "1GiB", "1GiB", "memory limit"),
        "users": (int, 50, 8, "conversations"),
        "clients": (int, 4, 4, "of them at once"),
        "gen": (int, 48, 16, "tokens of an answer")}),
    "stability": (serving_long.stability, "streams, of which a third leaves at random", SMOLLM2, {
        "memory": (str, "1280MiB", "400MiB", "memory limit"),
        "clients": (int, 200, 40, "streams at all times"),
        "seconds": (int, 600, 20, "duration"),
        "gen": (int, 100, 40, "tokens of an answer")}),
    "load": (serving_long.load, "requests at a steady rate, prompts by Zipf's law", SMOLLM2, {
        "memory": (str, "8GiB", "2GiB", "memory limit"),
        "rate": (float, 50.0, 10.0, "requests per second"),
        "seconds": (int, 300, 10, "duration"),
        "prompts": (int, 500, 50, "different prompts"),
        "gen": (int, 8, 8, "tokens of an answer")}),
    "repeats": (serving_cache.repeats, "a steady rate of requests, most asked before", PHI3, {
        "memory": (str, "8GiB", "1GiB", "memory limit"),
        "rate": (float, 50.0, 20.0, "requests per second"),
        "share": (float, 0.9, 0.9, "of requests that were asked before"),
        "own": (int, 20, 20, "tokens of a question of its own"),
        "even": (int, 0, 0, "1: one request every 1 / rate seconds, 0: a Poisson process"),
        "seconds": (int, 600, 10, "duration")}),
    "hits": (serving_cache.hits, "cached answers, as fast as they go", SMOLLM2, {
        "memory": (str, "2GiB", "1GiB", "memory limit"),
        "prompts": (int, 100, 10, "different requests"),
        "clients": (sizes, [16, 64], [16], "numbers of connections"),
        "seconds": (int, 10, 2, "of each measurement")}),
    "models": (serving_models.models, "two models busy at once, against each alone", SMOLLM2, {
        "memory": (str, "8GiB", "2GiB", "memory limit"),
        "second": (str, PHI3, SMOLLM2, "the other model"),
        "clients": (int, 4, 2, "streams of each"),
        "gen": (int, 4000, 2000, "most tokens of a stream"),
        "seconds": (int, 15, 3, "of each measurement"),
        "rounds": (int, 3, 1, "servers of each build"),
        "beside": (str, "", "", "another build's program, measured in turn")}),
    "light": (serving_cache.light, "short questions to a persona, one at a time", PHI3, {
        "memory": (str, "8GiB", "1GiB", "memory limit"),
        "requests": (int, 100, 8, "questions"),
        "own": (int, 20, 20, "tokens of a question of its own")}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="scenario", required=True)
    for name, (_, about, model, own) in SCENARIOS.items():
        p = commands.add_parser(name, help=about, description=about)
        p.add_argument("--quick", action="store_true", help="a small run, smollm2 unless told")
        p.add_argument("--model", help=f"ARCH:QUANT, smollm2 or a file [{model}]")
        p.add_argument("--threads", type=int, default=2)
        for option, (kind, full, quick, text) in own.items():
            p.add_argument(f"--{option}", type=kind, help=f"{text} [{full}, quick {quick}]")
    options = parser.parse_args()
    function, _, model, own = SCENARIOS[options.scenario]
    options.model = options.model or (SMOLLM2 if options.quick else model)
    for option, (_, full, quick, _) in own.items():
        name = option.replace("-", "_")
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    function(options)


if __name__ == "__main__":
    main()
