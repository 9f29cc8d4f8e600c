"""Re-make every figure of the README: run each benchmark, keep its JSON line, and write the figures between the marks."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peer_figures
import planner_figures
from stamped import made

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- figures: made by `make bench` -->", "<!-- end of figures -->"
COST, AVX512, INT8 = (
    HERE.parent / "examples" / "recipes" / f"smollm2-{name}.toml" for name in ("cost", "avx512", "int8")
)
JOBS = {
    "light": [str(HERE / "light.py")],
    "cold_start": [str(HERE / "cold_start.py")],
    "speedup": [str(HERE / "speedup.py"), str(AVX512), str(INT8)],
    "decoder": [str(HERE / "decoder.py")],
    "gateway": [str(HERE / "gateway.py"), str(COST)],
    "soak": [str(HERE / "soak.py"), str(COST)],
    "speculation": [str(HERE / "speculation.py"), "--chart", str(RESULTS / "speculation.svg")],
    "agreement": [str(HERE / "agreement.py")],
    "surface": [str(HERE / "surface.py")],
    "main_job": [str(HERE / "main_job.py")],
    "peers": [str(HERE / "peers.py"), "--chart", str(RESULTS / "peers.svg")],
    "through": [str(HERE / "through.py")],
    "native": [str(HERE / "native.py")],
    "search_quality": [str(HERE / "search_quality.py"), "--limit", "48", "--weight", "2", "--seeds", "10"],
} | {name: [str(HERE / f"{name}.py")] for name in planner_figures.BENCHMARKS}
ON_REQUEST = {"agreement", "native", "peers", "search_quality", "through", *planner_figures.BENCHMARKS}
"""These need environments of their own, or take long: see the Makefile."""


def main() -> int:
    """Run the benchmarks named on the command line (by default all that need no more than the project), one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "benchmarks",
        nargs="*",
        choices=list(JOBS),
        help=f"by default all but those that need environments of their own: {', '.join(sorted(ON_REQUEST))}",
    )
    names = parser.parse_args().benchmarks or [name for name in JOBS if name not in ON_REQUEST]
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        done = subprocess.run([sys.executable, *JOBS[name]], check=True, stdout=subprocess.PIPE, text=True)
        document = json.loads(done.stdout.splitlines()[-1])
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{figures()}\n{END}{after}", encoding="utf-8")
    return 0


