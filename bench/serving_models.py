"""Serving scenario of several models: two of them busy at once, against each alone."""
import asyncio
import pathlib
import tempfile
import time

import service
from common import machine, model_file
from serving_client import begin, body, exact
from serving_kit import Server, bound, median, percentile, text_of, write_report

WARM_S = 2  # streams run for so long before what they get is counted


async def stream_for(port, requests, seconds):
    """All at once, then they leave: the answers, and the window in which they count."""
    pairs = [begin(port, r) for r in requests]
    began = time.perf_counter()
    while any(not answer.times for answer, _ in pairs):
        if any(task.done() for _, task in pairs):
            raise SystemExit(next(answer.error for answer, task in pairs if task.done()))
        await asyncio.sleep(0.05)
        if time.perf_counter() - began > 300:
            raise SystemExit("no first token for five minutes")
    await asyncio.sleep(WARM_S)
    start = time.perf_counter()
    await asyncio.sleep(seconds)
    for answer, _ in pairs:
        answer.leave()
    await asyncio.gather(*(task for _, task in pairs))
    return [answer for answer, _ in pairs], start, start + seconds


def counted(answers, start, end):
    """(tokens a second, gaps) within the window."""
    times = [[t for t in a.times if start <= t <= end] for a in answers]
    gaps = [b - a for line in times for a, b in zip(line, line[1:])]
    return sum(map(len, times)) / (end - start), gaps


def measure(build, number, server, folder, names, options):
    """A row for the models of these names, busy at once."""
    requests = [exact(body(text_of(server, f"{name} {i}", 32), options.gen, speculate=False,
                           model=str(folder / f"{name}.gguf")))
                for name in names for i in range(options.clients)]
    answers, start, end = asyncio.run(stream_for(server.port, requests, options.seconds))
    row = {"build": build, "round": number, "busy": " and ".join(names), "tok/s": 0.0}
    for k, name in enumerate(names):
        rate, gaps = counted(answers[k * options.clients:(k + 1) * options.clients], start, end)
        row["tok/s"] += rate
        row[f"tok/s of {name}"] = rate
        row[f"p50 gap ms of {name}"] = 1e3 * median(gaps)
        row[f"p99 gap ms of {name}"] = 1e3 * percentile(gaps, 99)
    return row


def one_server(build, program, number, names, options, folder):
    service.TERRACE = program
    with Server(options, "--model", folder / f"{names[1]}.gguf", "--ctx", options.gen + 64) as s:
        return [measure(build, number, s, folder, busy, options)
                for busy in ([names[0]], [names[1]], names)]


def models(options):
    facts = machine()
    builds = {"this": service.TERRACE}
    if options.beside:
        builds["beside"] = pathlib.Path(options.beside)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        names = ["first", "second"]
        for name, model in zip(names, (options.model, options.second)):
            (folder / f"{name}.gguf").symlink_to(model_file(model))
        options.model, shown = str(folder / "first.gguf"), f"{options.model} and {options.second}"
        for number in range(options.rounds):
            for build, program in builds.items():
                rows += one_server(build, program, number + 1, names, options, folder)
    options.model = shown

    def of(build, busy, key):
        return median(r[key] for r in rows if r["build"] == build and r["busy"] == busy)

    both, bounds = "first and second", []
    for name in names:
        alone = of("this", name, f"tok/s of {name}")
        bounds.append(bound(f"tok/s of {name} beside the other, share of what it has alone",
                            of("this", both, f"tok/s of {name}") / alone, least=0.4))
    if options.beside:
        for busy in (*names, both):
            bounds.append(bound(f"tok/s of {busy}, times that of the build beside",
                                of("this", busy, "tok/s") / of("beside", busy, "tok/s"), least=0.97))
        for name in names:
            key = f"p99 gap ms of {name}"
            bounds.append(bound(f"p99 gap of {name} while both are busy, times that of the build "
                                "beside", of("this", both, key) / of("beside", both, key), most=1))
    write_report(options, facts, rows, bounds)
