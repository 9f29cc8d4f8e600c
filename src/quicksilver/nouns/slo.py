"""Slo: a service level objective, such as `ttft_p95<500ms,itl_p95<40ms,errors<0.1%`."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Final, Literal, get_args

from pydantic import Field

from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.base import Noun

Duration = Literal["ttft", "itl", "tpot", "e2e"]
Metric = Literal["ttft", "itl", "tpot", "e2e", "errors", "tokens_per_s", "requests_per_s"]
Statistic = Literal["p50", "p90", "p95", "p99", "mean", "value"]
Relation = Literal["<", "<=", ">", ">="]

DURATIONS: Final = get_args(Duration)
RATES: Final = ("tokens_per_s", "requests_per_s")
STATISTICS: Final = ("p50", "p90", "p95", "p99", "mean")
NAMES: Final = (*(f"{metric}_{statistic}" for metric in DURATIONS for statistic in STATISTICS), "errors", *RATES)
EXAMPLE: Final = "ttft_p95<500ms,itl_p95<40ms,errors<0.1%"
_TERM = re.compile(r"\s*([A-Za-z0-9_]*)\s*(<=|>=|<|>|==|=|!=)\s*(\S*?)\s*(ms|s|%|)\s*", re.ASCII)
_NUMBER = re.compile(r"[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?", re.ASCII)
_MS = {"ms": 1.0, "s": 1000.0}


class Term(Noun):
    """One limit: a percentile or the mean of a duration (ms), the share of failed requests (%), or a rate (per second)."""

    metric: Metric
    statistic: Statistic = Field("value", description="of a duration; `value` for a share or a rate")
    relation: Relation
    limit: float = Field(ge=0, allow_inf_nan=False, description="ms, % or per second, by the metric")

    @property
    def name(self) -> str:
        """What is limited, as it is written: `ttft_p95`, `errors`."""
        return self.metric if self.statistic == "value" else f"{self.metric}_{self.statistic}"

    @property
    def unit(self) -> str:
        """Unit of the limit: ms, %, tokens/s or requests/s."""
        return (
            "ms" if self.metric in DURATIONS else "%" if self.metric == "errors" else self.metric.replace("_per_", "/")
        )

    @property
    def ceiling(self) -> bool:
        """Whether less is better: durations and failures, not rates."""
        return self.metric not in RATES

    @property
    def percentile(self) -> float | None:
        """The percentile that it limits, 0 to 100; None for a mean, a share and a rate."""
        return float(self.statistic[1:]) if self.statistic[0] == "p" else None

    def holds(self, value: float) -> bool:
        """Say whether a value, in the limit's unit, keeps to it."""
        match self.relation:
            case "<":
                return value < self.limit
            case "<=":
                return value <= self.limit
            case ">":
                return value > self.limit
        return value >= self.limit

    def __str__(self) -> str:
        number = repr(self.limit).removesuffix(".0")
        return f"{self.name}{self.relation}{number}{self.unit if self.ceiling else ''}"


class Slo(Noun):
    """Limits that all have to be kept. `parse` makes one from text, and `str` gives text that makes the same again."""

    terms: tuple[Term, ...] = Field(min_length=1)

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Read comma-separated terms. Raises BadInputError: one sentence for a typo or a value that can't be."""
        if not text.strip():
            raise BadInputError(f"The SLO is empty; write it as {EXAMPLE}.")
        terms: dict[str, Term] = {}
        for part in text.split(","):
            term = _term(part)
            if (other := terms.get(term.name)) is not None:
                raise BadInputError(f"The SLO limits {term.name} twice: {other} and {term}; keep one of them.")
            terms[term.name] = term
        _check_order(terms)
        return cls(terms=tuple(terms.values()))

    @property
    def ceilings(self) -> tuple[Term, ...]:
        """The terms that get harder to keep as the load grows."""
        return tuple(term for term in self.terms if term.ceiling)

    @property
    def floors(self) -> tuple[Term, ...]:
        """The terms on rates, which get easier as the load grows."""
        return tuple(term for term in self.terms if not term.ceiling)

    @property
    def allows_errors(self) -> bool:
        """Whether it says itself what share of requests may fail."""
        return any(term.metric == "errors" for term in self.terms)

    def __str__(self) -> str:
        return ",".join(map(str, self.terms))


