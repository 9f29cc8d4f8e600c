"""From the Samples of servers to rows, ratios, a table in Markdown and a chart: the pure part of the peers benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from quicksilver.bench import stats
from quicksilver.nouns import Sample
from quicksilver.nouns.score import Figure
from quicksilver.sources.text import Tokenizer

OURS = "Quicksilver"
GOAL = 1.3
"""What our choice should be of the best peer's default."""
FAR = 0.4
"""A server whose first round gave less than this of the fastest one's at the same load is measured in that round only."""


def recounted(samples: Iterable[Sample], tokenizer: Tokenizer) -> list[Sample]:
    """Return Samples whose tokens are counted by one tokenizer over the answer's text: servers count each in their own way."""
    return [replace(s, completion_tokens=len(tokenizer.encode(s.text, special=False))) for s in samples]


def affordable(count: int, streams: int, seconds_each: float | None, patience_s: float) -> int:
    """Return how many of a load's prompts a server gets that took so long for each under the lighter load before."""
    if seconds_each is None or seconds_each * count <= patience_s:
        return count
    return min(count, max(streams, int(patience_s / seconds_each)))


def far_behind(rates: Mapping[str, float]) -> set[str]:
    """Return the servers that are too slow to be worth another round."""
    best = max(rates.values(), default=0.0)
    return {name for name, rate in rates.items() if name != OURS and rate < FAR * best}


def result(samples: Mapping[str, Sequence[Sample]], served: Mapping[str, int], streams: int) -> dict[str, Any]:
    """Return one load's rows, and what our choice is against the best peer, which is the one that it is least ahead of.

    `samples` by server are recounted; `served` is how many tokens each server said that it gave.
    """
    rows = [_row(name, own, samples.get(OURS, ()), served.get(name, 0), streams) for name, own in samples.items()]
    peers = [row for row in rows if row["server"] != OURS and row["tokens_per_s"]["value"] > 0]
    found: dict[str, Any] = {"streams": streams, "rows": rows, "best_peer": None, "ratio_to_best": None}
    found |= {"reached": None, "never_below": None}
    if compared := [row for row in peers if row["ratio"] is not None]:
        best = min(compared, key=lambda row: row["ratio"]["value"])
        found |= {"best_peer": best["server"], "ratio_to_best": best["ratio"]}
        found |= {"reached": best["ratio"]["value"] >= GOAL, "never_below": best["ratio"]["value"] >= 1}
    return found


def _row(name: str, own: Sequence[Sample], ours: Sequence[Sample], served: int, streams: int) -> dict[str, Any]:
    speed = stats.speed(own, streams)
    ratio = stats.ratio(ours, own, streams, at_lengths=True) if name != OURS else None
    good = [s.completion_tokens for s in own if s.error is None]
    return {
        "server": name,
        "tokens_per_s": plain(speed.tokens_per_s),
        "ratio": plain(ratio),
        "requests_per_s": speed.requests_per_s,
        "ttft_ms_p50": speed.ttft_ms.p50,
        "tpot_ms_p50": speed.tpot_ms.p50,
        "answer_tokens_mean": sum(good) / len(good) if good else 0.0,
        "stopped_by_limit": sum(s.finish == "length" for s in own),
        "tokens_by_its_own_count": served,
        "tokens_by_ours": sum(good),
        "requests": speed.requests,
        "errors": speed.errors,
        "rounds": len({s.round for s in own}),
    }


def plain(figure: Figure | None) -> dict[str, Any] | None:
    """Return a figure's value and interval, for JSON."""
    return None if figure is None else figure.model_dump(include={"value", "low", "high"})


def table(document: Mapping[str, Any]) -> list[str]:
    """Return the lines of a Markdown table: a row a server, for each load its tokens/s and what our choice is of them."""
    results = document["results"]
    heads = [
        cell
        for found in results
        for cell in (f"tokens/s, {_streams(found['streams'])}", "ours against it", "tokens an answer")
    ]
    lines = [f"| server | weights | {' | '.join(heads)} |", "| --- " * (2 + len(heads)) + "|"]
    names = dict.fromkeys(row["server"] for found in results for row in found["rows"])
    for name in sorted(names, key=lambda name: name != OURS):
        cells = []
        for found in results:
            row = next((row for row in found["rows"] if row["server"] == name), None)
            cells += ["n/a"] * 3 if row is None else _cells(row)
        lines.append(f"| {name} | {document['servers'].get(name, {}).get('weights', '')} | {' | '.join(cells)} |")
    return lines


