"""The load client: a process of its own that drives a server in a closed loop and writes down what it saw.

`python -m quicksilver.bench.client` reads one Job (JSON) on stdin and appends one Sample a line to the job's `out`. On
stdout it prints a JSON line `{"done", "total"}` for each request that ended, and at last `{"summary": …}` or
`{"failure": …}`. A request that fails is a Sample whose error starts with its kind: connect, disconnect, timeout,
http, server, protocol or unsent. SIGTERM and SIGINT end it with what was written; requests under way leave nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import aiohttp
from pydantic import ValidationError

from quicksilver.bench.load import Call, Job
from quicksilver.nouns.sample import Sample

clock = time.perf_counter

CONNECT_S = 10.0
LINE_LIMIT = 4 << 20
"""Bytes without a line end after which a stream isn't one of events."""
TICK_S = 0.1
STOPPED = 130


class AnswerError(Exception):
    """An answer that isn't one; the message starts with its kind."""


@dataclass(slots=True)
class Stream:
    """One answer's server-sent events, put into a Sample as the bytes arrive."""

    sample: Sample
    rest: bytes = b""
    pieces: list[str] = field(default_factory=list)
    done: bool = False
    counted: bool = False

    def feed(self, data: bytes, now: float) -> None:
        """Take the bytes of one read, which arrived at `now`. Raises AnswerError."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > LINE_LIMIT:
            raise AnswerError("protocol: a line of the stream doesn't end")
        for line in lines:
            if line.startswith(b"data:") and (payload := line[5:].strip()):
                self._event(payload, now)

    def close(self, now: float) -> None:
        """Take the end of the stream. Raises AnswerError if it came too early."""
        self.feed(b"\n", now)
        sample = self.sample
        sample.text = "".join(self.pieces)
        if not self.counted:
            sample.completion_tokens = len(sample.arrivals)
        if not self.done and sample.finish is None:
            raise AnswerError("disconnect: the stream ended before the answer did")

    def _event(self, payload: bytes, now: float) -> None:
        if payload == b"[DONE]":
            self.done = True
            return
        try:
            event = json.loads(payload)
            if event.get("error"):
                raise AnswerError(f"server: {_words(event['error'])}")
            for choice in event.get("choices") or ():
                self._choice(choice, now)
            usage = event.get("usage")
            if usage:
                self.sample.prompt_tokens = int(usage["prompt_tokens"])
                self.sample.completion_tokens = int(usage["completion_tokens"])
                self.counted = True
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnswerError(f"protocol: an event of the stream isn't OpenAI's: {payload[:80]!r}") from error

    def _choice(self, choice: dict[str, Any], now: float) -> None:
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or ""
        # Reasoning is generated too: it counts as a piece, though it is no part of the answer.
        if text or delta.get("reasoning_content") or delta.get("reasoning"):
            if self.sample.first is None:
                self.sample.first = now
            self.sample.arrivals.append(now)
            self.pieces.append(text)
        if choice.get("finish_reason"):
            self.sample.finish = choice["finish_reason"]


@dataclass(slots=True)
class Run:
    """A job under way."""

    job: Job
    out: IO[bytes]
    calls: Iterator[Call]
    headers: dict[str, str]
    heard: float
    """When the server last sent anything."""
    done: int = 0
    errors: int = 0
    uncounted: int = 0

    async def stream(self, session: aiohttp.ClientSession) -> None:
        """Send one request after the other until none is left."""
        for call in self.calls:
            body = json.dumps(
                {
                    "model": self.job.model,
                    "temperature": 0,
                    "stream": True,
                    "stream_options": {"include_usage": True},
                    **call.body,
                }
            ).encode()
            now = clock()
            sample = Sample(
                prompt_id=call.id,
                concurrency=self.job.concurrency,
                scheduled=now,
                sent=now,
                warmup=self.job.warmup,
                round=self.job.round,
            )
            if now - self.heard >= self.job.timeout_s:
                sample.error = f"unsent: the server has been silent for {self.job.timeout_s:g} s"
            else:
                sample.error = await self._ask(session, call.path, body, sample)
            sample.end = clock()
            self._write(sample)

    async def _ask(self, session: aiohttp.ClientSession, path: str, body: bytes, sample: Sample) -> str | None:
        """Send a request and fill its sample; return its error, kind first."""
        answer = Stream(sample)
        try:
            async with session.post(self.job.url + path, data=body, headers=self.headers) as response:
                self.heard = clock()
                if response.status != 200:
                    return f"http {response.status}: {_words(await response.content.read(2000))}"
                if "event-stream" not in response.content_type:
                    return f"protocol: the answer is {response.content_type}, not an event stream"
                content = response.content
                while data := await content.readany():
                    now = clock()  # before anything is parsed
                    self.heard = now
                    answer.feed(data, now)
                answer.close(clock())
        except AnswerError as error:
            return str(error)
        except TimeoutError:
            return f"timeout: it took over {self.job.timeout_s:g} s"
        except aiohttp.ClientConnectorError as error:
            return f"connect: {error}"
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, OSError) as error:
            return f"disconnect: {error}"
        except aiohttp.ClientError as error:
            return f"protocol: {error!r}"
        self.uncounted += not answer.counted
        return None

    def _write(self, sample: Sample) -> None:
        self.out.write(json.dumps(sample.to_json()).encode() + b"\n")
        self.out.flush()
        self.done += 1
        self.errors += sample.error is not None
        say({"done": self.done, "total": len(self.job.calls)})


def _words(body: Any) -> str:
    """Find the message in an error's body, on one line."""
    if isinstance(body, bytes):
        try:
            body = json.loads(body)
        except ValueError:
            body = body.decode(errors="replace")
    while isinstance(body, dict) and (inner := body.get("error") or body.get("message") or body.get("detail")):
        body = inner
    return " ".join(str(body).split())[:300]


