"""How far the roofline is from measured operators, on the chips that have both; and what is reached of their makers' figures.

For each chip the figures of `planner.roofline.Reached` are fitted to aiconfigurator's step times of the other chips alone, and its
error is that of this fit: that is what to expect of a chip that nobody measured. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from quicksilver.errors import BadInputError
from quicksilver.nouns.instance import Accelerator
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import Precision
from quicksilver.planner import aiconfigurator, models, roofline
from quicksilver.planner.axes import HOST_LINK_GB_S
from quicksilver.planner.roofline import BESIDE_CONTEXT, REACHED, Reached
from quicksilver.sources import instances
from stamp import stamp

CHIPS = {
    "H100 SXM": "p5.48xlarge",
    "H200 SXM": "p5en.48xlarge",
    "A100 80GB SXM": "p4de.24xlarge",
    "L40S": "g6e.48xlarge",
}
MODELS = ("llama-3.1-8b", "qwen3-32b", "llama-3.1-70b", "mixtral-8x7b-v0.1")
PARTS = (1, 2, 4, 8)
WEIGHTS: tuple[Precision, ...] = ("bf16", "fp8")
STREAMS, CONTEXTS, PROMPTS = (1, 4, 16, 64, 256), (1024, 4096), (512, 2048, 8192)
BOUNDS = {
    "bandwidth": (0.2, 1.0),
    "peak": (0.1, 1.0),
    "link": (0.02, 1.0),
    "host": (0.02, 1.0),
    "layer_us": (0.5, 100.0),
    "reduce_us": (0.5, 100.0),
    "host_us": (0.5, 200.0),
}


@dataclass(frozen=True, slots=True)
class Point:
    """A step that was put together from measured operators, and how the roofline is asked for the same one."""

    chip: Accelerator
    model: ModelFacts
    weights: Precision
    parts: int
    tokens: int
    cached: int
    prompt: int
    ms: float

    def by_roofline(self, reached: Reached) -> float:
        """Return the roofline's ms."""
        return roofline.step_ms(
            self.model,
            self.chip,
            weights=self.weights,
            cache="bf16",
            tensor_parallel=self.parts,
            tokens=self.tokens,
            cached_tokens=self.cached,
            prompt=self.prompt,
            reached=reached,
        )


def main() -> int:
    """Fit, print a line a chip, and the fit over all of them."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    points = {chip: collect(instances.find(instance).accelerator) for chip, instance in CHIPS.items()}
    every = [point for found in points.values() for point in found]
    print(f"{len(every)} steps of {', '.join(MODELS)} over {', '.join(map(str, PARTS))} devices")
    document = {}
    for chip, found in points.items():
        others = fit([point for point in every if point.chip.name != chip])
        # Only one of the chips is joined over PCIe: what that reaches can't be known without it.
        alone = [point for point in found if not through_host(point)]
        document[chip] = {"left out": errors(alone, others), "as shipped": errors(found, REACHED)}
        says = ", ".join(
            f"{what} {low:.0f} % (nine of ten below {high:.0f} %)"
            for what, (low, high) in document[chip]["left out"].items()
        )
        print(f"{chip:14} {len(alone):4} steps, fitted without it: {says}")
    whole = fit(every)
    print(f"fitted to all: {whole}; shipped: {REACHED}")
    shipped = errors(every, REACHED)
    print(json.dumps({"benchmark": "roofline", **stamp(), "steps": len(every), "chips": document, "all": shipped, "reached": {field: round(value, 3) for field, value in asdict(whole).items()}}))  # fmt: skip
    return 0


def collect(chip: Accelerator | None) -> list[Point]:
    """Return the steps of one chip, without what its tables lack."""
    if chip is None:
        return []
    found = []
    for name in MODELS:
        model = models.facts(name)
        for weights in WEIGHTS:
            for parts in PARTS:
                if (
                    weights not in chip.tflops
                    or model.parameters * roofline.WEIGHT_BYTES[weights] > 0.9e9 * parts * chip.memory_gb
                ):
                    continue
                try:
                    times = aiconfigurator.step_times(model, chip, weights=weights, cache="bf16", tensor_parallel=parts)
                except BadInputError:
                    continue
                for s in STREAMS:
                    for c in CONTEXTS:
                        ms = times.decode_ms[times.streams.index(s)][times.contexts.index(c)]
                        found.append(Point(chip, model, weights, parts, s, s * c, 0, ms))
                for p in PROMPTS:
                    for b in (0, 16):
                        ms = times.prefill_ms[times.prompts.index(p)][times.beside.index(b)]
                        found.append(Point(chip, model, weights, parts, p + b, b * BESIDE_CONTEXT, p, ms))
    return found


def fit(points: Sequence[Point]) -> Reached:
    """Return what is reached, by least squares of the logarithms of predicted over measured; outliers count less.

    First what all chips have in common, then what all-reduces through the host reach, of which there are few.
    """
    shared = [point for point in points if not through_host(point)]
    found = _least(shared, REACHED, ("bandwidth", "peak", "link", "layer_us", "reduce_us"))
    hosted = [point for point in points if through_host(point)]
    return _least(hosted, found, ("host", "host_us")) if hosted else found


def through_host(point: Point) -> bool:
    """Say whether a step's all-reduces go over PCIe."""
    return point.parts > 1 and point.chip.link_gb_s <= HOST_LINK_GB_S


def _least(points: Sequence[Point], start: Reached, fields: Sequence[str]) -> Reached:
    def off(values: Sequence[float]) -> list[float]:
        reached = replace(start, **dict(zip(fields, values, strict=True)))
        return [math.log(point.by_roofline(reached) / point.ms) for point in points]

    low, high = zip(*(BOUNDS[field] for field in fields), strict=True)
    begin = [min(max(getattr(start, field), 2 * BOUNDS[field][0]), BOUNDS[field][1] / 2) for field in fields]
    found = least_squares(off, begin, bounds=(low, high), loss="soft_l1", f_scale=0.1, x_scale=begin)
    return replace(start, **{field: float(value) for field, value in zip(fields, found.x, strict=True)})


def errors(points: Sequence[Point], reached: Reached) -> dict[str, tuple[float, float]]:
    """Return the median and the ninth decile of |roofline / measured - 1| in percent, of decoding and of prompts."""
    off = {
        what: [100 * abs(point.by_roofline(reached) / point.ms - 1) for point in points if bool(point.prompt) == prompt]
        for what, prompt in (("decode", False), ("prefill", True))
    }
    return {
        what: (round(float(np.median(all_)), 1), round(float(np.percentile(all_, 90)), 1)) for what, all_ in off.items()
    }


if __name__ == "__main__":
    sys.exit(main())
