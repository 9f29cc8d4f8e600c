"""Step times of a CPU: a physical model of a step, linear in a few coefficients that are fitted to steps measured on a machine.

The time of a step that computes T tokens of S sequences, R of them with logits, is the sum of

    c0 · layers                               starting each layer's operations
    + c1 · layers, after a step of another shape                   every node is prepared anew
    + c2 · layers · S                         attention is called for each sequence
    + c3 · layers · width · T                 what passes activations along: norms, rotation, gates
    + c4 · KV elements read                   the cache, once for each sequence
    + c5 · 4 · layers · heads · size · Σ new · (past + new / 2)    attention's multiplications
    + Σ over matrices  weights · (r + Σ s_k · (tokens between knots k and k + 1))

The last line is a roofline with kinks: r is the time to read a weight, s_k what a further token costs it, for each precision
of weights. Every coefficient is at least zero, and all models and precisions share those of the first six lines. Everything
but c0 and c1 falls with the number of threads. Least squares of relative errors, with outliers weighted down (Huber), and with
slopes that are held weakly to their neighbours': between two knots there may be a single step, and something interfered with it.
There is no constant for a step: with one beside c0, two models couldn't tell overhead from reading weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quicksilver.errors import BadInputError
from quicksilver.nouns.hardware import Hardware
from quicksilver.nouns.instance import Instance
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import Basis, Layout, Precision, StepTimes
from quicksilver.nouns.steps import StepSet, StepShape
from quicksilver.sources.instances import LOCAL

if TYPE_CHECKING:
    from collections.abc import Iterable

Floats = NDArray[np.float64]

KNOTS = (1, 2, 4, 8, 16, 32, 64, 256)
SHARED = 6
EACH = 1 + len(KNOTS)
"""Coefficients of one precision: reading a weight, and a slope from each knot on."""
MEMORY, COMPUTE = (4,), (2, 3, 5)
HUBER = 0.08
"""Relative error from which a step counts less: more than what the model leaves, less than what interferes."""
SMOOTH = 0.5
"""What it costs if a slope differs from the next by their mean, in relative errors of a step; decision 25 has the figures."""
BENT = 1
"""The first slope that is held to the next: from one token to two the time is that of reading weights, whatever follows."""
ROUNDS = 8
GRAIN = 8
"""Steps with guesses are padded to a multiple of so many tokens (engines/openvino/lookup.py)."""
STREAMS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
PROMPTS = (1, 16, 64, 128, 256, 512, 1024, 2048)
"""To the largest step of the engine (`Settings.max_batched_tokens`)."""
BESIDE = (0, 1, 2, 4, 8, 16, 32, 64)
BESIDE_CONTEXT = 512
"""Tokens in the cache of each stream that decodes beside a prompt."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What was learnt of one machine."""

    machine: str
    engine: str
    cores: int
    weights: tuple[Precision, ...]
    models: tuple[str, ...]
    coefficients: Floats
    """SHARED ones, and EACH for each precision; ms, in units of `_features`."""
    steps: int
    date: str
    """Of the latest steps."""
    error_percent: float
    """Median |fitted / measured - 1| of the steps that it was fitted to."""

    def ms(
        self, facts: ModelFacts, weights: Precision, shape: StepShape, *, new: bool = False, threads: int = 0
    ) -> float:
        """Return how long a step takes; `new` after one of another shape. Raises BadInputError for weights never measured."""
        if weights not in self.weights:
            raise BadInputError(
                f"No steps with {weights} weights were measured on this machine, only with {', '.join(self.weights)}; "
                "`quicksilver calibrate` measures them."
            )
        row = _features(facts, weights, shape, self.weights, new=new, share=(threads or self.cores) / self.cores)
        return float(row @ self.coefficients)

    def bandwidth_gb_s(self, weights: Precision) -> float | None:
        """Return at what rate weights are read, effectively, GB/s; None if the fit gives reading no time."""
        ms = self._own(weights)[0]
        return None if ms <= 0 else _BYTES[weights] * 1e3 / ms

    def gflops(self, weights: Precision) -> float | None:
        """Return at what rate long prompts are computed, effectively, GFLOP/s; None if the fit gives that no time."""
        ms = self._own(weights)[-1]
        return None if ms <= 0 else 2e3 / ms

    def scaled(self, *, compute: float, memory: float) -> Fit:
        """Return the fit of a machine that computes, and reads memory, so many times as fast."""
        changed = self.coefficients.copy()
        changed[list(COMPUTE)] /= compute
        changed[list(MEMORY)] /= memory
        for number in range(len(self.weights)):
            start = SHARED + number * EACH
            changed[start] /= memory
            changed[start + 1 : start + EACH] /= compute
        return Fit(
            self.machine, self.engine, self.cores, self.weights, self.models, changed, self.steps, self.date, math.nan
        )

    def _own(self, weights: Precision) -> Floats:
        start = SHARED + self.weights.index(weights) * EACH
        return self.coefficients[start : start + EACH]