def figures() -> str:
    """Return the README's figures in Markdown, from the results kept."""
    speedup, light, cold, decoder, gateway, soak, job = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("speedup", "light", "cold_start", "decoder", "gateway", "soak", "main_job")
    )
    lines = [
        "| recipe | tokens/s, 1 stream | against as-is | tokens/s, 8 streams | against as-is | quality loss |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in speedup["rows"]:
        one, eight, loss = row["1 streams"], row["8 streams"], row["quality_loss_percent"]
        lines.append(
            f"| {row['recipe']} | {_ranged(one['tokens_per_s'], 0)} | {_ranged(one['ratio'], 2)}x "
            f"| {_ranged(eight['tokens_per_s'], 0)} | {_ranged(eight['ratio'], 2)}x | {_ranged(loss, 2)} % |"
        )
    requests = sum(speedup["rows"][0][f"{c} streams"]["requests"] for c in (1, 8))
    lines += [
        "",
        f"SmolLM2-135M-Instruct on `hotpotqa`, {requests} prompts a recipe in {speedup['rounds']} interleaved rounds, over HTTP; in",
        (f"brackets the range of rounds (tokens/s) and 95 % intervals (ratios, loss). {made(speedup)}"),
        "",
        (
            "Without speculation and without HTTP our decoder gives "
            + " and ".join(f"{_ranged(figure, 2)}x at {load}" for load, figure in decoder["ratio"].items())
            + f" of what OpenVINO GenAI's own pipeline gives with the same artefact. {made(decoder)}"
        ),
        "",
        (
            "Over HTTP the endpoint gives "
            + " and ".join(f"{_ranged(figure, 3)}x at {load}" for load, figure in gateway["ratio"].items())
            + " of what the same decoder gives in the caller's own process, and adds "
            f"{_ranged(gateway['ttft_ms']['added'], 1)} ms to the first token of {gateway['ttft_ms']['in process']:.0f} ms at one stream. "
            f"{made(gateway)}"
        ),
        "",
        (
            f"{soak['requests']} requests in {soak['minutes']:.0f} minutes, of which {sum(soak['statuses']['malformed'].values())} were malformed, "
            f"{sum(soak['statuses']['cancelled'].values())} cancelled at random moments and {sum(soak['statuses']['burst'].values())} in bursts of 200: "
            f"{len(soak['faults'])} faults, nothing left behind, and memory within {soak['memory_mb']['moved']:.1%} over the last half. "
            f"{made(soak)}"
        ),
        "",
        (
            f"`import quicksilver` takes {light['import_ms']['median']:.0f} ms "
            f"({light['import_ms']['low']:.0f}-{light['import_ms']['high']:.0f}), of which Python itself "
            f"{light['python_ms']['median']:.0f}; `quicksilver --help` {light['help_ms']['median']:.0f} ms "
            f"({light['help_ms']['low']:.0f}-{light['help_ms']['high']:.0f}). {made(light)}"
        ),
        "",
        "| from process start to the first token, s | compiled graph kept | compiled anew | OpenVINO GenAI's own pipeline | saved |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | "
            + " | ".join(_ranged(row[kind]["first_token_s"], 2) for kind in ("kept", "anew", "GenAI"))
            + f" | {_ranged({key: 100 * share for key, share in row['saved'].items()}, 0)} % |"
            for name, row in cold["recipes"].items()
        ),
        "",
        (
            f"Server and pipeline load the same artefact, in {cold['rounds']} interleaved rounds; in brackets their range. "
            f"{made(cold)}"
        ),
        "",
        (
            f"The main job, with nothing built yet, took {job['minutes']:.1f} minutes and {job['peak_memory_mb'] / 1000:.1f} GB of memory "
            f"at its peak, all its processes together, and chose {job['best']}. {made(job)}"
        ),
    ]
    return "\n".join(lines + _speculation() + _search() + _peers() + _engines() + planner_figures.lines(RESULTS))


def _speculation() -> list[str]:
    """Return what following the load is worth against the better of always and never; nothing before it was measured."""
    file = RESULTS / "speculation.json"
    if not file.is_file():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    modes = list(next(iter(found["results"].values()))[0]["tokens_per_s"])
    lines = [
        "",
        "![Tokens/s by streams: speculation off, always on, and by load](benchmarks/results/speculation.svg)",
        "",
        f"| prompts | streams | {' | '.join(modes)} | by load against the better of the two |",
        "| --- " * (3 + len(modes)) + "|",
    ]
    for name, rows in found["results"].items():
        for row in rows:
            rates = " | ".join(_ranged(row["tokens_per_s"][mode], 0) for mode in modes)
            lines.append(f"| {name} | {row['streams']} | {rates} | {_ranged(row['ratio_to_better'], 2)}x |")
    return [
        *lines,
        "",
        (
            f"Tokens/s, {found['recipe']}, answers of {found['answer_tokens']} tokens; `always on` guesses {found['always_on_tokens']}. "
            f"{found['rounds']} interleaved rounds over HTTP; in brackets their range. {made(found)}"
        ),
    ]


def _of_all(found: Mapping[str, Any]) -> str:
    """Return what searches found of the best of everything that was raced again: the sweep's best needn't be that."""
    if not (again := found["rematch"]):
        return ""
    shares = [again[one["winner"]] / max(again.values()) for one in found["searches"]]
    shown = {"median": statistics.median(shares), "low": min(shares), "high": max(shares)}
    return f" Of the best of all that was raced again, searches included, it is {_percents(shown)}."


