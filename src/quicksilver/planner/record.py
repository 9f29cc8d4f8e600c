"""Record: predictions beside what was measured of them later, and how wrong each source has been so far.

Kept in `predictions.sqlite` in the project's home. SQLite's journal leaves it whole however a process that writes ends.
"""

from __future__ import annotations

import logging
import sqlite3
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from quicksilver.errors import BadInputError, QuicksilverError
from quicksilver.nouns.pairing import Measured, Pairing, RunningError, configuration
from quicksilver.nouns.prediction import Prediction
from quicksilver.sources.home import HOME_VARIABLE, home, writable, writing
from quicksilver.sources.instances import LOCAL

log = logging.getLogger(__name__)

VERSION = 1
WAIT_S = 30
"""For another process that writes."""
CLOSE, NEAR = 0.05, 0.25
"""Shares by which lengths may differ: without a word, and with a remark."""
_TABLE = """
create table if not exists pairings (
    hash text primary key,
    configuration text not null,
    recorded text not null,
    basis text not null,
    model text not null,
    instance text not null,
    layout text not null,
    input_tokens integer not null,
    output_tokens integer not null,
    streams integer not null,
    predicted_tokens_per_s real not null,
    measured_tokens_per_s real not null,
    document text not null
)
"""

_EXPECTED = """
create table if not exists expected (
    configuration text primary key,
    predicted text not null,
    document text not null
)
"""


def file() -> Path:
    """Return where the record is kept. It need not exist yet."""
    return home() / "planner" / "predictions.sqlite"


def pair(prediction: Prediction, measured: Measured, *, same_model: bool = False) -> Pairing:
    """Put a prediction beside a measurement of the same thing.

    Lengths that differ a little leave a remark. Raises BadInputError for another model, unless `same_model` says that it is the
    same by another name, for other streams, other weights or other lengths.
    """
    asked, load = prediction, prediction.load
    if not same_model and _plain(measured.model) != _plain(asked.model):
        raise BadInputError(
            f"The report is of the model {measured.model}, and the prediction of {asked.model}; "
            "if that is another name for it, add --same-model."
        )
    if measured.weights and measured.weights != asked.layout.weights:
        raise BadInputError(
            f"The report is of {measured.weights} weights, and the prediction of {asked.layout.weights}."
        )
    if measured.streams != load.streams:
        raise BadInputError(f"The report has {measured.streams} streams, and the prediction {load.streams}.")
    remarks = []
    for what, predicted, seen in (
        ("prompts", load.input_tokens, measured.input_tokens),
        ("answers", load.output_tokens, measured.output_tokens),
    ):
        away = abs(seen / predicted - 1)
        if away > NEAR:
            raise BadInputError(
                f"The report's {what} have {seen:.0f} tokens, and the prediction's {predicted}: "
                f"that is more than {NEAR:.0%} apart."
            )
        if away > CLOSE:
            remarks.append(f"The report's {what} have {seen:.0f} tokens, and the prediction's {predicted}.")
    return Pairing(prediction=prediction, measured=measured, remarks=tuple(remarks))


def match(predictions: Sequence[Prediction], measured: Measured, *, same_model: bool = False) -> Pairing:
    """Return the pairing with the one prediction of several that a measurement is of.

    Raises BadInputError if it is of none, with the reason for the nearest, or if several fit.
    """
    found, refused = [], []
    for prediction in predictions:
        try:
            found.append(pair(prediction, measured, same_model=same_model))
        except BadInputError as error:
            load = prediction.load
            off = abs(load.streams - measured.streams) + abs(load.input_tokens / measured.input_tokens - 1)
            refused.append((off, str(error)))
    if not found:
        if not refused:
            raise BadInputError("There are no predictions to compare with.")
        more = f" (the nearest of {len(refused)} predictions)" if len(refused) > 1 else ""
        raise BadInputError(min(refused)[1].rstrip(".") + f"{more}.")
    exact = [each for each in found if not each.remarks] or found
    if len(exact) > 1:
        names = sorted({f"{each.prediction.instance} {each.prediction.layout.label}" for each in exact})
        raise BadInputError(
            f"{len(exact)} predictions fit this report ({'; '.join(names[:4])}); say which with --instance and --layout."
        )
    return exact[0]


