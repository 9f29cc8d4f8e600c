"""Intervals: percentiles, the bootstrap, and the score interval of a share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quicksilver.nouns.score import Figure, Latency

Floats = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95


def percentiles(values: ArrayLike, points: Sequence[float]) -> list[float]:
    """Return percentiles by linear interpolation between the order statistics (numpy's default, Hyndman and Fan's 7th).

    `values` is one-dimensional and not empty, `points` are percents.
    """
    return [float(value) for value in np.percentile(np.asarray(values, dtype=np.float64), points, method="linear")]


def latency(values_ms: Sequence[float]) -> Latency:
    """Return the percentiles of some durations, ms. Without any, all are 0 and `count` says that they mean nothing."""
    if not values_ms:
        return Latency(p50=0.0, p90=0.0, p95=0.0, p99=0.0, count=0)
    p50, p90, p95, p99 = percentiles(values_ms, (50, 90, 95, 99))
    return Latency(p50=p50, p90=p90, p95=p95, p99=p99, count=len(values_ms))


def bootstrap_sums(rows: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Resample rows with replacement and return the sums of their columns.

    `rows` is (n, k) with n at least 1; the result is (resamples, k). How often each row was drawn is multinomial, so one
    matrix product gives all the sums. Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 6.
    """
    table = np.asarray(rows, dtype=np.float64)
    count = len(table)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    sums: Floats = draws.astype(np.float64) @ table
    return sums


def interval(draws: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile interval of bootstrap draws (Efron and Tibshirani 1993, section 13.3)."""
    tail = 100 * (1 - level) / 2
    low, high = percentiles(draws, (tail, 100 - tail))
    return low, high


def requests_for(point: float, level: float = LEVEL) -> int:
    """Return from how many values on a percentile's interval has both ends; `point` is a percent between 0 and 100.

    The largest of n values is over the p-quantile with probability 1 - p^n, which has to reach the interval's upper end (Wilks
    1941): 6 for a median at 95 %, 36 for a p90, 72 for a p95, 368 for a p99.
    """
    return math.ceil(math.log((1 - level) / 2) / math.log(max(point, 100 - point) / 100))


def mean_figure(values: Sequence[float], *, unit: str = "", seed: int = 0) -> Figure:
    """Return the mean of at least one value with its bootstrap interval; a single value has none."""
    value = float(np.mean(values))
    if len(values) < 2:
        return Figure(value=value, unit=unit)
    low, high = interval(bootstrap_sums(np.reshape(values, (-1, 1)), seed=seed)[:, 0] / len(values))
    return Figure(value=value, low=low, high=high, unit=unit)


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share of at least one trial (Wilson 1927); it means something at none and at all, too."""
    z = 1.959964
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * float(np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)))
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == count else middle + half)


def ratio_figure(rows: ArrayLike, *, unit: str = "", scale: float = 1.0) -> Figure:
    """Return the sum of the first column over that of the second, times `scale`, with its bootstrap interval over rows.

    `rows` is (n, 2) with n at least 1, and the second column isn't negative and not all 0; a single row has no interval.
    """
    table = np.asarray(rows, dtype=np.float64)
    total = table.sum(axis=0)
    value = float(scale * total[0] / total[1])
    if len(table) < 2:
        return Figure(value=value, unit=unit)
    sums = bootstrap_sums(table)
    sums = sums[sums[:, 1] > 0]
    low, high = interval(scale * sums[:, 0] / sums[:, 1])
    return Figure(value=value, low=low, high=high, unit=unit)