def _term(part: str) -> Term:
    text = part.strip()
    found = _TERM.fullmatch(part)
    if found is None or not found[1]:
        raise BadInputError(
            f"{text!r} is not a term of an SLO; write one as ttft_p95<500ms."
            if text
            else f"A term of the SLO is empty; write it as {EXAMPLE}."
        )
    name, relation, number, unit = found.groups()
    metric, statistic = _what(name)
    upper = metric not in RATES
    if relation not in get_args(Relation) or (relation[0] == "<") != upper:
        right = "<" if upper else ">"
        raise BadInputError(f"{text!r}: {name} is limited from {'above' if upper else 'below'}; write {name}{right}….")
    if number.startswith("-") and _NUMBER.fullmatch(number[1:]):
        raise BadInputError(f"{text!r}: {name} can't be negative.")
    if not _NUMBER.fullmatch(number):
        raise BadInputError(f"{text!r}: {(number + unit) or 'nothing'!r} is not a number{_with_unit(metric)}.")
    value = float(number)
    if not math.isfinite(value):
        raise BadInputError(f"{text!r}: {number} is too large to be a limit.")
    limit = _in_unit(text, name, metric, value, unit)
    if limit == 0 and relation == "<":
        raise BadInputError(
            f"{text!r}: no share of failures is below 0; write errors<=0% if none may fail."
            if metric == "errors"
            else f"{text!r}: no {name} is below 0."
        )
    return Term.model_validate({"metric": metric, "statistic": statistic, "relation": relation, "limit": limit})


def _what(name: str) -> tuple[str, str]:
    """Split a name into metric and statistic. Raises BadInputError with the nearest name that there is."""
    if name in ("errors", *RATES):
        return name, "value"
    metric, _, statistic = name.rpartition("_")
    if metric in DURATIONS and statistic in STATISTICS:
        return metric, statistic
    if name in DURATIONS:
        raise BadInputError(
            f"{name!r} alone says too little; say of which requests, such as {name}_p95 or {name}_mean."
        )
    if metric in DURATIONS and (digits := re.fullmatch(r"p([0-9.]+)", statistic)):
        impossible = re.fullmatch(r"[0-9]+(\.[0-9]+)?", digits[1]) is None or not 0 < float(digits[1]) < 100
        raise BadInputError(
            f"There is no percentile {statistic}; known: p50, p90, p95, p99."
            if impossible
            else f"The percentile {statistic} isn't kept; known: p50, p90, p95, p99."
        )
    raise unknown("SLO term", name, NAMES)


def _with_unit(metric: str) -> str:
    return " with ms or s" if metric in DURATIONS else " with %" if metric == "errors" else ""


def _in_unit(text: str, name: str, metric: str, value: float, unit: str) -> float:
    """Return a limit in ms, % or per second. Raises BadInputError for a unit that is missing or another metric's."""
    if metric in DURATIONS:
        if unit not in _MS:
            raise BadInputError(
                f"{text!r} lacks its unit; write {name}<{value:g}ms or {name}<{value:g}s."
                if not unit
                else f"{text!r}: {name} is a time, in ms or s."
            )
        limit = value * _MS[unit]
        if not math.isfinite(limit):
            raise BadInputError(f"{text!r}: {value:g} s is too large to be a limit.")
        return limit
    if metric == "errors":
        if unit not in ("%", ""):
            raise BadInputError(f"{text!r}: errors is a share of the requests, in %.")
        percent = value if unit else 100 * value
        if percent >= 100:
            raise BadInputError(
                f"{text!r}: a share of {percent:g} % allows every request to fail; write it as errors<0.1%."
            )
        return percent
    if unit:
        raise BadInputError(f"{text!r}: {name} is a rate, written without a unit.")
    return value


def _check_order(terms: dict[str, Term]) -> None:
    """Refuse limits of one duration that contradict each other: a p50 is never above the p95 of the same requests."""
    for metric in DURATIONS:
        ordered = [terms[name] for s in STATISTICS[:4] if (name := f"{metric}_{s}") in terms]
        for low, high in pairwise(ordered):
            if low.limit > high.limit:
                raise BadInputError(
                    f"The SLO contradicts itself: with {high} a limit of {low} can't matter; have the two been exchanged?"
                )
