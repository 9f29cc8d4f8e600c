"""Find the highest load on an endpoint that meets an Slo, with prompts that none of the loads shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from quicksilver.bench.alive import gone
from quicksilver.bench.doubts import ClientReport
from quicksilver.bench.load import run_load
from quicksilver.bench.looks import KeptLooks
from quicksilver.bench.measure import WARM_UP_TOKENS, describe
from quicksilver.bench.slo import requests_needed
from quicksilver.bench.slo_search import Loads, amount, search, streams
from quicksilver.bench.steady import keeps_up
from quicksilver.engines.process import cold_start_s
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns.base import content_hash
from quicksilver.nouns.benchmark import Benchmark
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.hardware import Price
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.slo import Slo
from quicksilver.nouns.slo_search import Attempt
from quicksilver.nouns.workload import Prompt, Workload

Progress = Callable[[str, int, int, float | None], None]
"""The load that is put on, requests of it that ended, requests of it in all, seconds that the search is expected to take from now."""


class TooFewPromptsError(BadInputError):
    """There aren't as many prompts left as a load takes."""


@dataclass(slots=True)
class Feed:
    """Prompts, each handed out once, or over and over."""

    prompts: Sequence[Prompt]
    repeat: bool
    taken: int = 0

    def take(self, count: int, what: str) -> list[Prompt]:
        """Return the next `count`. Raises TooFewPromptsError."""
        left = len(self.prompts) - self.taken
        if not self.repeat and count > left:
            raise TooFewPromptsError(
                f"{what} takes {count} prompts that weren't sent before, and {left} of {len(self.prompts)} are left; "
                "give more with --prompts, or allow --repeat-prompts."
            )
        found = [self.prompts[(self.taken + n) % len(self.prompts)] for n in range(count)]
        self.taken += count
        return found

    def skip(self, count: int) -> None:
        """Leave out the next `count`, as far as there are so many."""
        self.taken = min(self.taken + count, max(self.taken, len(self.prompts)))


@dataclass(slots=True)
class Clock:
    """How long what is left will take, by how long things took."""

    on_progress: Progress
    loads_left: int = 6
    per_load_s: float | None = None
    text: str = ""
    begun: float = field(default_factory=time.monotonic)

    def start(self, text: str, total: int) -> None:
        """A look at a load begins."""
        self.text, self.begun = text, time.monotonic()
        self.on_progress(text, 0, total, None if self.per_load_s is None else self.per_load_s * self.loads_left)

    def tick(self, done: int, total: int) -> None:
        """So many of its requests have ended."""
        took = time.monotonic() - self.begun
        rest = took / done * (total - done)
        later = (self.per_load_s or took + rest) * max(0, self.loads_left - 1)
        self.on_progress(self.text, done, total, rest + later)

    def over(self, _: Attempt, loads_left: int) -> None:
        """It ended, and about so many loads are left."""
        self.per_load_s, self.loads_left = time.monotonic() - self.begun, loads_left