_BYTES: dict[str, float] = {"bf16": 2.0, "int8": 1.0, "int4": 0.5}


def fit(sets: Sequence[StepSet]) -> Fit:
    """Fit a machine's model to its measured steps. Raises BadInputError without any, or for several machines or engines."""
    return _fit(tuple(sets))


@lru_cache(maxsize=8)  # a plan asks for many layouts of one machine
def _fit(sets: tuple[StepSet, ...]) -> Fit:
    from scipy.optimize import nnls

    places = {(one.machine, one.engine) for one in sets}
    if len(places) != 1:
        raise BadInputError("A fit takes the measured steps of one machine and engine, and at least one set of them.")
    weights = tuple(sorted({one.weights for one in sets}))
    rows: list[Floats] = []
    times: list[float] = []
    for one in sets:
        for step in one.steps:
            for ms, new in ((step.ms, False), (step.new_ms, True)):
                if ms is not None:
                    share = one.threads / one.cores
                    rows.append(_features(one.facts, one.weights, step.shape, weights, new=new, share=share))
                    times.append(ms)
    if not rows:
        raise BadInputError("There are no measured steps to fit.")
    relative = np.array(rows) / np.array(times)[:, None]
    # Columns of one size: the solver's tolerance is one for all.
    size = np.maximum(np.linalg.norm(relative, axis=0), 1e-12)
    trust = np.ones(len(rows))
    smooth = np.zeros((0, len(size)))
    for _ in range(ROUNDS):
        wanted = np.concatenate([trust, np.zeros(len(smooth))])
        found, _ = nnls(np.vstack([relative * trust[:, None], smooth]) / size, wanted)
        away = np.abs(relative / size @ found - 1)
        trust = np.sqrt(np.minimum(1.0, HUBER / np.maximum(away, 1e-9)))
        smooth = _smoothness(found / size, len(weights))
    (machine, engine), cores = places.pop(), max(one.cores for one in sets)
    return Fit(
        machine=machine,
        engine=engine,
        cores=cores,
        weights=weights,
        models=tuple(dict.fromkeys(one.model for one in sets)),
        coefficients=found / size,
        steps=len(rows),
        date=max(one.date for one in sets)[:10],
        error_percent=float(100 * np.median(away)),
    )


def _smoothness(coefficients: Floats, precisions: int) -> Floats:
    """Return rows that are zero where each slope is as the next: (precisions · (slopes - 1 - BENT), coefficients)."""
    rows = []
    for number in range(precisions):
        first = SHARED + number * EACH + 1
        mean = coefficients[first + BENT : first + len(KNOTS)].mean()
        for place in range(first + BENT, first + len(KNOTS) - 1):
            row = np.zeros(len(coefficients))
            if mean > 0:
                row[place], row[place + 1] = SMOOTH / mean, -SMOOTH / mean
            rows.append(row)
    return np.array(rows)


