"""A process that measures memory bandwidth and 32-bit matrix products with numpy, and prints them as one JSON line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quicksilver.hardware import usable_cores

COPIED_BYTES = 256 * 2**20
"""Of each thread: far more than its share of any cache."""
SIDE = 2048
"""Rows and columns of the matrices."""
ROUNDS = 5


def bandwidth_gb_s(threads: int, size: int = COPIED_BYTES, rounds: int = ROUNDS) -> float:
    """Return what copies by so many threads read and write, GB/s; the best round, since anything else only slows one down."""
    pairs = [(np.ones(size // 8), np.zeros(size // 8)) for _ in range(threads)]

    def copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
        np.copyto(pair[1], pair[0])

    with ThreadPoolExecutor(threads) as pool:
        best = fastest(lambda: list(pool.map(copy, pairs)), rounds)
    return 2 * size * threads / best / 1e9


def fp32_gflop_s(side: int = SIDE, rounds: int = ROUNDS) -> float:
    """Return the rate of numpy's product of two square 32-bit matrices, GFLOP/s (2 x side^3 operations)."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((side, side), dtype=np.float32) for _ in range(2))
    out = np.empty((side, side), dtype=np.float32)
    return 2 * side**3 / fastest(lambda: np.matmul(left, right, out=out), rounds) / 1e9


def fastest(work: Callable[[], object], rounds: int) -> float:
    """Return the shortest of some rounds, s, after one that isn't counted."""
    work()
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


if __name__ == "__main__":
    figures = {"bandwidth_gb_s": bandwidth_gb_s(usable_cores()), "fp32_gflop_s": fp32_gflop_s()}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()} | {"numpy": np.__version__}))
