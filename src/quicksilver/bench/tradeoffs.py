"""Presets, the front, interactions and crossovers as tables and sentences, the same for every face of the report."""

from __future__ import annotations

from collections.abc import Sequence

from quicksilver.bench.findings import NOTHING, dollars, interval, number, percent, streams
from quicksilver.nouns import Crossover, Figure, Preset, Result, Settings

Table = tuple[list[str], list[list[str]]]
BENCHMARK = ["streams", "TTFT p50, ms", "tokens/s a user", "tokens/s in all", "against as-is", "$ per 1M"]


def benchmark(preset: Preset) -> Table:
    """A preset's benchmark by load. Tokens/s a user is 1 / median TPOT: what one of them sees while an answer comes."""
    return list(BENCHMARK), [
        [
            str(speed.concurrency),
            number(speed.ttft_ms.p50) if speed.ttft_ms.count else NOTHING,
            number(1000 / speed.tpot_ms.p50) if speed.tpot_ms.p50 > 0 else NOTHING,
            number(speed.tokens_per_s.value),
            times(speed.ratio),
            dollars(cost.measured) if cost is not None else NOTHING,
        ]
        for speed, cost in zip(preset.benchmark, preset.costs, strict=True)
    ]


def presets(result: Result) -> Table:
    """The benchmarks of a result's presets in one table; those that share a recipe share its rows."""
    rows = []
    for names, preset in named(result):
        for index, row in enumerate(benchmark(preset)[1]):
            rows.append([f"{names}: {preset.label}" if index == 0 else "", *row])
    return ["preset", *BENCHMARK], rows


def named(result: Result) -> list[tuple[str, Preset]]:
    """The presets of a result by recipe, with their names: `cost, balanced`."""
    found: dict[str, list[Preset]] = {}
    for preset in result.presets:
        found.setdefault(preset.recipe_hash, []).append(preset)
    return [(", ".join(p.name for p in same), same[0]) for same in found.values()]


def presets_listed(presets: Sequence[Preset], mine: Sequence[bool]) -> Table:
    """A line for each preset; `mine` says which were measured on this machine."""
    heads = ["model", "preset", "recipe", "workload", "tokens/s", "at load", "TTFT p50, ms", "$ per 1M", "loss %", "measured"]  # fmt: skip
    rows = []
    for preset, own in zip(presets, mine, strict=True):
        first, last = (preset.benchmark[0], preset.benchmark[-1]) if preset.benchmark else (None, None)
        cost = preset.costs[-1] if preset.costs else None
        rows.append(
            [
                preset.model,
                preset.name,
                preset.label,
                preset.workload,
                f"{number(first.tokens_per_s.value)} / {number(last.tokens_per_s.value)}"
                if first and last
                else NOTHING,
                f"{first.concurrency} / {last.concurrency}" if first and last else NOTHING,
                number(first.ttft_ms.p50) if first else NOTHING,
                dollars(cost.measured) if cost is not None else NOTHING,
                lost(preset),
                preset.created[:10] + ("" if own else " on another machine"),
            ]
        )
    return heads, rows


def lost(preset: Preset) -> str:
    """A preset's quality loss in percent, with its interval."""
    found = preset.quality.loss if preset.quality is not None else None
    if found is None:
        return NOTHING
    between = interval(found, percent)
    return percent(found.value) + (f" ({between})" if between and found.low != found.high else "")


def preset_facts(preset: Preset) -> dict[str, str]:
    """What a preset is, for people."""
    chosen = preset.settings.model_dump(mode="json", exclude_none=True)
    usual = Settings().model_dump(mode="json")
    return {
        "preset": f"{preset.name} of {preset.model}",
        "recipe": preset.label,
        "why": preset.why,
        "quality loss": f"{lost(preset)} %, of at most {preset.max_quality_loss:g} %",
        "workload": preset.workload,
        "settings": ", ".join(f"{key} {_setting(v)}" for key, v in chosen.items() if v != usual[key])
        or "the engine's own",
        "artefact": preset.artifact,
    }


def _setting(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_setting(inner)}" for key, inner in value.items()) + ")"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def provenance(preset: Preset) -> dict[str, str]:
    """Where a preset's figures come from: they were measured, there and then."""
    machine = preset.hardware
    return {
        "measured": f"{preset.created}, run {preset.run}" + (f", commit {preset.commit}" if preset.commit else ""),
        "machine": f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb:g} GB"
        + (f" ({', '.join(machine.isa)})" if machine.isa else ""),
        "with": ", ".join(f"{tool} {version}" for tool, version in preset.tools.items()),
        "price": f"${preset.price.usd_per_hour:g} an hour ({preset.price.source})",
    }