def _search() -> list[str]:
    """Return what the search finds of the best there is; nothing of a benchmark before it was run."""
    lines = []
    if (file := RESULTS / "search_quality.json").is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        best, time, runs = found["share_of_best"], found["time_share"], found["stability"]
        same = runs["same_winner"] + runs["equal_within_intervals"]
        lines += [
            "",
            (
                f"A search of {found['configurations']} configurations finds {_percents(best)} of the best value that a sweep of all of them finds, in "
                f"{_percents(time)} of its {found['sweep']['seconds'] / 60:.0f} minutes of measuring: SmolLM2-135M on `hotpotqa` at 1 and 8 streams, "
                f"{len(found['searches'])} seeds, what was found raced once more beside the sweep's best. The winner that was chosen most often was chosen "
                f"{runs['same_winner']} of {runs['runs']} times, it or one that differs by less than their intervals {same} times; the cost model was off by "
                f"{found['cost_model_error_percent']:.1f} % in the median on what it hadn't seen.{_of_all(found)} {made(found)}"
            ),
        ]
    if (file := RESULTS / "surface.json").is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        lines += [
            "",
            (
                f"On {len(found['seeds'])} synthetic response surfaces of {found['configurations']:,} configurations, {found['evaluations']['most']} evaluations at most "
                f"find {_percents(found['share_of_optimum'])} of the optimum. {made(found)}"
            ),
        ]
    return lines


ALIKE = "; what ours is against a server is for answers as long as that one's"
"""Of peers that were measured before there was such a ratio it isn't true."""


def _peers() -> list[str]:
    """Return what our choice is against other servers; nothing before it was measured."""
    file = RESULTS / "peers.json"
    if not file.is_file():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    return [
        "",
        "![Tokens/s of Quicksilver's choice and of other servers with their defaults](benchmarks/results/peers.svg)",
        "",
        *peer_figures.summary(found),
        "",
        (
            f"{found['model']} on `{found['workload']}`, at most {found['most_tokens']} tokens an answer, over HTTP, everyone's tokens counted by "
            f"the model's own tokenizer{ALIKE if found.get('at_lengths') else ''}. "
            f"{found['rounds']} interleaved rounds; in brackets their range. {made(found)}"
        ),
    ]


OF_ENGINES = {
    "through": ("engines", "Through us an engine gives, of what its own server gives with the same arguments"),
    "native": (
        "stacks",
        "llama.cpp's server built for this CPU (`quicksilver engine add llamacpp --native`) gives, of what the prebuilt one gives",
    ),
}
"""Benchmarks whose figures are ratios by load: what the document calls its rows, and what is said of them."""


def _engines() -> list[str]:
    """Return what was measured of engines' own servers, a sentence a benchmark; nothing of one that wasn't run."""
    lines = []
    for name, (rows, what) in OF_ENGINES.items():
        file = RESULTS / f"{name}.json"
        if not file.is_file():
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        said = "; ".join(f"{row} {_by_load(figures['ratio'])}" for row, figures in found[rows].items())
        lines += ["", f"{what}: {said}. {found['rounds']} interleaved rounds. {made(found)}"]
    return lines


def _by_load(ratios: Mapping[str, dict[str, Any]]) -> str:
    return " and ".join(
        f"{_ranged(figure, 3)}x at {load} {'stream' if load == '1' else 'streams'}" for load, figure in ratios.items()
    )


def _percents(figure: dict[str, float]) -> str:
    return f"{100 * figure['median']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}] %"


def _ranged(figure: dict[str, Any] | None, digits: int) -> str:
    if figure is None:
        return "n/a"
    value, low, high = (
        None if x is None else round(x, digits) + 0.0 for x in map(figure.get, ("value", "low", "high"))
    )
    return f"{value:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if low is not None else "")


if __name__ == "__main__":
    sys.exit(main())