def say(line: dict[str, Any]) -> None:
    """Print a JSON line on stdout at once."""
    print(json.dumps(line), flush=True)


async def _tick(late: list[float]) -> None:
    """Note how late a sleep ends, seconds: the doubt about every timestamp."""
    while True:
        due = clock() + TICK_S
        await asyncio.sleep(TICK_S)
        late.append(clock() - due)


async def drive(job: Job, out: IO[bytes]) -> dict[str, Any]:
    """Run a job and return its summary. Raises OSError if a Sample can't be written."""
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "Accept-Encoding": "identity"}
    if job.api_key_env and (key := os.environ.get(job.api_key_env)):
        headers["Authorization"] = f"Bearer {key}"
    start, cpu = clock(), time.process_time()
    run = Run(job, out, iter(job.calls), headers, heard=start)
    late: list[float] = []
    timeout = aiohttp.ClientTimeout(total=job.timeout_s, sock_connect=min(CONNECT_S, job.timeout_s))
    connector = aiohttp.TCPConnector(limit=job.concurrency)
    stopped = False
    ticks = asyncio.create_task(_tick(late))
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        streams = [asyncio.create_task(run.stream(session)) for _ in range(min(job.concurrency, len(job.calls)))]
        loop = asyncio.get_running_loop()
        all_done = asyncio.gather(*streams)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, all_done.cancel)
        try:
            await all_done
        except asyncio.CancelledError:
            stopped = True
        finally:
            for task in (*streams, ticks):
                task.cancel()
            await asyncio.gather(*streams, ticks, return_exceptions=True)
    wall_s, cpu_s = clock() - start, time.process_time() - cpu
    late.sort()
    return {
        "done": run.done,
        "total": len(job.calls),
        "errors": run.errors,
        "uncounted": run.uncounted,
        "stopped": stopped,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "cpu_share": cpu_s / wall_s if wall_s else 0.0,
        "late_p99_ms": late[int(0.99 * (len(late) - 1))] * 1000 if late else 0.0,
    }


def main() -> int:
    """Read the job on stdin, run it, and return the exit code."""
    try:
        job = Job.model_validate_json(sys.stdin.read())
    except ValidationError as error:
        first = error.errors()[0]
        say(
            {
                "failure": f"The job on stdin is not valid at {'.'.join(map(str, first['loc'])) or 'its start'}: {first['msg']}."
            }
        )
        return 2
    try:
        with job.out.open("ab") as out:
            summary = asyncio.run(drive(job, out))
        say({"summary": summary})
    except BrokenPipeError:  # whoever started it has gone
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  or the interpreter complains as it ends
        return STOPPED
    except OSError as error:
        with contextlib.suppress(BrokenPipeError):
            say({"failure": f"{job.out} can't be written: {error.strerror}."})
        return 1
    return STOPPED if summary["stopped"] else 0


if __name__ == "__main__":
    sys.exit(main())
