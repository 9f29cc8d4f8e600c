"""Put a closed-loop load on an endpoint from a process of its own, and read back the raw Samples."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Literal

from pydantic import Field

from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns.base import Noun
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.workload import Prompt

API_KEY_ENV = "QUICKSILVER_ENDPOINT_API_KEY"
BUSY_SHARE = 0.5
"""Share of a core from which the client's own work may stand in its timings."""
LATE_MS = 25.0
"""Lateness of the client's clock ticks (p99) from which its timestamps are in doubt."""
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
    concurrency: int = Field(ge=1)
    out: Path
    timeout_s: float = Field(600.0, gt=0, description="limit of one request, and of the server's silence")
    api_key_env: str | None = None
    warmup: bool = False
    round: int = 0


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
    concurrency: int,
    max_tokens: int,
    out: Path,
    round: int = 0,  # noqa: A002  the Sample's word
    warmup: bool = False,
    fields: Mapping[str, Any] = MappingProxyType({}),
    on_progress: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    timeout_s: float = 600.0,
) -> list[Sample]:
    """Send each prompt once, `concurrency` at a time, and return what the client saw, in order of completion.

    The Samples are appended to `out` (JSONL) as they end. A request that fails is a Sample with its error; one that
    takes over `timeout_s` has failed, and when the server has said nothing at all for that long the rest isn't sent.
    `fields` go into every request's body, such as a temperature (0 by default).
    `on_note` gets a sentence for each doubt about the figures (the client was busy or late, the server counts no
    tokens); without it they are logged. Raises BadInputError, or EngineError if the client can't do its work.
    """
    if not prompts:
        raise BadInputError("There are no prompts to send.")
    if concurrency < 1 or timeout_s <= 0:
        raise BadInputError("A load needs a concurrency of at least 1 and a time limit above 0.")
    note = on_note or log.warning
    job = Job(
        url=endpoint.url.rstrip("/"),
        model=endpoint.model,
        calls=tuple(call(prompt, max_tokens, fields) for prompt in prompts),
        concurrency=concurrency,
        out=out.absolute(),
        timeout_s=timeout_s,
        api_key_env=API_KEY_ENV if endpoint.api_key else None,
        warmup=warmup,
        round=round,
    )
    start = _prepare(out)
    summary = _run_client(job, endpoint.api_key, on_progress)
    samples = _read(out, start)
    if len(samples) != len(prompts):
        raise EngineError(f"The load client was stopped after {len(samples)} of {len(prompts)} requests.")
    if not warmup:
        for sentence in _doubts(summary, concurrency, len(prompts)):
            note(sentence)
    return samples


def read_samples(path: Path) -> list[Sample]:
    """Read a file of Samples. A last line that was cut off (a killed run) is left out. Raises BadInputError."""
    return _read(path, 0)


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


def _doubts(summary: dict[str, Any], concurrency: int, count: int) -> list[str]:
    doubts = []
    where = f"at {concurrency} stream{'s' if concurrency > 1 else ''}"
    if summary["cpu_share"] >= BUSY_SHARE:
        doubts.append(
            f"The load client took {summary['cpu_share']:.0%} of a core {where}: the figures may be its limit, not the server's."
        )
    if summary["late_p99_ms"] >= LATE_MS:
        doubts.append(
            f"The load client ran up to {summary['late_p99_ms']:.0f} ms late {where} (p99): it had to wait for a core, so latencies are inexact by that much."
        )
    if summary["uncounted"]:
        doubts.append(
            f"The server sent no token counts with {summary['uncounted']} of {count} answers {where}: pieces of the stream were counted instead."
        )
    if count < concurrency:
        doubts.append(f"{count} prompts can't keep {concurrency} streams busy.")
    return doubts
