"""Tokens/s with speculation always off, always on and by load, over 1 to 16 streams, through HTTP and side by side.

All three modes serve the same artefact, each in a server of its own, and take turns; every answer is cut at the same length.
The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from quicksilver import engines
from quicksilver.bench import stats
from quicksilver.bench.load import run_load
from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.build import store
from quicksilver.nouns import Artifact, Endpoint, Prompt, Sample, Settings, Speculation, Workload
from quicksilver.nouns.speculation import FILE
from quicksilver.recipes import load_recipe
from quicksilver.sources import models, workloads
from stamp import stamp

RECIPE = Path(__file__).parent.parent / "examples" / "recipes" / "smollm2-cost.toml"
TOKENS = 96
"""Of each answer, whatever it says: longer ones would fall into loops, which flatters speculation."""
ALWAYS = Speculation(kind="prompt_lookup", tokens=5, adapts=False)
"""Five is what OpenVINO GenAI guesses by default."""
MODES = ("off", "always on", "by load")
ANSWERS = 24
"""Answers that guesses are replayed on for the table, as an optimisation does with those of its final race."""
# Prompts of a round by streams, each used once: no stream waits long for the last.
Loads = dict[str, dict[int, int]]
LOADS: Loads = {
    "hotpotqa": {1: 4, 2: 6, 4: 12, 8: 24, 16: 48},
    "stories at temperature 1": {1: 2, 2: 4, 4: 8, 8: 16, 16: 32},
}
HEROES = ("a lighthouse keeper", "two rival bakers", "a retired spy", "an honest thief", "a robot gardener", "a lost whale",
          "the last librarian", "a clumsy wizard", "a night bus driver", "a painter of maps", "a talking crow", "three sisters")  # fmt: skip
PLACES = ("on the moon", "in a flooded city", "during a long winter", "in an empty airport", "at the bottom of the sea",
          "on a train that never stops", "in a desert of glass", "behind the waterfall", "in old Lisbon", "on a small island",
          "in a school at night", "above the clouds", "in a country without music", "at the edge of a forest", "in a toy shop")  # fmt: skip


def main() -> int:
    """Measure, draw the chart if it is asked for, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="+", help="only these of the loads")
    parser.add_argument("--chart", type=Path, help="where to write the chart, SVG")
    options = parser.parse_args()
    every = {
        name: {n: count for n, count in loads.items() if n in (options.streams or loads)}
        for name, loads in LOADS.items()
    }
    counts = [1 + sum(loads.values()) * options.rounds for loads in every.values()]
    load = workloads.load("hotpotqa", prompts=60 + 2 * (counts[0] + ANSWERS))
    questions = [*load.search, *load.evaluation]
    prompts = {"hotpotqa": _cut(questions[ANSWERS:]), "stories at temperature 1": _cut(_stories())}
    for (name, found), needed in zip(prompts.items(), counts, strict=True):
        if len(found) < needed:
            parser.error(f"{name} has {len(found)} prompts, and {options.rounds} rounds need {needed}")
    artifact = _artifact(load)
    with tempfile.TemporaryDirectory() as folder:
        _tabulate(artifact, questions[:ANSWERS], load, Path(folder))
        samples = _measure(artifact, prompts, every, options.rounds, Path(folder))
    results = {name: [_row(samples[name], streams) for streams in loads] for name, loads in every.items()}
    document = {
        "benchmark": "speculation",
        "recipe": artifact.label,
        "rounds": options.rounds,
        "answer_tokens": TOKENS,
        "always_on_tokens": ALWAYS.tokens,
        "results": results,
        **stamp(),
    }
    if options.chart is not None:
        options.chart.write_text(draw(document), encoding="utf-8")
    print(json.dumps(document))
    return 0


def _cut(prompts: Sequence[Prompt]) -> list[Prompt]:
    return [prompt.model_copy(update={"ignore_eos": True, "max_tokens": TOKENS}) for prompt in prompts]


def _stories() -> list[Prompt]:
    tasks = ("Write a story about", "Write a strange poem about")
    texts = (f"{task} {hero} {place}." for task, hero, place in itertools.product(tasks, HEROES, PLACES))
    return [
        Prompt.model_validate({"id": f"story-{number}", "messages": [{"role": "user", "content": text}]})
        for number, text in enumerate(texts)
    ]


def _artifact(load: Workload) -> Artifact:
    recipe = load_recipe(RECIPE)
    plan = planning.make(recipe, models.resolve(recipe.model), load.calibration)
    return building.build(plan, say=lambda text: print(text, file=sys.stderr))


