"""Cost model: what configurations that weren't measured would gain, with an interval, from those that were.

A Gaussian process over the dimensions of a space. What a choice gains is one term for each dimension, and one for each pair of
them that is smaller by a factor: additive kernels of first and second order (Duvenaud, Nickisch and Rasmussen 2011, Additive
Gaussian Processes, equation 3). So a few measurements say something of every configuration, and pairs that help or hinder each
other are learnt where they were measured. How much each dimension matters is fitted (maximum a posteriori).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quicksilver.search.space import Dimension

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 1.96
"""Standard deviations of a 95 % interval."""
CONSTANT = 0.1
"""Variance of what all configurations share."""
TECHNIQUE, SETTING = 0.03, 0.003
"""Usual variance of log gains along a dimension: techniques move speed by some 17 %, settings off their defaults by 5 %."""
PAIRS = 0.4
"""Usual variance of pairs over that of single dimensions."""
NOISE = 0.05
"""Usual standard deviation of the log gain in a short race."""
SPREAD = 1.2
"""Standard deviation of the logarithms of all these."""
JITTER = 1e-8


@dataclass(frozen=True, slots=True)
class Predicted:
    """Log gains of every configuration: means and standard deviations, (configurations,)."""

    mean: Floats
    sd: Floats

    @property
    def low(self) -> Floats:
        """The pessimistic end of the 95 % interval."""
        return self.mean - LEVEL * self.sd

    @property
    def high(self) -> Floats:
        """The optimistic end."""
        return self.mean + LEVEL * self.sd


@dataclass(slots=True)
class _Fitted:
    scales: Floats
    """Variance of each dimension."""
    pairs: float
    noise: float
    """Variance of a measurement of weight 1."""


class CostModel:
    """Learns log gains at one load, and predicts those of a whole space."""

    def __init__(self, dimensions: Sequence[Dimension], codes: Ints, scale: float = 1.0) -> None:
        """Learn over some dimensions of a space's codes. What is learnt varies `scale` times as much as speed does."""
        self._codes = codes
        self._alike = [_alike(dimension) for dimension in dimensions]
        self._constant = CONSTANT * scale**2
        usual = [scale**2 * (SETTING if dimension.setting else TECHNIQUE) for dimension in dimensions]
        self._usual = np.log(np.array([*usual, PAIRS, (scale * NOISE) ** 2]))
        self._fitted = _unpacked(self._usual)
        self._rows: Ints = np.zeros(0, dtype=np.int64)
        self._gains: Floats = np.zeros(0)
        self._weights: Floats = np.zeros(0)

    @property
    def noise(self) -> float:
        """The standard deviation of a measurement of weight 1, log."""
        return math.sqrt(self._fitted.noise)

    def learn(self, rows: Sequence[int], gains: Sequence[float], weights: Sequence[float], *, fit: bool = True) -> None:
        """Take what was measured: configurations, log gains, and how many short races each stands for.

        With `fit` the variances are fitted anew to it; without, those of the last fit are kept.
        """
        self._rows = np.array(rows, dtype=np.int64)
        self._gains = np.array(gains, dtype=np.float64)
        self._weights = np.array(weights, dtype=np.float64)
        if fit and len(rows) > 1:
            self._fit()

    def predict(self) -> Predicted:
        """Predict every configuration of the space, without the noise of a measurement."""
        at = self._fitted
        count = len(self._codes)
        prior = self._constant + at.scales.sum() + _pairs(at.scales, at.pairs, at.scales.sum(), (at.scales**2).sum())
        if not len(self._rows):
            return Predicted(np.zeros(count), np.full(count, math.sqrt(prior)))
        inverse = self._inverse(at)
        across = self._kernel(np.arange(count), self._rows, at)
        mean = across @ (inverse @ self._gains)
        variance = prior - np.einsum("ij,jk,ik->i", across, inverse, across, optimize=True)
        return Predicted(mean, np.sqrt(np.maximum(variance, JITTER)))

    def _kernel(self, left: Ints, right: Ints, at: _Fitted) -> Floats:
        single = np.zeros((len(left), len(right)))
        squares = np.zeros_like(single)
        for number, alike in enumerate(self._alike):
            part = at.scales[number] * alike[np.ix_(self._codes[left, number], self._codes[right, number])]
            single += part
            squares += part**2
        total: Floats = self._constant + single + _pairs(at.scales, at.pairs, single, squares)
        return total

    def _inverse(self, at: _Fitted) -> Floats:
        kernel = self._kernel(self._rows, self._rows, at) + np.diag(at.noise / self._weights + JITTER)
        inverse: Floats = np.asarray(np.linalg.inv(kernel), dtype=np.float64)
        return inverse

    def _fit(self) -> None:
        from scipy.optimize import minimize

        tables = np.array(
            [a[np.ix_(self._codes[self._rows, n], self._codes[self._rows, n])] for n, a in enumerate(self._alike)]
        )
        bounds = [(usual - 4 * SPREAD, usual + 3 * SPREAD) for usual in self._usual]
        found = minimize(self._loss, self._usual, args=(tables,), jac=True, method="L-BFGS-B", bounds=bounds)
        self._fitted = _unpacked(found.x)

    def _loss(self, logs: Floats, tables: Floats) -> tuple[float, Floats]:
        """The negative log posterior of the variances' logarithms, and its gradient (Rasmussen and Williams 2006, equations 5.8 and 5.9)."""
        at = _unpacked(logs)
        parts = at.scales[:, None, None] * tables
        single, squares = parts.sum(axis=0), (parts**2).sum(axis=0)
        total = at.scales.sum()
        both = single**2 - squares
        kernel = self._constant + single + at.pairs / total * both
        noise = np.diag(at.noise / self._weights)
        chol = np.linalg.cholesky(kernel + noise + JITTER * np.eye(len(kernel)))
        inverse = np.linalg.inv(chol)
        inverse = inverse.T @ inverse
        alpha = inverse @ self._gains
        away = (logs - self._usual) / SPREAD
        loss = 0.5 * self._gains @ alpha + np.log(np.diag(chol)).sum() + 0.5 * away @ away
        weight = inverse - np.outer(alpha, alpha)
        by_scale = parts + 2 * at.pairs / total * (single * parts - parts**2)
        by_scale -= (at.scales / total)[:, None, None] * (at.pairs / total * both)
        slopes = np.append(
            np.einsum("ij,dij->d", weight, by_scale),
            [(weight * (at.pairs / total * both)).sum(), (weight * noise).sum()],
        )
        return float(loss), 0.5 * slopes + away / SPREAD


def _unpacked(logs: Floats) -> _Fitted:
    values = np.exp(logs)
    return _Fitted(values[:-2], float(values[-2]), float(values[-1]))


def _pairs(scales: Floats, pairs: float, single: Floats | float, squares: Floats | float) -> Floats | float:
    """The part of all pairs of dimensions: twice their elementary symmetric polynomial, scaled by the variance in all."""
    part: Floats | float = pairs / float(scales.sum()) * (single**2 - squares)
    return part


def _alike(dimension: Dimension) -> Floats:
    """How alike a dimension's values are, 0 to 1: (values, values). Ordered ones the more, the nearer they stand."""
    count = len(dimension.values)
    alike = np.eye(count)
    if dimension.ordered:
        places = [n for n, value in enumerate(dimension.values) if value is not None]
        for one in places:
            for other in places:
                alike[one, other] = 1 - abs(one - other) / len(places)
    return alike
