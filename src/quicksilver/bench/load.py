"""Put a load on an endpoint from a process of its own, and read back the raw Samples."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quicksilver.bench import doubts
from quicksilver.bench.doubts import ClientReport
from quicksilver.bench.driver import API_KEY_ENV, Driver
from quicksilver.bench.job import Job, call
from quicksilver.bench.schedule import in_order, moments, streams_at
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns.arrivals import Arrivals
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.workload import Prompt

IN_FLIGHT = 512
"""Requests of an open loop that may be under way; a net for the machine, which the server should never let it fall into."""
SPARE_FILES = 64
"""Open files that the client needs beside its connections."""

log = logging.getLogger(__name__)


def run_load(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    *,
    concurrency: int | None = None,
    arrivals: Arrivals | None = None,
    max_tokens: int,
    out: Path,
    round: int = 0,  # noqa: A002  the Sample's word
    turn: int = 0,
    warmup: bool = False,
    fields: Mapping[str, Any] = MappingProxyType({}),
    on_progress: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    on_report: Callable[[ClientReport], None] | None = None,
    timeout_s: float = 600.0,
    in_flight: int = IN_FLIGHT,
    driver: Driver | None = None,
) -> list[Sample]:
    """Send each prompt once, `concurrency` at a time or as `arrivals` say, and return what the client saw, in order of completion.

    The Samples are appended to `out` (JSONL) as they end. A request that fails is a Sample with its error; one that
    takes over `timeout_s` has failed, and when the server has said nothing at all for that long the rest isn't sent.
    `fields` go into every request's body, such as a temperature (0 by default).
    `on_note` gets a sentence for each doubt about the figures (the client was busy or late, the server counts no
    tokens); without it they are logged. `on_report` gets what the client says of itself: whether it kept up. Of an open
    loop `in_flight` requests at most are under way. A `driver` keeps its process for the next load; without one, or for a server
    that asks for another key than the driver has, the load has a process of its own. Raises BadInputError, or EngineError if the client can't do its work.
    """
    if not prompts:
        raise BadInputError("There are no prompts to send.")
    if arrivals is None:
        if concurrency is None or concurrency < 1 or timeout_s <= 0:
            raise BadInputError("A load needs a concurrency of at least 1 and a time limit above 0.")
        arrivals = Arrivals.closed(concurrency)
    note = on_note or log.warning
    arrivals, ordered = in_order(arrivals, prompts)
    count = len(ordered)
    job = Job(
        url=endpoint.url.rstrip("/"),
        model=endpoint.model,
        calls=tuple(call(prompt, max_tokens, fields) for prompt in ordered),
        concurrency=_most_in_flight(in_flight) if arrivals.is_open else arrivals.streams_to or arrivals.streams or 1,
        streams=tuple(streams_at(arrivals, count)) if arrivals.streams_to else (),
        due_s=tuple(moments(arrivals, count, round)) if arrivals.is_open else (),
        load=arrivals.load_name,
        out=out.absolute(),
        timeout_s=timeout_s,
        api_key_env=API_KEY_ENV if endpoint.api_key else None,
        warmup=warmup,
        round=round,
        turn=turn,
    )
    start = _prepare(out)
    if driver is not None and driver.api_key == endpoint.api_key:
        summary = driver.run(job, on_progress)
    else:
        with Driver(endpoint.api_key) as own:
            summary = own.run(job, on_progress)
    samples = _read(out, start)
    if len(samples) != count:
        raise EngineError(f"The load client was stopped after {len(samples)} of {count} requests.")
    if not warmup:
        report = doubts.report(summary, samples, arrivals, most=job.concurrency)
        for sentence in doubts.sentences(report, arrivals, count):
            note(sentence)
        if on_report is not None:
            on_report(report)
    return samples


def read_samples(path: Path) -> list[Sample]:
    """Read a file of Samples. A last line that was cut off (a killed run) is left out. Raises BadInputError."""
    return _read(path, 0)


def _most_in_flight(wanted: int) -> int:
    """Return how many connections the client may hold: as many as are wanted, or as the limit of open files leaves."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, files - SPARE_FILES))


def _prepare(out: Path) -> int:
    """Make the file's folder, cut off a torn last line, and return the file's length in bytes."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a+b") as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            return whole
    except OSError as error:
        raise BadInputError(f"The samples can't be written to {out}: {error.strerror}.") from error


def _read(path: Path, start: int) -> list[Sample]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
    except OSError as error:
        raise BadInputError(f"The samples at {path} can't be read: {error.strerror}.") from error
    samples = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            samples.append(Sample(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise BadInputError(f"Line {number} of {path} is not a sample: {error}.") from error
    return samples