def document(found: Fit) -> dict[str, Any]:
    """Return a fit as a JSON document."""
    own = {
        weights: {"read_gb_s": found.bandwidth_gb_s(weights), "prompt_gflops": found.gflops(weights)}
        for weights in found.weights
    }
    return {**asdict(found), "coefficients": found.coefficients.tolist(), "by_weights": own}


def step_times(
    facts: ModelFacts, machine: Hardware | Instance, layout: Layout, sets: Sequence[StepSet] | None = None
) -> StepTimes:
    """Return the step times of a model on a CPU machine.

    For this machine (a Hardware, or an instance named `local`) they are `fitted`. For an instance that isn't here they are those
    of this machine scaled by cores, bandwidth and FLOP/s as far as both are known, and labelled `roofline`. `sets` are those
    that are kept, unless given. Raises BadInputError where nothing was measured, or the layout isn't one of a CPU.
    """
    _check(facts, layout)
    here = isinstance(machine, Hardware) or machine.name == LOCAL
    found = fit(of_one_machine(_kept() if sets is None else sets, here=here and sets is None))
    origin = f"{found.steps} steps of {' and '.join(found.models)} measured on {found.machine} with {found.engine}, {found.date}"
    remarks = [f"On the steps that it was fitted to, the model is off by {found.error_percent:.1f} % in the median."]
    if layout.cache != "bf16":
        remarks.append("Steps were timed with the engine's own precision of keys and values, whatever the layout says.")
    if isinstance(machine, Instance) and not here:
        compute, memory, how = _factors(found, machine)
        found = found.scaled(compute=compute, memory=memory)
        return _tables(found, facts, layout, basis="roofline", origin=f"scaled by {how} from {origin}", remarks=remarks)
    return _tables(found, facts, layout, basis="fitted", origin=f"fitted to {origin}", remarks=remarks)


def _check(facts: ModelFacts, layout: Layout) -> None:
    if layout.devices > 1:
        raise BadInputError("A CPU machine serves one copy of a model without tensor or pipeline parallelism.")
    if layout.cache == "fp8":
        raise BadInputError("No engine keeps keys and values in fp8 on a CPU.")
    if facts.experts:
        raise BadInputError("The fit of a CPU's steps knows no mixtures of experts: none was measured.")
    if layout.guessing is not None and layout.guessing.draft_parameters:
        raise BadInputError("The fit of a CPU's steps knows prompt lookup, and no draft model.")


def _kept() -> list[StepSet]:
    from quicksilver.planner import steps

    return steps.kept()


def of_one_machine(sets: Iterable[StepSet], *, here: bool) -> list[StepSet]:
    """Return the sets of this machine, or of the one that was measured last; of its newest engine. Raises BadInputError."""
    found = list(sets)
    if here:
        from quicksilver.hardware import detect

        machine = detect()
        name = f"{machine.cpu}, {machine.cores} cores, {', '.join(machine.isa)}"
        found = [one for one in found if one.machine == name]
    if not found:
        where = "on this machine " if here else ""
        raise BadInputError(
            f"No steps were measured {where}yet, so nothing can be said of a CPU; `quicksilver calibrate MODEL` measures some."
        )
    newest = max(found, key=lambda one: one.date)
    return [one for one in found if (one.machine, one.engine) == (newest.machine, newest.engine)]


def _factors(found: Fit, instance: Instance) -> tuple[float, float, str]:
    """Return how many times as fast an instance computes and reads memory, and by what that was reckoned.

    By its maker's figures against what was measured here, if both are known; else by cores.
    """
    from quicksilver import machine

    here = machine.kept()
    compute = memory = instance.cores / found.cores
    how = [f"{instance.cores} cores against {found.cores}"]
    if here is not None and instance.bandwidth_gb_s:
        memory = instance.bandwidth_gb_s / here.bandwidth_gb_s
        how.append(f"{instance.bandwidth_gb_s:.0f} GB/s against {here.bandwidth_gb_s:.0f}")
    rates = {} if here is None else {"bf16": here.bf16_gflop_s, "fp32": here.fp32_gflop_s}
    for precision, own in rates.items():
        if own and precision in instance.tflops:
            compute = 1000 * instance.tflops[precision] / own
            how[0] = f"{1000 * instance.tflops[precision]:,.0f} GFLOP/s in {precision} against {own:,.0f}"
            break
    return compute, memory, " and ".join(how)