def find_highest(
    endpoint: Endpoint,
    workload: Workload,
    slo: Slo,
    *,
    price: Price,
    samples: Path,
    loads: Loads | None = None,
    repeat_prompts: bool = False,
    target: str = "",
    command: str = "",
    tools: Mapping[str, str] = MappingProxyType({}),
    on_progress: Progress = lambda *_: None,
) -> Benchmark:
    """Return the figures of each load that was tried, and in `search` the highest that surely meets the Slo.

    `loads` are those that may be tried: up to 256 streams if not given. The raw Samples are written to the file `samples`; a round is
    one look at one load. A server that stops answering, or too few prompts, end the search with what is known by then. A search
    that was killed, or ended by its server, goes on when it is called again for the same file: looks that were finished are
    taken as they were. Any other begins the file anew. Raises BadInputError, and EngineError if nothing could be measured.
    """
    loads = loads or streams()
    warm, *every = [*workload.calibration, *workload.search, *workload.evaluation]
    feed, clock = Feed(every or [warm], repeat_prompts), Clock(on_progress)
    samples = samples.absolute()
    started_s = cold_start_s(endpoint)
    asked = [target or endpoint.url, endpoint.model, workload.hash, str(slo), repr(loads), repeat_prompts]
    kept = KeptLooks(samples, content_hash(asked))
    kept.open()
    looks = _Looks(endpoint, workload.max_tokens, loads, feed, clock, kept)
    if kept.finished:
        looks.notes.append(f"The search went on from {len(kept.finished)} looks that an earlier process had finished.")
    run_load(endpoint, [warm], concurrency=1, max_tokens=WARM_UP_TOKENS, out=samples, warmup=True)
    found = search(looks.measure, slo, loads, on_attempt=clock.over)
    if not looks.died:
        kept.close()
    notes = looks.notes
    if repeat_prompts and feed.taken > len(feed.prompts):
        notes.append(
            f"{len(feed.prompts)} prompts were sent {feed.taken / len(feed.prompts):.1f} times each: a prefix cache flatters these figures."
        )
    speeds = tuple(attempt.speed for attempt in found.attempts)
    described = describe(
        endpoint,
        workload,
        speeds,
        {
            "loads": [attempt.load for attempt in found.attempts],
            "load_unit": loads.unit,
            "most": loads.most,
            "requests_judged_at_each": requests_needed(slo),
            "prompts": len(feed.prompts),
            "repeat_prompts": repeat_prompts,
        },
        price=price,
        samples=samples,
        target=target,
        command=command,
        tools=tools,
        notes=notes,
    )
    return described.model_copy(
        update={
            "cold_start_s": started_s,
            "slo": slo,
            "goodputs": tuple(attempt.goodput for attempt in found.attempts),
            "search": found,
        }
    )


@dataclass(slots=True)
class _Looks:
    """Looks at loads, each with prompts of its own; those that an earlier process has finished are taken as they were."""

    endpoint: Endpoint
    max_tokens: int
    loads: Loads
    feed: Feed
    clock: Clock
    kept: KeptLooks
    notes: list[str] = field(default_factory=list)
    died: bool = False
    """Whether the server, or the load client, ended the search: it can go on later."""

    def measure(self, load: float, requests: int, number: int) -> Sequence[Sample]:
        """Return what a load showed. Raises TooFewPromptsError, and EngineError if it showed nothing."""
        where = amount(load, self.loads.unit)
        again = self.kept.again(number, load, requests)
        if again is None and self.endpoint.begun is None:
            # Somebody else's server has seen some of the prompts of a look that was broken off, and may keep their prefixes.
            self.feed.skip(self.kept.broken_off)
            self.kept.broken_off = 0
        prompts = self.feed.take(requests, f"A look at {where}")
        self.clock.start(where, requests)
        if again is not None:
            self.notes += self.kept.finished[number]["notes"]
            self.clock.begun -= max(s.end for s in again) - min(s.sent for s in again)
            return again
        self.kept.begin(number, load, requests)
        said: list[str] = []
        try:
            found = self._put(load, prompts, number, said)
        except EngineError:
            self.died = True
            raise
        finally:
            self.notes += said
        self.kept.over(number, load, requests, said)
        return found

    def _put(self, load: float, prompts: Sequence[Prompt], number: int, said: list[str]) -> Sequence[Sample]:
        """Put a load on the endpoint; what has to be known of it is added to `said`."""
        where, opened = amount(load, self.loads.unit), self.loads.unit != "streams"
        reports: list[ClientReport] = []
        found = run_load(
            self.endpoint,
            prompts,
            arrivals=self.loads.arrivals(load),
            max_tokens=self.max_tokens,
            out=self.kept.samples,
            round=number,
            on_note=said.append,
            on_progress=self.clock.tick,
            on_report=reports.append,
        )
        if silence := gone(self.endpoint, found, f"at {where}"):
            raise EngineError(silence)
        if opened and reports[-1].saturated:
            raise EngineError(
                f"The load client was saturated at {where}, so nothing is known of it: {reports[-1].saturated}."
            )
        if opened and keeps_up(found) is False:
            said.append(f"The server doesn't keep up at {where}: latencies there grow with the length of the look.")
        return found
