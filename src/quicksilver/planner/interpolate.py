"""Interpolate: tables of step times as straight pieces, so that many steps can be added up at once."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from quicksilver.nouns.prediction import StepTimes

Rows = Sequence[Sequence[float]]


class Pieces:
    """A function of one variable by straight pieces: level before its first point, and on as it last rose after the last."""

    __slots__ = ("ends", "slopes", "starts", "values")

    def __init__(self, points: Sequence[float], values: Sequence[float]) -> None:
        slopes = [
            (high - low) / (right - left)
            for low, high, left, right in zip(values, values[1:], points, points[1:], strict=False)
        ]
        self.starts = [-math.inf, *points]
        self.values = [values[0], *values]
        # A table that falls at its end by chance must not lead to steps that take no time.
        self.slopes = [0.0, *slopes, max(0.0, slopes[-1]) if slopes else 0.0]
        self.ends = [*points, math.inf]

    def piece(self, x: float) -> tuple[float, float, float]:
        """Return the value at `x`, the slope there, and the `x` up to which that slope holds."""
        place = bisect_right(self.starts, x) - 1
        slope = self.slopes[place]
        if slope == 0.0:
            return self.values[place], 0.0, self.ends[place]
        return self.values[place] + (x - self.starts[place]) * slope, slope, self.ends[place]


class Table:
    """A table of milliseconds over two axes, linear between its points; cut along its first axis, which is of whole numbers."""

    __slots__ = ("_axis", "_columns", "_cuts", "_points")

    def __init__(self, axis: Sequence[int], points: Sequence[int], rows: Rows) -> None:
        self._axis, self._points, self._cuts = axis, points, dict[int, Pieces]()
        self._columns = [Pieces(axis, column) for column in zip(*rows, strict=True)]

    def at(self, whole: int) -> Pieces:
        """Return the times along the second axis where the first has this value."""
        found = self._cuts.get(whole)
        if found is None:
            values = [column.piece(whole)[0] for column in self._columns]
            found = self._cuts[whole] = Pieces(self._points, values)
        return found


def pair_ms(times: StepTimes) -> float:
    """Return what attention of one token of a prompt to another costs, ms: the curvature of prompts at the table's end.

    There everything else rises evenly. 0 where a table has fewer than three points, or bends the other way.
    """
    if len(times.prompts) < 3:
        return 0.0
    (a, b, c), (low, middle, high) = times.prompts[-3:], (row[0] for row in times.prefill_ms[-3:])
    curved = ((high - middle) / (c - b) - (middle - low) / (b - a)) / (c - a)
    return min(max(0.0, curved), high / c**2)


def decode(times: StepTimes) -> Table:
    """Return the time of a step in which only answers go on, ms: by streams, then by the mean context."""
    return Table(times.streams, times.contexts, times.decode_ms)


def prefill(times: StepTimes) -> Table:
    """Return the time of a step with tokens of prompts, ms: by the streams that decode beside, then by prompt tokens."""
    return Table(times.beside, times.prompts, tuple(zip(*times.prefill_ms, strict=True)))
