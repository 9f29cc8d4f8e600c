"""The policy on synthetic surfaces: what it asks for, what it leaves, when it stops; and the cost model under it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import numpy as np
import pytest

from quicksilver.search.cost_model import CostModel
from quicksilver.search.policy import Policy, Shown, search
from quicksilver.search.space import Space
from quicksilver.testing.surface import LIMIT, LOADS, Surface, optimum, space


@pytest.fixture(scope="module")
def where() -> Space:
    return space(600, seed=3)


def started(where: Space, seed: int = 0) -> Policy:
    policy = Policy(where, loads=len(LOADS), seed=seed)
    policy.start(0)
    return policy


class Machine:
    """Answers races from a surface, and keeps what was asked."""

    def __init__(self, where: Space, seed: int = 0, noise: float = 0.05) -> None:
        self.where, self.surface = where, Surface(seed, noise=noise)
        self.asked: list[tuple[int, ...]] = []
        self.spent = 0

    def race(self, batch: Sequence[int], weight: int) -> Mapping[int, Shown]:
        self.asked.append(tuple(batch))
        self.spent += weight * len(batch)
        found: dict[int, Shown] = {}
        for index in batch:
            configuration = self.where.configurations[index]
            loss = self.surface.loss(configuration) / LIMIT
            found[index] = Shown(self.surface.measure(configuration, weight) if loss <= 1 else None, loss)
        return found


def test_it_finds_nearly_the_best_and_keeps_to_its_trials(where: Space) -> None:
    shares = []
    for seed in range(3):
        machine = Machine(where, seed)
        ranked = search(started(where, seed), machine.race, trials=40)
        assert machine.spent <= 40
        chosen = where.configurations[ranked[0]]
        assert machine.surface.loss(chosen) <= LIMIT
        shares.append(math.exp(sum(machine.surface.gains(chosen)) / 2 - optimum(machine.surface, where.configurations)))
    assert float(np.median(shares)) > 0.93


def test_the_same_seed_asks_for_the_same(where: Space) -> None:
    machines = [Machine(where), Machine(where)]
    for machine in machines:
        search(started(where), machine.race, trials=20)
    assert machines[0].asked == machines[1].asked


def test_nothing_is_measured_twice_but_survivors(where: Space) -> None:
    machine = Machine(where)
    search(started(where), machine.race, trials=60)
    short = [index for batch in machine.asked[:-2] for index in batch]
    assert len(short) == len(set(short))
    assert set(machine.asked[-1]) <= set(machine.asked[-2]) <= set(short)


@pytest.mark.parametrize("trials", [4, 7, 9, 10, 17, 23, 40])
def test_no_trial_is_kept_for_a_race_that_is_not_held(where: Space, trials: int) -> None:
    machine = Machine(where)
    search(started(where), machine.race, trials=trials)
    assert machine.spent == trials


def test_numerics_that_fail_once_are_never_asked_for_again(where: Space) -> None:
    policy = started(where)
    failed: set[frozenset[object]] = set()

    def race(batch: Sequence[int], weight: int) -> Mapping[int, Shown]:
        for index in batch:
            assert frozenset(where.configurations[index].numerics) not in failed
        # Within a batch numerics can be shared; what is known counts from the next on.
        failed.update(frozenset(where.configurations[i].numerics) for i in batch if i % 2)
        return {i: Shown(None if frozenset(where.configurations[i].numerics) in failed else [0.1, 0.1]) for i in batch}

    ranked = search(policy, race, trials=24)
    assert not {frozenset(where.configurations[i].numerics) for i in ranked} & failed


def test_what_was_measured_before_is_told_and_not_asked(where: Space) -> None:
    first = Machine(where)
    search(started(where), first.race, trials=24)
    stored = iter([list(batch) for batch in first.asked[:1]])
    second = Machine(where)
    search(started(where), second.race, trials=24, before=lambda: next(stored, None))
    # The same batches follow on the same figures, and all together stay within the trials.
    assert second.asked == first.asked
    assert second.spent <= 24


def test_it_stops_when_what_is_left_promises_less_than_a_race_can_tell(where: Space) -> None:
    policy = started(where)

    def race(batch: Sequence[int], weight: int) -> Mapping[int, Shown]:
        noise = np.random.default_rng(list(batch))
        return {index: Shown(noise.normal(0, 0.02, 2).tolist()) for index in batch}  # nothing helps

    search(policy, race, trials=10_000)
    assert policy.measured < len(where) / 3
    assert "promises" in policy.stopped
    assert "tell" in policy.stopped


def test_a_race_that_fails_is_not_asked_again_and_says_nothing_of_its_weights(where: Space) -> None:
    policy = started(where)
    asked: list[int] = []

    def race(batch: Sequence[int], weight: int) -> Mapping[int, Shown]:
        asked.extend(batch)
        return {}

    search(policy, race, trials=16)
    assert len(asked) == len(set(asked))
    assert policy.ranked() == [0]


def test_what_breaks_a_limit_informs_and_cannot_win(where: Space) -> None:
    machine = Machine(where)
    ranked = search(started(where), machine.race, trials=24, breaks=lambda index: index % 3 == 0)
    assert all(index % 3 for index in ranked if index)


def test_a_budget_that_is_used_up_ends_it(where: Space) -> None:
    policy = started(where)
    rooms = iter([4, 4, 2])
    machine = Machine(where)
    search(policy, machine.race, trials=100, room=lambda _: next(rooms, 0))
    assert [len(batch) for batch in machine.asked] == [4, 4, 2]
    assert policy.stopped == "the budget was used up"


def test_it_says_what_it_still_looks_for(where: Space) -> None:
    said: list[str] = []
    search(started(where), Machine(where).race, trials=20, tell=lambda policy, batch: said.append(policy.why))
    assert any("may bring up to" in why for why in said)
    assert not any("e+" in why for why in said)


def test_the_cost_model_predicts_what_it_has_not_seen(where: Space) -> None:
    surface = Surface(5, noise=0.0)
    draw = np.random.default_rng(0).permutation(len(where))
    seen, unseen = draw[:60], draw[60:]
    truth = np.array([surface.gains(c)[1] for c in where.configurations])
    model = CostModel(where.dimensions, where.codes)
    model.learn(seen.tolist(), truth[seen].tolist(), [1.0] * len(seen))
    predicted = model.predict()
    error = np.abs(np.expm1(predicted.mean[unseen] - truth[unseen]))
    assert float(np.median(error)) < 0.1
    inside = (predicted.low[unseen] <= truth[unseen]) & (truth[unseen] <= predicted.high[unseen])
    assert inside.mean() > 0.8
    # What was measured without noise is known, nearly.
    assert np.abs(predicted.mean[seen] - truth[seen]).max() < 0.1


def test_the_cost_models_slope_is_its_losss(where: Space) -> None:
    model = CostModel(where.dimensions, where.codes)
    rows = list(range(0, 600, 40))
    model.learn(rows, [math.sin(n) / 5 for n in rows], [1.0 + n % 2 for n in range(len(rows))], fit=False)
    tables = np.array([a[np.ix_(where.codes[rows, n], where.codes[rows, n])] for n, a in enumerate(model._alike)])
    at = model._usual + 0.3
    loss, slope = model._loss(at, tables)
    for number in range(len(at)):
        step = np.zeros(len(at))
        step[number] = 1e-5
        numeric = (model._loss(at + step, tables)[0] - model._loss(at - step, tables)[0]) / 2e-5
        assert slope[number] == pytest.approx(numeric, rel=1e-3, abs=1e-5)
    assert math.isfinite(loss)


def test_without_measurements_nothing_is_ruled_out(where: Space) -> None:
    policy = started(where)
    policy.learn()
    assert policy.ruled_out() == []


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("surface")


def test_the_benchmark_counts_every_evaluation(benchmark: ModuleType) -> None:
    outcome = benchmark.one(4, size=300, trials=24)
    assert 0.5 < outcome.share <= 1
    assert 0 < outcome.evaluations <= 24
    assert 0 < outcome.infeasible < 1
    assert outcome.error_percent > 0