def keep(prediction: Prediction, measured: Measured, *, same_model: bool = False) -> Pairing:
    """Keep a prediction with what was measured of it, and return both; the same pair once more changes nothing.

    Raises BadInputError as `pair` does, or if the record can't be written.
    """
    found = pair(prediction, measured, same_model=same_model)
    with _open() as base:
        base.execute(
            "insert or ignore into pairings values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                found.hash,
                configuration(prediction),
                _now(),
                prediction.basis,
                prediction.model,
                prediction.instance,
                prediction.layout.label,
                prediction.load.input_tokens,
                prediction.load.output_tokens,
                prediction.load.streams,
                prediction.tokens_per_s,
                measured.tokens_per_s,
                found.model_dump_json(),
            ),
        )
    return found


def expect(predictions: Iterable[Prediction]) -> None:
    """Remember what was predicted of this machine, so that `meet` pairs it when it is measured here; the last one counts.

    Where the record can't be written a line in the log says so: the predictions are what was asked for.
    """
    rows = [(configuration(each), _now(), each.model_dump_json()) for each in predictions if each.instance == LOCAL]
    try:
        if rows:
            with _open() as base:
                base.executemany("insert or replace into expected values (?, ?, ?)", rows)
    except QuicksilverError as error:
        log.warning("What is predicted of this machine isn't remembered: %s", error)


def meet(measured: Measured) -> Pairing | None:
    """Keep what was measured here with the last prediction of exactly that, if there is one.

    Exactly: the same model, weights and streams, no speculation, and lengths without a remark.
    """
    if not measured.weights or not file().is_file():
        return None
    with _open() as base:
        rows = base.execute("select document from expected order by predicted desc").fetchall()
    for (document,) in rows:
        try:
            prediction = Prediction.model_validate_json(document)
            found = pair(prediction, measured)
        except (BadInputError, ValidationError):
            continue
        if not found.remarks and prediction.layout.guessing is None and prediction.replicas == 1:
            return keep(prediction, measured)
    return None


def pairings() -> list[Pairing]:
    """Return all pairs in the order in which they were recorded. Raises BadInputError if the record can't be read."""
    if not file().is_file():
        return []
    with _open() as base:
        rows = base.execute("select document from pairings order by recorded, hash").fetchall()
    try:
        return [Pairing.model_validate_json(document) for (document,) in rows]
    except ValidationError as error:
        raise _unreadable() from error


def errors(
    found: Sequence[Pairing] | None = None, *, by: Literal["basis", "instance"] = "basis"
) -> dict[str, RunningError]:
    """Return how wrong each source has been so far, or what was predicted for each instance; of those kept, unless given.

    A configuration counts once, by its last measurement.
    """
    last = {configuration(each.prediction): each for each in (pairings() if found is None else found)}
    groups: dict[str, list[float]] = {}
    for each in last.values():
        name = each.prediction.basis if by == "basis" else each.prediction.instance
        groups.setdefault(name, []).append(each.error_percent)
    return {name: RunningError(statistics.median(group), len(group)) for name, group in sorted(groups.items())}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _plain(model: str) -> str:
    """A model's name without its owner or folder, in one spelling."""
    name = model.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1].lower()
    return "".join(letter for letter in name.removesuffix(".gguf") if letter.isalnum())


@contextmanager
def _open() -> Iterator[sqlite3.Connection]:
    place = file()
    writable(place.parent)
    try:
        with writing(place.parent), closing(sqlite3.connect(place, timeout=WAIT_S)) as base:
            (version,) = base.execute("pragma user_version").fetchone()
            if version > VERSION:
                raise BadInputError(f"{place} was written by a later version of Quicksilver.")
            with base:
                base.execute(_TABLE)
                base.execute(_EXPECTED)
                base.execute(f"pragma user_version = {VERSION}")
            with base:
                yield base
    except sqlite3.DatabaseError as error:
        raise _unreadable() from error


def _unreadable() -> BadInputError:
    return BadInputError(
        f"{file()} can't be read as the record of predictions; move it away, or set {HOME_VARIABLE} to another folder."
    )