def _tables(
    found: Fit, facts: ModelFacts, layout: Layout, *, basis: Basis, origin: str, remarks: Sequence[str]
) -> StepTimes:
    guesses = layout.guessing.tokens if layout.guessing is not None else 0
    contexts = tuple(sorted({min(tokens, facts.max_positions) for tokens in (1, 512, 2048, facts.max_positions)}))
    prompts = tuple(sorted({min(tokens, facts.max_positions) for tokens in PROMPTS}))

    def decode(streams: int, context: int) -> float:
        guessed = streams * guesses
        padding = -(-(streams + guessed) // GRAIN) * GRAIN - streams - guessed if guessed else 0
        shape = StepShape(streams=streams, context=context, ahead=1 + guesses, padding=padding)
        return found.ms(facts, layout.weights, shape)

    def prefill(tokens: int, beside: int) -> float:
        shape = StepShape(prompt=tokens, streams=beside, context=BESIDE_CONTEXT if beside else 0)
        after = StepShape(streams=1 + beside, context=BESIDE_CONTEXT)
        # A prompt's step has a shape of its own, and so has the one after it.
        again = found.ms(facts, layout.weights, after)
        return (
            found.ms(facts, layout.weights, shape, new=True) + found.ms(facts, layout.weights, after, new=True) - again
        )

    return StepTimes(
        basis=basis,
        origin=origin,
        streams=STREAMS,
        contexts=contexts,
        decode_ms=tuple(tuple(decode(n, context) for context in contexts) for n in STREAMS),
        prompts=prompts,
        beside=BESIDE,
        prefill_ms=tuple(tuple(prefill(tokens, n) for n in BESIDE) for tokens in prompts),
        remarks=tuple(remarks),
    )


def _features(
    facts: ModelFacts,
    weights: Precision,
    shape: StepShape,
    known: Sequence[Precision],
    *,
    new: bool,
    share: float,
) -> Floats:
    """Return what each coefficient is multiplied by; `share` of the cores compute. Units: 10^9 weights, elements and so on."""
    row = np.zeros(SHARED + len(known) * EACH)
    reads, attends = 0.0, 0.0
    for count, past, fresh in (
        (shape.streams, shape.context, shape.ahead),
        (1 if shape.prompt else 0, 0, shape.prompt),
        (1 if shape.padding else 0, 0, shape.padding),
    ):
        reads += count * (past + fresh)
        attends += count * fresh * (past + fresh / 2)
    layers = facts.layers
    row[:SHARED] = (
        layers,
        layers if new else 0.0,
        layers * shape.sequences / share,
        layers * facts.hidden_size * shape.tokens / share / 1e6,
        reads * facts.kv_elements_per_token / share / 1e9,
        4 * layers * facts.heads * facts.head_dim * attends / share / 1e9,
    )
    head = facts.vocab_size * facts.hidden_size
    body = facts.parameters - head * (1 if facts.tied_embeddings else 2)
    for parameters, precision, tokens in (
        (body, weights, shape.tokens),
        # With int4 in the layers the last matrix stays in int8.
        (head, "int8" if weights == "int4" and "int8" in known else weights, shape.rows),
    ):
        start = SHARED + list(known).index(precision) * EACH
        row[start : start + EACH] += parameters / 1e9 / share * _ramps(tokens)
    return row


def _ramps(tokens: int) -> Floats:
    """Return 1 and the tokens between each knot and the next: (EACH,)."""
    upper = [*KNOTS[1:], math.inf]
    return np.array([1.0, *(max(0.0, min(tokens, end) - start) for start, end in zip(KNOTS, upper, strict=True))])
