"""Policy: which configurations of a space to measure next, when to stop, and which are worth a longer look.

It asks and is told, and measures nothing itself: `search` drives it, with races on a machine or with a synthetic surface.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quicksilver.nouns.technique import Technique
from quicksilver.search.cost_model import CostModel, Predicted
from quicksilver.search.space import Configuration, Space

Floats = NDArray[np.float64]
Numerics = tuple[str, frozenset[Technique]]
"""An engine, and the techniques that change what it computes (`Configuration.computes`)."""

BATCH = 4
"""Configurations that are raced together, beside the as-is model."""
Rungs = Sequence[tuple[int, int]]
RUNGS: Rungs = ((6, 2), (3, 4))
"""How many of the best are raced again, and as long as how many short races, one after the other."""
FLOOR = 0.05
"""Share of a race's noise below which an expected improvement isn't worth a race."""
LEAST = 4
"""Configurations that have to be measured before predictions of further ones count as the cost model's."""
AS_IS_WEIGHT = 1000.0
"""Short races that the as-is model's gain of 0, which is no measurement, is as good as."""
AGAIN = 0.4
"""Share of the trials that is kept for that, at most."""
LOSS_SCALE = 5.0
"""How much more the logarithm of quality loss varies than that of speed."""
LEAST_LOSS = 0.1
"""Share of the limit that is added to losses before their logarithm is taken."""
SHARED = 0.5
"""What another configuration of a batch is worth, if it stands and falls with numerics that one before it has to prove."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the cost model said of a configuration before it was measured, and what was measured: log gains by load."""

    index: int
    predicted: tuple[float, ...]
    sd: tuple[float, ...]
    measured: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a race has shown of a configuration."""

    gains: Sequence[float] | None
    """Log gains by load; None if it loses too much quality."""
    loss: float | None = None
    """Its quality loss as a share of the limit; None if it wasn't measured."""


@dataclass(slots=True)
class _Told:
    gains: Floats
    weight: float