def front(result: Result) -> Table:
    """The points by price, latency and loss: those of the front first."""
    names = {p.label: ", ".join(q.name for q in result.presets if q.label == p.label) for p in result.points}
    ordered = sorted(result.points, key=lambda p: (not p.on_front, p.cost.value))
    heads = ["recipe", "price of a token", "time of an answer", "quality loss, %", "on the front", "preset"]
    return heads, [
        [
            point.label,
            ranged(point.cost),
            ranged(point.latency),
            NOTHING if point.loss is None else percent(point.loss.value),
            "yes" if point.on_front else "no",
            names[point.label] or NOTHING,
        ]
        for point in ordered
    ]


def interactions(result: Result) -> Table:
    """What each technique of the winner gives alone, what they would promise multiplied, and what they give together."""
    found = result.interactions
    if found is None:
        return [], []
    parts = [
        [part.label, *(ranged(r) if r is not None else "not measured" for r in part.ratios), part.remark]
        for part in found.parts
    ]
    product = [ranged(r) if r is not None else "not known" for r in found.product]
    share = [
        f"{100 * (stack.value / promised.value - 1):+.0f} %" if stack is not None and promised is not None else NOTHING
        for stack, promised in zip(found.stack, found.product, strict=True)
    ]
    heads = ["tokens/s against as-is", *(streams(c) for c in found.concurrencies), ""]
    return heads, [
        *parts,
        ["what the product would promise", *product, "a prediction, for comparison only" if any(found.product) else ""],
        ["all together, measured", *(ranged(r) if r is not None else "not measured" for r in found.stack), ""],
        ["together over product", *share, ""],
    ]


def crossovers(result: Result) -> list[str]:
    """A sentence for each pair of recipes that were compared over the load."""
    return [_crossing(one) for one in result.crossovers]


def _crossing(one: Crossover) -> str:
    loads = ", ".join(map(str, one.concurrencies))
    at = f"{loads} {'streams' if one.concurrencies != (1,) else 'stream'}"
    if not one.ahead:
        return f"{one.first} and {one.second} are level within the noise at {at}."
    if one.between is None:
        return f"{one.first} is ahead of {one.second}, or level with it within the noise, at {at}."
    low, high = one.between
    if one.streams is None:
        return f"{one.second} overtakes {one.first} between {low} and {high} streams."
    between = interval(one.streams, "{:.1f}".format)
    where = f"{one.streams.value:.1f} streams" + (f" ({between})" if between else "")
    return f"{one.second} overtakes {one.first} at about {where}, between the {low} and {high} that were measured."


def prediction(result: Result) -> str:
    """How far off the cost model was on recipes that it hadn't seen; nothing if it wasn't used."""
    error = result.cost_model_error
    if error is None:
        return ""
    between = interval(error, percent)
    count = f", over {error.count} prediction{'s' if error.count != 1 else ''}" if error.count is not None else ""
    return (
        f"The cost model's predictions were off by {percent(error.value)} % in the median"
        + (f" ({between})" if between else "")
        + f"{count}, each made before its recipe was measured."
    )


def times(ratio: Figure | None) -> str:
    """`1.54x`, or nothing known."""
    return NOTHING if ratio is None else f"{ratio.value:.2f}x"


def ranged(ratio: Figure) -> str:
    """`1.54x (1.48..1.60)`."""
    between = "" if ratio.low == ratio.high else interval(ratio, "{:.2f}".format)
    return times(ratio) + (f" ({between})" if between else "")


def summary(result: Result) -> list[tuple[str, list[str]]]:
    """Titles with sentences, for a terminal: presets, interactions, crossovers."""
    found = []
    lines = []
    for names, preset in named(result):
        rates = [f"{number(s.tokens_per_s.value)} at {s.concurrency}" for s in preset.benchmark]
        lines.append(f"{names}: {preset.label}" + (f"; tokens/s {', '.join(rates)}" if rates else ""))
    if lines:
        found.append(("Presets", lines))
    heads, rows = interactions(result)
    if rows:
        lines = [
            f"{row[0]}: {', '.join(f'{cell} at {head}' for head, cell in zip(heads[1:-1], row[1:-1], strict=True))}"
            + (f" ({row[-1]})" if row[-1] else "")
            for row in rows
        ]
        found.append(("Alone and together, tokens/s against as-is", lines))
    if crossed := crossovers(result):
        found.append(("As the load grows", crossed))
    if words := prediction(result):
        found.append(("Predictions", [words]))
    return found
