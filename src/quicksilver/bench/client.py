"""The load client: a process of its own that drives a server, in a closed or an open loop, and writes down what it saw.

`python -m quicksilver.bench.client` reads Jobs on stdin, a line of JSON each, one after the other, and appends one Sample a line to
the job's `out`. On stdout it prints a JSON line `{"done", "total"}` for each request that ended, and at last `{"summary": …}` or
`{"failure": …}`, after which it ends. A request that fails is a Sample whose error starts with its kind: connect, disconnect, timeout,
http, server, protocol or unsent. In an open loop each is sent at its own moment, whatever the server does. SIGTERM and SIGINT end it with what was written; requests under way leave nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, Any

import aiohttp
from pydantic import ValidationError

from quicksilver.bench.clock import ClockWatch, since_boot_s
from quicksilver.bench.job import Call, Job
from quicksilver.nouns.sample import Sample

clock = time.perf_counter
wall_clock = time.time

CONNECT_S = 10.0
GONE_S = 10.0
"""After so long without a server that listens the rest isn't sent."""
LEAD_S = 0.05
"""Before an open loop begins, so that its first request isn't late."""
STALE_S = 0.25
"""Within so long of being sent a request on a connection that was closed already fails."""
SPIN_S = 0.001
"""What the event loop's sleep rounds up to: the last of it is waited for by turning."""
SPIN_GAP_S = 0.02
"""Requests that come closer than this aren't turned for: it would cost too much of a core."""
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
                self._count(usage)
            self._guesses(usage or {}, event.get("timings") or {})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnswerError(f"protocol: an event of the stream isn't OpenAI's: {payload[:80]!r}") from error

    def _count(self, usage: dict[str, Any]) -> None:
        sample = self.sample
        sample.prompt_tokens = int(usage["prompt_tokens"])
        sample.completion_tokens = int(usage["completion_tokens"])
        self.counted = True

    def _guesses(self, usage: dict[str, Any], timings: dict[str, Any]) -> None:
        """Take how many tokens were guessed ahead and how many of them rightly, if the server tells."""
        # OpenAI's words for predicted outputs, and those of llama.cpp's server.
        details = usage.get("completion_tokens_details") or {}
        accepted, rejected = (details.get(f"{what}_prediction_tokens") for what in ("accepted", "rejected"))
        drafted = accepted + rejected if isinstance(accepted, int) and isinstance(rejected, int) else None
        if drafted is None:
            drafted, accepted = timings.get("draft_n"), timings.get("draft_n_accepted")
        if isinstance(drafted, int) and isinstance(accepted, int) and drafted > 0:
            self.sample.accepted, self.sample.drafted = accepted, drafted

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
class Connection:
    """What a request was sent over."""

    reused: bool = False
    answered: bool = False
    """Whether any of an answer came."""

    def stale(self, sample: Sample) -> bool:
        """Whether the connection was one of an earlier request, and closed when this one was sent."""
        error = sample.error or ""
        soon = clock() - sample.sent < STALE_S
        return self.reused and not self.answered and error.startswith("disconnect:") and soon