@dataclass(slots=True, eq=False)
class Policy:
    """Chooses configurations by expected improvement under a cost model that is fitted to those that were measured.

    A gain is the logarithm of what a configuration makes of the as-is model's figure at a load; the mean over the loads is what
    is maximised (Jones, Schonlau and Welch 1998, equation 15). A batch is chosen one by one, each as if the ones before had
    come out as predicted (Ginsbourger, Le Riche and Carraro 2010, kriging believer).
    """

    space: Space
    loads: int
    seed: int = 0
    forecasts: list[Forecast] = field(default_factory=list)
    stopped: str = ""
    """Why nothing was asked for the last time."""
    why: str = ""
    """What the batch that was asked for last promises."""
    _told: dict[int, _Told] = field(default_factory=dict)
    _open: NDArray[np.bool_] = field(init=False)
    _models: list[CostModel] = field(init=False)
    _order: NDArray[np.int64] = field(init=False)
    _numerics: list[Numerics] = field(init=False)
    _proven: dict[Numerics, bool] = field(default_factory=dict)
    _losses: dict[Numerics, float] = field(default_factory=dict)
    _quality: CostModel = field(init=False)
    _predicted: list[Predicted] | None = None
    _as_is: int | None = None

    def __post_init__(self) -> None:
        self._open = np.ones(len(self.space), dtype=np.bool_)
        self._models = [CostModel(self.space.dimensions, self.space.codes) for _ in range(self.loads)]
        numeric = [n for n, dimension in enumerate(self.space.dimensions) if dimension.numeric]
        self._quality = CostModel(
            [self.space.dimensions[n] for n in numeric], self.space.codes[:, numeric], scale=LOSS_SCALE
        )
        self._order = np.random.default_rng(self.seed).permutation(len(self.space))
        self._numerics = [c.computes for c in self.space.configurations]

    @property
    def measured(self) -> int:
        """Configurations that were measured so far."""
        return len(self._told)

    def start(self, index: int) -> None:
        """Note which configuration is the as-is model: its gains are 0 by definition, and it is in every race."""
        self._as_is = index
        self.proven(self.space.configurations[index], passes=True, loss=0.0)
        self.tell(index, [0.0] * self.loads, AS_IS_WEIGHT)

    @property
    def as_is(self) -> int | None:
        """The configuration of the as-is model."""
        return self._as_is

    def may(self, index: int) -> bool:
        """Whether a configuration is still to be asked for."""
        return bool(self._open[index]) and index not in self._told

    def close(self, indexes: Sequence[int]) -> None:
        """Take configurations out of the search."""
        self._open[list(indexes)] = False

    def proven(self, configuration: Configuration, *, passes: bool, loss: float | None = None) -> None:
        """Note whether numerics keep the quality, and their loss as a share of the limit.

        If they don't, nothing that shares them is asked for; and what is like them is asked for less.
        """
        numerics = configuration.computes
        self._proven[numerics] = passes
        if loss is None:
            loss = 0.0 if passes else 2.0
        self._losses[numerics] = math.log((max(0.0, loss) + LEAST_LOSS) / (1 + LEAST_LOSS))
        if not passes:
            self.close([n for n, other in enumerate(self._numerics) if other == numerics])

    def tell(self, index: int, gains: Sequence[float], weight: float = 1.0) -> None:
        """Note what was measured: log gains by load, from as much as `weight` short races. More of the same is averaged."""
        new = np.array(gains, dtype=np.float64)
        known = self._told.get(index)
        if known is None:
            if len(self._told) >= LEAST:
                now = self.predictions()
                self.forecasts.append(
                    Forecast(
                        index,
                        tuple(float(p.mean[index]) for p in now),
                        tuple(float(math.hypot(p.sd[index], m.noise)) for p, m in zip(now, self._models, strict=True)),
                        tuple(new.tolist()),
                    )
                )
            self._told[index] = _Told(new, weight)
        else:
            total = known.weight + weight
            known.gains, known.weight = (known.gains * known.weight + new * weight) / total, total

    def learn(self) -> None:
        """Fit the cost model to all that was told."""
        self._teach({}, fit=True)

    def predictions(self) -> list[Predicted]:
        """What the cost model, as it was last fitted, says of every configuration, by load."""
        if self._predicted is None:
            self._predicted = [model.predict() for model in self._models]
        return self._predicted

    def merits(self) -> Predicted:
        """The mean over the loads. Errors at one load are taken to be those at the others, which widens the interval."""
        now = self.predictions()
        return Predicted(np.mean([p.mean for p in now], axis=0), np.mean([p.sd for p in now], axis=0))

    def ranked(self) -> list[int]:
        """The configurations that were measured and may win, best first by what all measurements together say of them."""
        mean = self.merits().mean
        return sorted((i for i in self._told if self._open[i]), key=lambda i: (-mean[i], i))

    def quickest(self) -> int:
        """The one of `ranked` that gains most at the lowest load."""
        mean = self.predictions()[0].mean
        return max(self.ranked(), key=lambda index: float(mean[index]))

    def ruled_out(self) -> list[int]:
        """Configurations that weren't measured and fall short of the best that was, even at their optimistic end."""
        ranked = self.ranked()
        if not ranked:
            return []
        merits = self.merits()
        short = self._open & (merits.high < merits.mean[ranked[0]])
        return [int(i) for i in np.flatnonzero(short) if i not in self._told]

    def ask(self, count: int) -> list[int]:
        """Return up to so many configurations to measure next; none if what is left promises too little, which `stopped` then says."""
        chosen: list[int] = []
        extra: dict[int, Floats] = {}
        self.why = ""
        self._teach({}, fit=True)
        chances = self._chances()
        for _ in range(count):
            left = self._open.copy()
            left[[*self._told, *chosen]] = False
            if not left.any():
                self.stopped = "every configuration that may win was measured"
                break
            merits = self.merits()
            ranked = self.ranked()
            top = merits.mean[ranked[0]] if ranked else 0.0
            hopes = np.where(left, chances * _improvement(merits, top), -1.0)[self._order]
            hope = float(hopes.max())
            if self._told and hope < FLOOR * self.noise:
                self.stopped = (
                    f"the best of the {int(left.sum())} configurations that are left promises {_percent(hope)} more, "
                    f"and a race can't tell less than {_percent(self.noise)} apart"
                )
                break
            index = int(self._order[int(hopes.argmax())])
            if not chosen:
                most = float(merits.high[index]) - top
                self.why = f"which may bring up to {_percent(math.expm1(most))} (expected {_percent(hope)})"
            chosen.append(index)
            if self._numerics[index] not in self._proven:
                chances[[n for n, other in enumerate(self._numerics) if other == self._numerics[index]]] *= SHARED
            extra[index] = np.array([p.mean[index] for p in self.predictions()])
            self._teach(extra, fit=False)
        self._teach({}, fit=False)
        return chosen

    @property
    def noise(self) -> float:
        """The standard deviation of a short race's log gain, mean over the loads."""
        return float(np.mean([model.noise for model in self._models]))

    def _teach(self, extra: Mapping[int, Floats], *, fit: bool) -> None:
        rows = [*self._told, *extra]
        weights = [*(told.weight for told in self._told.values()), *(1.0 for _ in extra)]
        gains = [*(told.gains for told in self._told.values()), *extra.values()]
        for load, model in enumerate(self._models):
            model.learn(rows, [float(g[load]) for g in gains], weights, fit=fit)
        self._predicted = None

    def _chances(self) -> Floats:
        """The chance of each configuration that its numerics keep the quality, by a model of losses like that of speed."""
        from scipy.special import ndtr

        where = {numerics: n for n, numerics in reversed(list(enumerate(self._numerics)))}
        known = [numerics for numerics in self._losses if numerics in where]
        self._quality.learn([where[n] for n in known], [self._losses[n] for n in known], [1.0] * len(known))
        predicted = self._quality.predict()
        chances: Floats = ndtr(-predicted.mean / predicted.sd)
        for n, numerics in enumerate(self._numerics):
            if numerics in self._proven:
                chances[n] = float(self._proven[numerics])
        return chances


