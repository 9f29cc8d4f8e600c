"""Turns: the servers of a round take turns at the same prompts, all of them up at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self

from quicksilver.errors import EngineError, NotEnoughError, QuicksilverError
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.workload import Prompt

Load = Callable[["Side", int, int, Sequence[Prompt], Endpoint], None]
"""Drives a side's endpoint: concurrency, turn, and the prompts of that turn."""


@dataclass(slots=True)
class Side:
    """One of a round's servers, which a context ends; it is out of the round once something of it has failed."""

    recipe: str
    label: str
    server: AbstractContextManager[Endpoint]
    must: bool = False
    """Without it the round is worth nothing: its error isn't kept, but raised."""
    failure: str = ""
    _endpoint: Endpoint | None = None
    _held: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.__exit__(kind, error, trace)

    def start(self) -> None:
        """Start the server."""
        with self._failing():
            self._endpoint = self._held.enter_context(self.server)

    def have(self, turn: Callable[[Endpoint], None]) -> None:
        """Let the server have a turn, if it is in the round."""
        if self._endpoint is not None:
            with self._failing():
                turn(self._endpoint)

    def end(self) -> None:
        """End the server; one that has died meanwhile has failed."""
        with self._failing():
            self._held.close()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (EngineError, NotEnoughError) as error:
            self._endpoint = None
            why = error
            try:
                # A server's last words say more than what failed with it.
                self._held.__exit__(type(error), error, error.__traceback__)
            except (EngineError, NotEnoughError) as last:
                why = last
            if self.must:
                raise why from None
            self.failure = str(why)


def take(
    sides: Sequence[Side],
    loads: Mapping[int, Sequence[Prompt]],
    load: Load,
    *,
    waves: bool = False,
    room: Callable[[float], int] | None = None,
) -> list[Side]:
    """Start all sides, give each every load (concurrency → prompts) in turns, and end them; return those that took part.

    At one stream a turn is one request, so that what is compared is seconds apart and a machine that drifts is the same one for
    all. Several streams have one turn, in which they are kept busy from the first prompt to the last; with `waves` it is as many
    prompts as there are streams, each of which ends with its longest answer. The first leads; of the others every other turn goes
    backwards. `room` hears how many seconds the first is likely to take for all of it, by its start and a turn of each load, and says
    how many of the others there is room for: the rest isn't started. A side that fails is out, and says why. Raises EngineError or
    NotEnoughError if one that must not fail does.
    """
    first, *others = sides
    turns = {streams: _turns(streams, prompts, waves=waves) for streams, prompts in loads.items()}
    led = 0
    with ExitStack() as held:
        try:
            begun = time.monotonic()
            held.enter_context(first).start()
            if room is not None:
                expected_s = time.monotonic() - begun
                for streams, parts in turns.items():
                    begun = time.monotonic()
                    first.have(partial(load, first, streams, 0, parts[0]))
                    expected_s += (time.monotonic() - begun) * len(loads[streams]) / len(parts[0])
                others, led = others[: room(expected_s)], 1
            for side in others:
                held.enter_context(side).start()
            for streams, parts in turns.items():
                for turn, chosen in enumerate(parts):
                    behind = others if turn % 2 == 0 else others[::-1]
                    for side in behind if turn < led else [first, *behind]:
                        side.have(partial(load, side, streams, turn, chosen))
            for side in (first, *others):
                side.end()
        except QuicksilverError:
            # By themselves: passed through them, the error of one would be taken for that of another.
            for side in (first, *others):
                side.end()
            raise
    return [first, *others]


def _turns(streams: int, prompts: Sequence[Prompt], *, waves: bool) -> list[Sequence[Prompt]]:
    size = streams if waves or streams == 1 else len(prompts)
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]
