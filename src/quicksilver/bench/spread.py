"""Percentiles of durations with bootstrap intervals over requests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from quicksilver.bench.bootstrap import interval, percentiles, requests_for
from quicksilver.nouns.score import Latency

POINTS = (50, 90, 95, 99)
RESAMPLES = 1000
BINS = 1000


class Spread:
    """Draws of whole requests, which all latencies of a load share.

    The gaps of one answer aren't independent of each other: they have its length, its neighbours and its moment in common. So
    requests are drawn and not gaps (the cluster bootstrap: Field and Welsh 2007, Bootstrapping clustered data, J. R. Statist.
    Soc. B 69, 369-390). No draw has a longer latency than the longest seen, so a percentile has an interval only from as many
    requests on as `requests_for` says.
    """

    def __init__(self, requests: int, *, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self._draws = _draws(requests, resamples, seed) if requests > 1 else None

    def latency(self, rows: Sequence[Sequence[float]]) -> Latency:
        """Return the percentiles of all values, ms, with their 95 % intervals; `rows` has those of each request.

        The percentiles interpolate between order statistics, those of a draw are the smallest of (at most a thousand) values
        seen with so large a share at or below. Without any value all are 0 and `count` says that they mean nothing.
        """
        values = np.fromiter(chain.from_iterable(rows), dtype=np.float64)
        if not len(values):
            return Latency(p50=0.0, p90=0.0, p95=0.0, p99=0.0, count=0)
        found = percentiles(values, POINTS)
        p50, p90, p95, p99 = found
        having = sum(bool(row) for row in rows)
        if self._draws is None or having < requests_for(POINTS[0]):
            return Latency(p50=p50, p90=p90, p95=p95, p99=p99, count=len(values))
        places = np.unique(values)
        if len(places) > BINS:
            places = np.unique(np.quantile(values, np.linspace(0, 1, BINS), method="inverted_cdf"))
        counts = np.zeros((len(rows), len(places)), dtype=np.float32)
        owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        np.add.at(counts, (owners, np.searchsorted(places, values)), 1)
        below = self._draws @ counts.cumsum(axis=1)
        below = below[below[:, -1] > 0]
        bounds: list[tuple[float, float] | None] = []
        for point, value in zip(POINTS, found, strict=True):
            if having < requests_for(point):
                bounds.append(None)
                continue
            reached = below >= below[:, -1:] * np.float32(point / 100)
            low, high = interval(places[reached.argmax(axis=1)])
            bounds.append((min(low, value), max(high, value)))
        ci50, ci90, ci95, ci99 = bounds
        return Latency(
            p50=p50, p90=p90, p95=p95, p99=p99, count=len(values), p50_ci=ci50, p90_ci=ci90, p95_ci=ci95, p99_ci=ci99
        )


@lru_cache(maxsize=4)
def _draws(requests: int, resamples: int, seed: int) -> NDArray[np.float32]:
    """Return how often each request is in each draw, (resamples, requests)."""
    drawn = np.random.default_rng(seed).integers(0, requests, size=(resamples, requests))
    drawn += np.arange(resamples)[:, None] * requests
    counts = np.bincount(drawn.ravel(), minlength=resamples * requests)
    found: NDArray[np.float32] = counts.reshape(resamples, requests).astype(np.float32)
    return found