def _improvement(merits: Predicted, top: float) -> Floats:
    """The expected improvement over `top` (Jones, Schonlau and Welch 1998, equation 15)."""
    from scipy.special import ndtr

    away = (merits.mean - top) / merits.sd
    density = np.exp(-(away**2) / 2) / math.sqrt(2 * math.pi)
    improvement: Floats = merits.sd * (away * ndtr(away) + density)
    return improvement


def _percent(share: float) -> str:
    """Return a share as whole percent, or one digit of less than that."""
    value = 100 * share
    return f"{value:.0f} %" if abs(value) >= 1 else f"{value:.1g} %"


Race = Callable[[Sequence[int], int], Mapping[int, Shown]]
"""Measures configurations side by side, as long as so many short races. What failed isn't there."""


def search(
    policy: Policy,
    race: Race,
    *,
    trials: int,
    rungs: Rungs = RUNGS,
    room: Callable[[int], int] = lambda _: 1000,
    before: Callable[[], Sequence[int] | None] = lambda: None,
    tell: Callable[[Policy, Sequence[int]], None] = lambda _policy, _batch: None,
    breaks: Callable[[int], bool] = lambda _: False,
) -> list[int]:
    """Measure configurations until `trials` short races are spent, `room` for more is gone, or the rest promises too little; rank them.

    First short races, of a batch each; then longer ones of the best (successive halving: Karnin, Koren and Somekh 2013).
    `room` says how many the budget has room for in a race as long as so many short ones. `before` gives batches that don't have to be asked for, such as those that an interrupted run has measured, and an empty one
    where that had ended the short races. `tell` hears what is going to be raced; what `breaks` a limit informs the cost model, and can't win.
    """
    left = trials
    again = _kept(int(AGAIN * trials), rungs)
    policy.stopped = ""
    while True:
        batch = before()
        if batch is None:
            most = min(BATCH, left - again, room(1))
            if most < 1:
                policy.stopped = "the trials were used up" if left - again < 1 else "the budget was used up"
                break
            batch = policy.ask(most)
        if not batch:
            break
        tell(policy, batch)
        _take_in(policy, batch, race(batch, 1), 1, breaks)
        left -= len(batch)
    policy.learn()
    for count, weight in rungs:
        contenders = [index for index in policy.ranked() if index != policy.as_is]
        survivors = contenders[: min(count, left // weight, room(weight))]
        if len(survivors) > 1:
            policy.why = "to tell the best apart"
            tell(policy, survivors)
            _take_in(policy, survivors, race(survivors, weight), weight, breaks)
            left -= weight * len(survivors)
            policy.learn()
    return policy.ranked()


def _kept(most: int, rungs: Rungs) -> int:
    """The trials that racing the best again can use, of so many: a race of a single one tells nothing apart."""
    used = 0
    for count, weight in rungs:
        survivors = min(count, (most - used) // weight)
        if survivors > 1:
            used += survivors * weight
    return used


def _take_in(
    policy: Policy, batch: Sequence[int], found: Mapping[int, Shown], weight: int, breaks: Callable[[int], bool]
) -> None:
    for index in batch:
        shown = found.get(index)
        if shown is not None:
            configuration = policy.space.configurations[index]
            policy.proven(configuration, passes=shown.gains is not None, loss=shown.loss)
            if shown.gains is not None:
                policy.tell(index, shown.gains, weight)
        if shown is None or breaks(index):
            policy.close([index])
