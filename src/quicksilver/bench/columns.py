"""The table of recipes: its columns, and every figure in them as text, the same for every face of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from quicksilver.bench import findings
from quicksilver.nouns import Candidate, Figure, Goal, Result, SpeculationTable
from quicksilver.nouns.score import Preference

Mark = Literal["winner", "as-is", "over", ""]
MANY = 12
"""Rows of a table that are read at a glance. Where there are more, recipes that can't win are folded away."""
FIRST = 5
"""The best of those stay, and so does the best of an engine that has no other row."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure as text: the main one, a second one below it, and what only a wide page has room for."""

    main: str = findings.NOTHING
    sub: str = ""
    detail: str = ""
    predicted: bool = False
    over: bool = False
    """Breaks a limit of the goal."""
    value: float | None = None
    """What the cell is sorted by."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: two header lines with the units, the same shorter and in one line, and what it means."""

    head: str
    sub: str
    short: tuple[str, str]
    """The two header lines for a narrow terminal."""
    title: str
    meaning: str
    cell: Callable[[Candidate], Cell]


@dataclass(frozen=True, slots=True)
class Row:
    """One recipe that was measured."""

    label: str
    mark: Mark
    cells: tuple[Cell, ...]
    folded: bool = False
    """One of many that can't win: shown only when it is asked for."""


def columns(result: Result, shown: Sequence[int]) -> list[Column]:
    """The columns that some measured recipe has a figure for; tokens/s at the concurrencies to be shown."""
    every = findings.concurrencies(result)
    lowest = every[0] if every else 1
    at = findings.streams(lowest)
    found = [_speed_column(result, concurrency) for concurrency in shown]
    found += [
        Column("TTFT p50", "p99, ms", ("TTFT", "p50 ms"), f"TTFT at {at}, ms: p50 / p99", f"time to first token at {at}, ms; below it p99",
               lambda c: _latency(result.goal, c, lowest, "ttft")),
        Column("ITL p50", "p99, ms", ("ITL", "p50 ms"), f"ITL at {at}, ms: p50 / p99", f"inter-token latency at {at}, ms; below it p99",
               lambda c: _latency(result.goal, c, lowest, "itl")),
        Column("quality", "loss %", ("quality", "loss %"), "quality loss, %: value / 95 % interval", "rise of perplexity over the as-is model's; below it the 95 % interval",
               lambda c: _quality(result.goal, c)),
        Column("memory", "disk MB", ("MB", "disk"), "memory / disk, MB", "peak memory of the server; below it the artefact's size on disk",
               lambda c: _memory(result.goal, c)),
        Column("start", "load, s", ("start", "load s"), "cold start / load, s", "from process start to the first token; below it until the server was ready",
               _start),
        Column("$/1M", "blended", ("$/1M", "blend"), "$ per 1M tokens: measured / blended",
               f"$ per million output tokens by measured throughput; below it the blended price, a formula: concurrency / p50 ITL at {result.price.input_output_ratio:g} input to 1 output token",
               _price),
    ]  # fmt: skip
    rows = findings.measured(result)
    return [column for column in found if any(column.cell(c) != Cell() for c in rows)]


def rows(result: Result, shown: Sequence[Column]) -> list[Row]:
    """One row for each recipe that was measured, folded if there are many and it can't win."""
    won = findings.winner(result)
    every = findings.measured(result)
    found: list[Row] = []
    beaten, engines = 0, set()
    for candidate in every:
        mark: Mark = (
            "winner" if candidate is won
            else "as-is" if candidate.baseline
            else "" if candidate.eligible or not candidate.reason
            else "over"
        )  # fmt: skip
        engine = candidate.recipe.get("engine")
        beaten += mark == "over"
        folded = len(every) > MANY and mark == "over" and beaten > FIRST and engine in engines
        engines.add(engine)
        found.append(Row(candidate.label, mark, tuple(column.cell(candidate) for column in shown), folded))
    return found


def _speed_column(result: Result, concurrency: int) -> Column:
    def cell(candidate: Candidate) -> Cell:
        speed = candidate.score.at(concurrency)
        if speed is None:
            return Cell()
        figure, times = speed.tokens_per_s, findings.ratio(result, candidate, concurrency)
        return Cell(
            findings.number(figure.value),
            f"{times.value:.2f}x" if times else "",
            findings.interval(figure),
            figure.source == "predicted",
            value=figure.value,
        )

    at = findings.streams(concurrency)
    return Column(
        "tokens/s",
        at,
        ("tok/s", f"at {concurrency}"),
        f"tokens/s at {at} (against as-is)",
        f"output tokens a second, all of {at}; below it the ratio to as-is for answers of the same lengths",
        cell,
    )