@dataclass(slots=True)
class Run:
    """A job under way."""

    job: Job
    out: IO[bytes]
    headers: dict[str, str]
    asked: float | None = None
    """When the first request was sent of those since the server last said anything."""
    refused: float | None = None
    """Since when nobody listens at the server's address."""
    done: int = 0
    errors: int = 0
    uncounted: int = 0
    held: int = 0
    """Requests of an open loop that were due, and had to wait for one of those under way to end."""

    async def closed(self, session: aiohttp.ClientSession) -> None:
        """Keep as many requests under way as the job says, until none is left."""
        calls = iter(enumerate(self.job.calls))
        streams: list[asyncio.Task[None]] = []

        async def stream() -> None:
            for number, call in calls:
                grow(number + 1)
                await self._send(session, call, self._body(call))

        def grow(number: int) -> None:
            """Have the streams that request `number` may be sent with."""
            limits = self.job.streams
            most = self.job.concurrency if not limits else limits[min(number, len(limits) - 1)]
            while len(streams) < min(most, len(self.job.calls)):
                streams.append(asyncio.create_task(stream()))

        grow(0)
        try:
            while running := _under_way(streams):
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(streams)

    async def paced(self, session: aiohttp.ClientSession) -> None:
        """Send each request when it is due. So many under way that the machine would suffer hold up the rest."""
        due = self.job.due_s
        spin = len(due) < 2 or due[-1] / (len(due) - 1) >= SPIN_GAP_S
        flying: set[asyncio.Task[None]] = set()
        start = clock() + LEAD_S
        try:
            for call, moment in zip(self.job.calls, due, strict=True):
                body = self._body(call)
                await _until(start + moment, spin=spin)
                flying = _under_way(flying)
                self.held += len(flying) >= self.job.concurrency
                while len(flying) >= self.job.concurrency:
                    await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                    flying = _under_way(flying)
                flying |= {asyncio.create_task(self._send(session, call, body, start + moment))}
            while flying := _under_way(flying):
                await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(flying)

    def _body(self, call: Call) -> bytes:
        fixed = {"model": self.job.model, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        return json.dumps({**fixed, **call.body}).encode()

    async def _send(
        self, session: aiohttp.ClientSession, call: Call, body: bytes, scheduled: float | None = None
    ) -> None:
        """Send one request and write down its sample."""
        now = clock()
        sample = Sample(
            prompt_id=call.id,
            concurrency=self.job.concurrency,
            scheduled=now if scheduled is None else scheduled,
            sent=now,
            warmup=self.job.warmup,
            round=self.job.round,
            turn=self.job.turn,
            load=self.job.load,
        )
        if self.asked is not None and now - self.asked >= self.job.timeout_s:
            sample.error = f"unsent: the server has been silent for {self.job.timeout_s:g} s"
        elif self.refused is not None and now - self.refused >= GONE_S:
            sample.error = f"unsent: nothing has listened at {self.job.url} for {GONE_S:g} s"
        else:
            self.asked = now if self.asked is None else self.asked
            connection = Connection()
            sample.error = await self._ask(session, call.path, body, sample, connection)
            while connection.stale(sample):
                # The server had closed the connection, though it had offered to keep it (llama.cpp's does after a stream):
                # it has read nothing of this, so it is sent again (RFC 9110, 9.2.2), on the time that the client sees. The
                # next connection that was kept may be closed as well.
                connection = Connection()
                again = await self._ask(session, call.path, body, sample, connection)
                sample.error = sample.error if (again or "").startswith("connect:") else again
        sample.end = clock()
        self._write(sample)

    def _heard(self) -> None:
        self.asked = self.refused = None

    async def _ask(
        self, session: aiohttp.ClientSession, path: str, body: bytes, sample: Sample, connection: Connection
    ) -> str | None:
        """Send a request and fill its sample; return its error, kind first."""
        answer = Stream(sample)
        try:
            async with session.post(
                self.job.url + path, data=body, headers=self.headers, trace_request_ctx=connection
            ) as response:
                self._heard()
                connection.answered = True
                if response.status != 200:
                    return f"http {response.status}: {_words(await response.content.read(2000))}"
                if "event-stream" not in response.content_type:
                    return f"protocol: the answer is {response.content_type}, not an event stream"
                content = response.content
                while data := await content.readany():
                    now = clock()  # before anything is parsed
                    self._heard()
                    answer.feed(data, now)
                answer.close(clock())
        except AnswerError as error:
            return str(error)
        except TimeoutError:
            return f"timeout: it took over {self.job.timeout_s:g} s"
        except aiohttp.ClientConnectorError as error:
            self.refused = clock() if self.refused is None else self.refused
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


async def _until(moment: float, *, spin: bool) -> None:
    """Wait for a moment on the clock of the timestamps."""
    early = SPIN_S if spin else 0.0
    await asyncio.sleep(max(0.0, moment - early - clock()))
    while clock() < moment:  # noqa: ASYNC110  a moment tells nobody that it has come
        await asyncio.sleep(0)


def _under_way(tasks: Iterable[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Return the tasks that haven't ended. Raises what one of the others raised."""
    for task in tasks:
        if task.done():
            task.result()
    return {task for task in tasks if not task.done()}


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel what is under way, and wait until it is gone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _reused(_: aiohttp.ClientSession, context: Any, __: aiohttp.TraceConnectionReuseconnParams) -> None:
    context.trace_request_ctx.reused = True


async def _tick(watch: ClockWatch) -> None:
    """Look at the clocks again and again: the doubt about every timestamp."""
    while True:
        due = clock() + TICK_S
        await asyncio.sleep(TICK_S)
        watch.look(due, clock(), wall_clock(), since_boot_s())


async def drive(job: Job, out: IO[bytes]) -> dict[str, Any]:
    """Run a job and return its summary. Raises OSError if a Sample can't be written."""
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "Accept-Encoding": "identity"}
    if job.api_key_env and (key := os.environ.get(job.api_key_env)):
        headers["Authorization"] = f"Bearer {key}"
    start, cpu = clock(), time.process_time()
    run = Run(job, out, headers)
    watch = ClockWatch()
    watch.look(start, start, wall_clock(), since_boot_s())
    timeout = aiohttp.ClientTimeout(total=job.timeout_s, sock_connect=min(CONNECT_S, job.timeout_s))
    connector = aiohttp.TCPConnector(limit=job.concurrency)
    stopped = False
    ticks = asyncio.create_task(_tick(watch))
    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(_reused)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trace_configs=[tracing]) as session:
        work = asyncio.create_task(run.paced(session) if job.due_s else run.closed(session))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            stopped = True
        finally:
            await _end([work, ticks])
    wall_s, cpu_s = clock() - start, time.process_time() - cpu
    return {
        "done": run.done,
        "total": len(job.calls),
        "errors": run.errors,
        "uncounted": run.uncounted,
        "held": run.held,
        "stopped": stopped,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "cpu_share": cpu_s / wall_s if wall_s else 0.0,
        "late_p99_ms": watch.late_p99_ms(),
        "stalled_s": watch.stalled_s,
        "asleep_s": watch.asleep_s,
        "clock_step_s": watch.step_s,
    }


def main() -> int:
    """Run the jobs on stdin until there are no more, or one fails, and return the exit code."""
    code = 0
    for line in sys.stdin:
        code = _run(line)
        if code:
            break
    return code


def _run(line: str) -> int:
    """Run a job, and return the exit code if it is the last."""
    try:
        job = Job.model_validate_json(line)
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
