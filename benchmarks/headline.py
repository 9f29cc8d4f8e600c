"""The headline on paper: Llama 3 70B on p5.48xlarge with and without speculation, and AWQ INT4 on cheaper machines, predicted.

No GPU is asked, and no figure of the prediction is fitted to what was published: step times are aiconfigurator's measured operators
(a roofline for A10G), acceptances are the literature's (planner/layouts.py). The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import Guessing, Layout, PlannedLoad, Prediction
from quicksilver.planner import models
from quicksilver.planner.layouts import DRAFT, EAGLE, PROMPT_LOOKUP, Stated
from quicksilver.planner.predict import Payment, predict
from quicksilver.sources import instances
from stamp import stamp

MODEL = "meta-llama/Meta-Llama-3-70B-Instruct"
LOAD = PlannedLoad(input_tokens=622, output_tokens=250, streams=16)
"""The page's workload; it doesn't say how many streams, and 16 is our reading of it."""
PUBLISHED = {"plain": 1200.0, "speculation": 2400.0}
CHEAPER = 79.88
"""Percent: g5.12xlarge under p4d.24xlarge, an hour, at one-year savings-plan rates."""
P5, P4D = "ml.p5.48xlarge", "ml.p4d.24xlarge"
WITHIN = 15.0
"""Percent that a prediction may be off."""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to predict, and what was published for it."""

    what: str
    instance: str
    layout: Layout
    published: float | None = None


def rows(facts: ModelFacts) -> list[Row]:
    """Return what is predicted, in the order of the table."""

    def with_guesses(stated: Stated, parameters: int) -> Layout:
        guessing = Guessing(
            tokens=stated.tokens, accepted=stated.accepted, draft_parameters=parameters, origin=stated.source
        )
        return Layout(tensor_parallel=8, guessing=guessing)

    small = models.facts("llama-3.2-1b").parameters
    return [
        Row("plain", P5, Layout(tensor_parallel=8), PUBLISHED["plain"]),
        Row("draft model of 1B", P5, with_guesses(DRAFT, small), PUBLISHED["speculation"]),
        Row("EAGLE-3 head", P5, with_guesses(EAGLE, models.eagle_head(facts).parameters)),
        Row("prompt lookup", P5, with_guesses(PROMPT_LOOKUP, 0)),
        Row("plain", P4D, Layout(tensor_parallel=8)),
        Row("AWQ INT4", P4D, Layout(weights="int4", tensor_parallel=8)),
        Row("AWQ INT4", "ml.g5.12xlarge", Layout(weights="int4", tensor_parallel=4)),
        Row("AWQ INT4", "ml.g5.48xlarge", Layout(weights="int4", tensor_parallel=8)),
        Row("AWQ INT4", "ml.g6e.12xlarge", Layout(weights="int4", tensor_parallel=4)),
        Row("AWQ INT4", "ml.g6e.48xlarge", Layout(weights="int4", tensor_parallel=8)),
    ]


def main() -> int:
    """Predict, print the table and why it differs from what was published; 1 if a headline figure is off by more than 15 %."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    facts = models.facts(MODEL)
    found = [
        (row, predict(facts, instances.find(row.instance), row.layout, LOAD, name=MODEL, payment=Payment()))
        for row in rows(facts)
    ]
    print(f"{MODEL}, {LOAD.input_tokens} tokens in, {LOAD.output_tokens} out, {LOAD.streams} streams; predicted")
    print(
        f"{'':18} {'instance':17} {'tokens/s':>8} {'1/ITL x n':>9} {'published':>9} {'off':>6} {'TTFT p50':>9} {'ITL p50':>8} {'$/1M':>7}  from"
    )
    document: list[dict[str, Any]] = []
    for row, one in found:
        if not isinstance(one, Prediction):
            print(f"{row.what:18} {row.instance:17} {one.why}")
            document.append({"what": row.what, "instance": row.instance, "refused": one.why})
            continue
        off = 100 * (one.tokens_per_s / row.published - 1) if row.published else None
        print(
            f"{row.what:18} {row.instance:17} {one.tokens_per_s:8,.0f} {1000 * LOAD.streams / one.itl_ms.p50:9,.0f} "
            f"{f'{row.published:,.0f}' if row.published else '':>9} {f'{off:+.1f}%' if off is not None else '':>6} "
            f"{one.ttft_ms.p50:6,.0f} ms {one.itl_ms.p50:5.1f} ms {one.cost.measured if one.cost else float('nan'):7.2f}  {one.basis}"
        )
        document.append(
            {
                "what": row.what,
                "instance": row.instance,
                "layout": row.layout.label,
                "tokens_per_s": round(one.tokens_per_s, 1),
                "published": row.published,
                "off_percent": off and round(off, 1),
                "itl_p50_ms": round(one.itl_ms.p50, 2),
                "ttft_p50_ms": round(one.ttft_ms.p50, 1),
                "usd_per_million": one.cost and round(one.cost.measured, 3),
                "basis": one.basis,
                "origin": one.origin,
            }
        )
    costs = {
        (row.what, row.instance): one.cost.measured
        for row, one in found
        if isinstance(one, Prediction) and one.cost is not None
    }
    print(why(costs))
    print(other_streams(facts))
    print(json.dumps({"benchmark": "headline", **stamp(), "rows": document}))
    offs = [abs(row["off_percent"]) for row in document if isinstance(row.get("off_percent"), float)]
    return 0 if len(offs) == len(PUBLISHED) and max(offs) <= WITHIN else 1


def other_streams(facts: ModelFacts) -> str:
    """Say what the two figures would be if the page's streams were others than our reading."""
    said = []
    for streams in (8, 32):
        load = LOAD.model_copy(update={"streams": streams})
        both = [
            predict(facts, instances.find(row.instance), row.layout, load, name=MODEL)
            for row in rows(facts)
            if row.published
        ]
        figures = " and ".join(f"{one.tokens_per_s:,.0f}" for one in both if isinstance(one, Prediction))
        said.append(f"with {streams} streams they are {figures}")
    return f"The number of streams decides: {'; '.join(said)} tokens/s, plain and with the draft model."


def why(costs: Mapping[tuple[str, str], float]) -> str:
    """Say what the comparison rests on; `costs` are $ per million tokens by what and instance."""
    p4d, g5 = instances.find("p4d.24xlarge").rate("one-year"), instances.find("g5.12xlarge").rate("one-year")
    hours = (
        f"{100 * (1 - g5.usd_per_hour / p4d.usd_per_hour):.1f} % at rates of {g5.date}"
        if p4d and g5
        else "not known here"
    )
    plain, guessed = costs.get(("plain", P5)), costs.get(("draft model of 1B", P5))
    saved = f"{100 * (1 - guessed / plain):.0f} %" if plain and guessed else "not known here"
    return (
        f"Speculation saves of a token's cost: {saved}; published about 50 %.\n"
        f"An hour of g5.12xlarge against p4d.24xlarge, one year: {hours}; published {CHEAPER} %. p4d's price was cut in 2025, "
        "and a cheaper hour is a cheaper token only where the smaller machine is not slower by as much.\n"
        "The page takes (1 / p50 inter-token latency) x streams for tokens/s, which leaves out the first token's wait; tokens/s here are "
        "output tokens over time, and the formula's figure stands beside them.\n"
        "It says neither the number of streams nor the draft model nor its acceptance: these are 16, one of 1B, and 2.0 of 4 tokens."
    )


if __name__ == "__main__":
    sys.exit(main())