def _cells(row: Mapping[str, Any]) -> list[str]:
    rate = _ranged(row["tokens_per_s"], 0)
    mark = "" if row["rounds"] > 1 or row["server"] == OURS else " ¹"
    ratio = "" if row["server"] == OURS else "n/a" if row["ratio"] is None else f"{_ranged(row['ratio'], 2)}x"
    return [f"{rate}{mark}", ratio, f"{row['answer_tokens_mean']:.0f}"]


def summary(document: Mapping[str, Any]) -> list[str]:
    """Return the table and what a reader has to know of it, in Markdown."""
    choices = document["choices"]
    said = "; ".join(f"{_streams(int(n))}: {label}" for n, label in choices.items())
    lines = [*table(document), "", f"Our choice, {said}."]
    for label, loss in document["quality_loss_percent"].items():
        lines[-1] += (
            f" Quality loss of {label}: {_ranged(loss, 2)} %." if loss else f" Quality loss of {label}: not known."
        )
    bests = [
        f"{_ranged(found['ratio_to_best'], 2)}x of {found['best_peer']} at {_streams(found['streams'])}"
        for found in document["results"]
        if found["ratio_to_best"]
    ]
    lines[-1] += f" Against the best peer's default: {', '.join(bests)}." if bests else ""
    if any(row["rounds"] == 1 for found in document["results"] for row in found["rows"]) and document["rounds"] > 1:
        lines += ["", f"¹ Under {FAR:.0%} of the fastest in its first round, and measured in that one only."]
    lines += [f"\n{name} could not be measured: {why}" for name, why in document["failed"].items()]
    return lines


def draw(document: Mapping[str, Any]) -> str:
    """Draw a panel for each load and a bar for each server, with the range of its rounds, as SVG."""
    import altair as alt
    import vl_convert

    rows = [
        {"load": _streams(found["streams"]), "server": row["server"], **row["tokens_per_s"]}
        for found in document["results"]
        for row in found["rows"]
    ]
    for row in rows:
        row["words"] = f"{row['value']:.0f}"
        row["low"], row["high"] = (row[end] if row[end] is not None else row["value"] for end in ("low", "high"))
    names = sorted(dict.fromkeys(row["server"] for row in rows), key=lambda name: name != OURS)
    look = alt.condition(alt.datum.server == OURS, alt.value("#2563eb"), alt.value("#9ca3af"))
    base = alt.Chart().encode(y=alt.Y("server:N", sort=names, title=None, axis=alt.Axis(labelLimit=200)))
    value = alt.X("value:Q", title="tokens/s, all streams", scale=alt.Scale(zero=True))
    layers = alt.layer(
        base.mark_bar(height=16).encode(x=value, color=look),
        base.mark_rule(strokeWidth=1.5, color="#111827").encode(x="low:Q", x2="high:Q"),
        base.mark_text(align="left", dx=5, color="#111827").encode(x="high:Q", text="words:N"),
        data=alt.Data(values=rows),
    ).properties(width=210, height=26 * len(names))
    loads = [_streams(found["streams"]) for found in document["results"]]
    facet = alt.Facet("load:N", title=None, sort=loads, header=alt.Header(labelFontSize=13))
    chart = layers.facet(facet).resolve_scale(x="independent").configure(background="white", padding=12)
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    svg: str = vl_convert.vegalite_to_svg(chart.to_dict(), vl_version=version, allowed_base_urls=[])
    return svg


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"


def _ranged(figure: Mapping[str, Any], digits: int) -> str:
    low, high = figure["low"], figure["high"]
    ends = "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{figure['value']:.{digits}f}{ends}"
