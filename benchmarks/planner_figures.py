"""The planner's figures in the README: the headline on paper, this machine's predictions against measurements, and how long plans take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stamped import made

BENCHMARKS = ("headline", "predicted", "fit", "plan_time", "simulate", "roofline")
"""What `make planner` runs."""


def lines(results: Path) -> list[str]:
    """Return what was measured of the planner, in Markdown; nothing of what wasn't."""
    found: list[str] = []
    for name, said in (("headline", _headline), ("predicted", _predicted), ("fit", _fit)):
        file = results / f"{name}.json"
        if file.is_file():
            found += ["", *said(json.loads(file.read_text(encoding="utf-8")))]
    times = [results / f"{name}.json" for name in ("plan_time", "simulate")]
    if all(file.is_file() for file in times):
        plans, simulated = (json.loads(file.read_text(encoding="utf-8")) for file in times)
        found += ["", _times(plans, simulated)]
    return found


def _headline(found: dict[str, Any]) -> list[str]:
    rows = [
        f"| {row['instance']} | {row['what']} | {row['tokens_per_s']:,.0f} | "
        + (f"{row['published']:,.0f} ({row['off_percent']:+.1f} %)" if row["published"] else "")
        + f" | {row['ttft_p50_ms']:,.0f} | {row['itl_p50_ms']:.1f} | {row['basis']} |"
        for row in found["rows"]
        if "refused" not in row
    ]
    return [
        "| Llama 3 70B, predicted | recipe | tokens/s | published | TTFT p50, ms | ITL p50, ms | from |",
        "| --- " * 7 + "|",
        *rows,
        "",
        (
            "622 tokens in, 250 out, 16 streams: predicted, with no GPU asked and nothing fitted to what was published; `docs/planner.md` says where and why it differs. "
            f"{made(found)}"
        ),
    ]


def _predicted(found: dict[str, Any]) -> list[str]:
    drifted = found["steps_drifted_percent"].values()
    return [
        (
            f"Tokens/s that the planner predicts of this machine's CPU are off by {found['median_error_percent']:.1f} % in the median and "
            f"{found['worst_error_percent']:.1f} % at worst, over {found['configurations']} configurations of a 135M and a 1.1B model that its fit "
            f"never saw (by steps timed in one of the rounds alone {found['median_error_once_percent']:.1f} and {found['worst_error_once_percent']:.1f} %). "
            f"Measured twice, they differ by {found['median_noise_percent']:.1f} % themselves, and the same steps took {min(drifted):+.0f} to {max(drifted):+.0f} % in another round. "
            f"{made(found)}"
        )
    ]


def _fit(found: dict[str, Any]) -> list[str]:
    engines = " and ".join(dict.fromkeys(row["engine"] for row in found["rows"]))
    return [
        (
            f"The memory of {len(found['rows'])} servers ({engines}): estimated within {found['median_percent']:.1f} % of their peak in the median, "
            f"{found['worst_percent']:.1f} % at worst. {made(found)}"
        )
    ]


def _times(plans: dict[str, Any], simulated: dict[str, Any]) -> str:
    each = " and then ".join(
        f"{row['seconds']:.1f} s for {row['pairs']} pairs of instance and recipe on {row['instances']} instances"
        for row in plans["plans"].values()
    )
    return (
        f"A plan, with nothing of it asked before, takes {each}; a core simulates {simulated['lowest'] / 1e6:.1f} million requests a minute. "
        f"{made(plans)}"
    )
