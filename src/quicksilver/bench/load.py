"""Put a load on an endpoint from a process of its own, and read back the raw Samples."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Literal

from pydantic import Field, model_validator

from quicksilver.bench import doubts
from quicksilver.bench.doubts import ClientReport
from quicksilver.bench.schedule import in_order, moments, streams_at
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns.arrivals import Arrivals
from quicksilver.nouns.base import Noun
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.workload import Prompt

API_KEY_ENV = "QUICKSILVER_ENDPOINT_API_KEY"
IN_FLIGHT = 512
"""Requests of an open loop that may be under way; a net for the machine, which the server should never let it fall into."""
SPARE_FILES = 64
"""Open files that the client needs beside its connections."""
STOP_S = 5.0

log = logging.getLogger(__name__)


class Call(Noun):
    """One request of a job: where it goes and the part of its body that is its own."""

    id: str
    path: Literal["/chat/completions", "/completions"]
    body: dict[str, Any]


class Job(Noun):
    """What the client process reads on stdin, as one JSON document."""

    url: str = Field(description="ends in /v1")
    model: str
    calls: tuple[Call, ...]
    concurrency: int = Field(ge=1, description="most requests under way")
    streams: tuple[int, ...] = Field(
        (), description="closed loop: those under way once each request is sent, if they rise"
    )
    due_s: tuple[float, ...] = Field((), description="open loop: when each request is sent, seconds after the first")
    load: str = Field("", description="the load's name, for its Samples")
    out: Path
    timeout_s: float = Field(600.0, gt=0, description="limit of one request, and of the server's silence")
    api_key_env: str | None = None
    warmup: bool = False
    round: int = 0

    @model_validator(mode="after")
    def _one_loop(self) -> Job:
        if self.due_s and (self.streams or len(self.due_s) != len(self.calls)):
            raise ValueError("an open loop has a moment for each call, and no streams")
        return self


def call(prompt: Prompt, max_tokens: int, fields: Mapping[str, Any] = MappingProxyType({})) -> Call:
    """Make a prompt's request: conversations go to chat completions, texts and token ids to completions."""
    body: dict[str, Any] = {"max_tokens": prompt.max_tokens or max_tokens, **fields}
    if prompt.ignore_eos:
        body["ignore_eos"] = True
    if prompt.messages is not None:
        body["messages"] = [message.model_dump() for message in prompt.messages]
        return Call(id=prompt.id, path="/chat/completions", body=body)
    body["prompt"] = prompt.prompt if prompt.prompt is not None else list(prompt.token_ids or ())
    return Call(id=prompt.id, path="/completions", body=body)


def run_load(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    *,
    concurrency: int | None = None,
    arrivals: Arrivals | None = None,
    max_tokens: int,
    out: Path,
    round: int = 0,  # noqa: A002  the Sample's word
    warmup: bool = False,
    fields: Mapping[str, Any] = MappingProxyType({}),
    on_progress: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    on_report: Callable[[ClientReport], None] | None = None,
    timeout_s: float = 600.0,
    in_flight: int = IN_FLIGHT,
) -> list[Sample]:
    """Send each prompt once, `concurrency` at a time or as `arrivals` say, and return what the client saw, in order of completion.

    The Samples are appended to `out` (JSONL) as they end. A request that fails is a Sample with its error; one that
    takes over `timeout_s` has failed, and when the server has said nothing at all for that long the rest isn't sent.
    `fields` go into every request's body, such as a temperature (0 by default).
    `on_note` gets a sentence for each doubt about the figures (the client was busy or late, the server counts no
    tokens); without it they are logged. `on_report` gets what the client says of itself: whether it kept up. Of an open
    loop `in_flight` requests at most are under way. Raises BadInputError, or EngineError if the client can't do its work.
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
    )
    start = _prepare(out)
    summary = _run_client(job, endpoint.api_key, on_progress)
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


def _run_client(job: Job, api_key: str | None, on_progress: Callable[[int, int], None] | None) -> dict[str, Any]:
    """Run the client process to its end and return its summary. Raises EngineError."""
    environment = dict(os.environ)
    if api_key:
        environment[API_KEY_ENV] = api_key
    summary: dict[str, Any] | None = None
    failure = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "quicksilver.bench.client"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                encoding="utf-8",
                env=environment,
            )
        except OSError as error:
            raise EngineError(f"The load client could not be started: {error}.") from error
        try:
            for line in _converse(process, job.model_dump_json()):
                if "summary" in line:
                    summary = line["summary"]
                elif "failure" in line:
                    failure = line["failure"]
                elif on_progress is not None:
                    on_progress(line["done"], line["total"])
            code = process.wait()
        finally:
            _end(process)
        if summary is None:
            complaints.seek(0)
            said = failure or next(reversed(complaints.read().strip().splitlines()), f"it ended with code {code}")
            raise EngineError(f"The load client failed: {said.rstrip('.')}.")
    return summary


def _converse(process: subprocess.Popen[str], job: str) -> Iterator[dict[str, Any]]:
    """Hand the job over, then yield the client's lines; ends when it closes its stdout."""
    stdin: IO[str] | None = process.stdin
    stdout: IO[str] | None = process.stdout
    if stdin is None or stdout is None:  # pragma: no cover - both are pipes
        raise EngineError("The load client has no pipes.")
    try:
        stdin.write(job)
        stdin.close()
    except BrokenPipeError:
        return  # it died before it read its job: its stderr says why
    for line in stdout:
        if line.endswith("\n"):  # a killed client may leave half a line
            yield json.loads(line)


def _end(process: subprocess.Popen[str]) -> None:
    """Make sure that the client has ended, and close its pipes."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            pipe.close()