def _latency(goal: Goal, candidate: Candidate, concurrency: int, which: Literal["ttft", "itl"]) -> Cell:
    speed = candidate.score.at(concurrency)
    if speed is None:
        return Cell()
    ttft = which == "ttft"
    latency, limit = (speed.ttft_ms, goal.ttft_p95_ms) if ttft else (speed.itl_ms, goal.itl_p95_ms)
    if not findings.timed(latency):
        return Cell()
    return Cell(
        findings.number(latency.p50),
        findings.number(latency.p99),
        predicted=speed.tokens_per_s.source == "predicted",
        over=limit is not None and latency.p95 > limit,
        value=latency.p50,
    )


def _quality(goal: Goal, candidate: Candidate) -> Cell:
    loss = findings.loss(candidate)
    if loss is None:
        return Cell()
    judged = candidate.score.quality.judgement if candidate.score.quality is not None else None
    return Cell(
        findings.percent(loss.value),
        "" if candidate.baseline else findings.interval(loss, findings.percent),
        judged.outcome if judged is not None else "",
        predicted=loss.source == "predicted",
        over=loss.value > goal.max_quality_loss if judged is None else judged.outcome != "passes",
        value=loss.value,
    )


def _memory(goal: Goal, candidate: Candidate) -> Cell:
    memory, disk = candidate.score.memory_mb, candidate.score.disk_mb
    if memory is None and disk is None:
        return Cell()
    return Cell(
        findings.number(memory),
        findings.number(disk),
        over=memory is not None and goal.memory_mb is not None and memory > goal.memory_mb,
        value=memory,
    )


def _start(candidate: Candidate) -> Cell:
    start_s, load_s = candidate.score.cold_start_s, candidate.score.load_s
    if start_s is None and load_s is None:
        return Cell()
    return Cell(findings.number(start_s), findings.number(load_s), value=start_s)


def _price(candidate: Candidate) -> Cell:
    cost = candidate.score.cost
    if cost is None:
        return Cell()
    return Cell(
        findings.dollars(cost.measured),
        findings.dollars(cost.blended),
        predicted=findings.source(candidate) == "predicted",
        value=cost.measured,
    )


def quality_details(result: Result) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """The heads and rows of a table of all that was measured of quality; empty if nothing was."""
    having = [(c.label, c.score.quality) for c in findings.measured(result) if c.score.quality is not None]
    tasks = list(dict.fromkeys(name for _, quality in having for name in quality.task))
    heads = ["gate", "perplexity", "loss by answers, %", "KL, nats", "divergence, nats", "loss on own answers, %", "KL there, nats", "same answers, %",
             "same start, %", *tasks, "task loss, %", "preferred by the judge, %", "tokens"]  # fmt: skip
    rows = [
        (
            label,
            [
                Cell() if quality.judgement is None else Cell(quality.judgement.outcome, quality.judgement.reason),
                Cell() if quality.perplexity is None else Cell(f"{quality.perplexity:.2f}"),
                _ranged(quality.answer_loss_percent),
                _ranged(quality.kl, findings.number),
                Cell(findings.number(quality.divergence)),
                _ranged(quality.own_loss_percent),
                _ranged(quality.own_kl, findings.number),
                _share(quality.agreement),
                _share(quality.common_prefix),
                *(_ranged(quality.task.get(name)) for name in tasks),
                _ranged(quality.task_loss_percent),
                _preferred(quality.preference),
                Cell(f"{quality.tokens:,}") if quality.tokens else Cell(),
            ],
        )
        for label, quality in having
    ]
    kept = [i for i in range(len(heads)) if any(cells[i] != Cell() for _, cells in rows)]
    return [heads[i] for i in kept], [(label, [cells[i] for i in kept]) for label, cells in rows]


def speculation_details(table: SpeculationTable) -> tuple[list[str], list[list[str]]]:
    """The heads and rows of a table of tokens/s by streams and guessed tokens, with the time of a step; * marks a row's best."""
    heads = ["streams", *("no guesses" if length == 0 else f"{length} guessed" for length in table.lengths)]
    rows = []
    for streams, times, rates in zip(table.streams, table.step_ms, table.tokens_per_s, strict=True):
        cells = [
            f"{'*' if rate == max(rates) else ''}{rate:.0f} ({findings.number(ms)} ms)"
            for rate, ms in zip(rates, times, strict=True)
        ]
        rows.append([str(streams), *cells])
    return heads, rows


def _preferred(preference: Preference | None) -> Cell:
    if preference is None:
        return Cell()
    between = findings.interval(preference.rate, lambda share: f"{100 * share:.0f}")
    counts = f"{preference.wins} better, {preference.losses} worse, {preference.ties} equal"
    return Cell(f"{100 * preference.rate.value:.0f}", between, counts)


def _share(share: float | None) -> Cell:
    return Cell() if share is None else Cell(f"{100 * share:.0f}")


def _ranged(figure: Figure | None, form: Callable[[float], str] = findings.percent) -> Cell:
    if figure is None:
        return Cell()
    return Cell(form(figure.value), findings.interval(figure, form), predicted=figure.source == "predicted")