def _tabulate(artifact: Artifact, prompts: Sequence[Prompt], load: Workload, folder: Path) -> None:
    """Put a fresh table into the artefact, as an optimisation does for its winner."""
    engine = engines.find(artifact.engine)
    with engine.serve(artifact.path, artifact.settings) as endpoint:
        samples = run_load(endpoint, prompts, concurrency=8, max_tokens=load.max_tokens, out=folder / "answers.jsonl")
    known = {prompt.id: prompt for prompt in prompts}
    answers = [(known[sample.prompt_id], sample.text) for sample in samples]
    table = engine.speculation_table(artifact.path, artifact.settings, answers)
    assert table is not None
    store.amend(artifact.key, FILE, table.model_copy(update={"workload": load.name}).model_dump_json(indent=1))


def _settings(artifact: Artifact, mode: str) -> Settings:
    changed: dict[str, dict[str, Any]] = {
        "off": {"speculation": None},
        "always on": {"speculation": ALWAYS},
        "by load": {},
    }
    return artifact.settings.model_copy(update=changed[mode])


def _measure(
    artifact: Artifact, prompts: dict[str, list[Prompt]], every: Loads, rounds: int, folder: Path
) -> dict[str, dict[str, list[Sample]]]:
    """Return each workload's and mode's Samples. At each load the modes go one after the other, in turning order."""
    engine = engines.find(artifact.engine)
    found: dict[str, dict[str, list[Sample]]] = {name: {mode: [] for mode in MODES} for name in every}
    with ExitStack() as servers:
        endpoints: dict[str, Endpoint] = {
            mode: servers.enter_context(engine.serve(artifact.path, _settings(artifact, mode))) for mode in MODES
        }
        for endpoint in endpoints.values():
            run_load(
                endpoint,
                prompts["hotpotqa"][:1],
                concurrency=1,
                max_tokens=16,
                out=folder / "warm-up.jsonl",
                warmup=True,
            )
        turn = 0
        for name, loads in every.items():
            fields = {} if name == "hotpotqa" else {"temperature": 1.0}
            left = iter(prompts[name][1:])
            for number, (streams, count) in itertools.product(range(rounds), loads.items()):
                chosen = list(itertools.islice(left, count))
                for mode in (*MODES[turn % 3 :], *MODES[: turn % 3]):
                    samples = run_load(
                        endpoints[mode],
                        chosen,
                        concurrency=streams,
                        max_tokens=TOKENS,
                        out=folder / "samples.jsonl",
                        round=number,
                        fields=fields,
                    )
                    found[name][mode] += samples
                    rate = stats.speed(samples, streams).tokens_per_s.value
                    print(
                        f"{name}, round {number + 1}, {streams} streams, {mode}: {rate:.0f} tokens/s", file=sys.stderr
                    )
                turn += 1
    return found


def _row(samples: dict[str, list[Sample]], streams: int) -> dict[str, Any]:
    """Return the tokens/s of each mode at a load, and what following the load is worth against the better of the others."""
    speeds = {mode: stats.speed(samples[mode], streams) for mode in MODES}
    better = max(("off", "always on"), key=lambda mode: speeds[mode].tokens_per_s.value)
    ratio = stats.ratio(samples["by load"], samples[better], streams)
    return {
        "streams": streams,
        "tokens_per_s": {m: s.tokens_per_s.model_dump(include={"value", "low", "high"}) for m, s in speeds.items()},
        "better": better,
        "ratio_to_better": ratio.model_dump(include={"value", "low", "high"}) if ratio else None,
        "requests": speeds["off"].requests,
        "errors": sum(s.errors for s in speeds.values()),
    }


def draw(document: dict[str, Any]) -> str:
    """Draw a panel for each workload and a line for each mode, as SVG; bars are the range of rounds."""
    import altair as alt
    import vl_convert

    rows = [
        {"workload": name, "streams": row["streams"], "speculation": mode, **figure}
        for name, found in document["results"].items()
        for row in found
        for mode, figure in row["tokens_per_s"].items()
    ]
    looks = {"off": ("#6b7280", "square"), "always on": ("#d97706", "triangle-up"), "by load": ("#2563eb", "circle")}
    base = alt.Chart().encode(
        x=alt.X("streams:O", title="streams at once", axis=alt.Axis(labelAngle=0)),
        color=alt.Color("speculation:N", sort=MODES, scale=alt.Scale(domain=MODES, range=[looks[m][0] for m in MODES])),
    )
    shape = alt.Shape("speculation:N", sort=MODES, scale=alt.Scale(domain=MODES, range=[looks[m][1] for m in MODES]))
    middle = alt.Y("value:Q", title="tokens/s, all streams")
    layers = alt.layer(
        base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(strokeWidth=2).encode(y=middle),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=middle, shape=shape),
        data=alt.Data(values=rows),
    ).properties(width=340, height=260)
    facet = alt.Facet("workload:N", title=None, sort=list(LOADS), header=alt.Header(labelFontSize=13))
    chart = layers.facet(facet).resolve_scale(y="independent").configure(background="white", padding=12)
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    svg: str = vl_convert.vegalite_to_svg(chart.to_dict(), vl_version=version, allowed_base_urls=[])
    return svg


if __name__ == "__main__":
    sys.exit(main())
