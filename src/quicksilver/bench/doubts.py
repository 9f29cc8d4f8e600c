"""What the load client says of its own work, and the doubts about the figures that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quicksilver.nouns.arrivals import Arrivals
from quicksilver.nouns.sample import Sample

BUSY_SHARE = 0.15
"""Share of a core that the client's own work may take: from here on it is said."""
SATURATED_SHARE = 0.8
"""Share of a core from which what was measured is the client and not the server."""
LATE_MS = 25.0
"""Lateness of the client's clock ticks (p99) from which its timestamps are in doubt."""
BEHIND_MS = 25.0
"""How late requests of an open loop may be sent (p99): from here on the load isn't the one that was asked for."""


@dataclass(frozen=True, slots=True)
class ClientReport:
    """What the client says of its own work under one load."""

    cpu_share: float
    """CPU time over time, of one core."""
    late_p99_ms: float = 0.0
    """How late its clock's ticks came."""
    behind_p99_ms: float | None = None
    """How long after their moment requests were sent; None in a closed loop."""
    held: int = 0
    """Requests that were due while the most that may be were under way."""
    most: int = 0
    """That many."""
    uncounted: int = 0
    """Answers whose tokens the server didn't count."""
    stalled_s: float = 0.0
    asleep_s: float = 0.0
    clock_step_s: float = 0.0

    @property
    def saturated(self) -> str:
        """Why the load isn't what was asked for, or the figures not the server's; empty if the client kept up."""
        if self.held:
            return f"{self.held} requests had to wait because {self.most} were under way"
        if self.behind_p99_ms is not None and self.behind_p99_ms >= BEHIND_MS:
            return f"requests were sent up to {self.behind_p99_ms:.0f} ms after their moment (p99; the limit is {BEHIND_MS:g} ms)"
        if self.cpu_share >= SATURATED_SHARE:
            return f"the client took {self.cpu_share:.0%} of a core"
        return ""


def report(summary: Mapping[str, Any], samples: Sequence[Sample], arrivals: Arrivals, *, most: int) -> ClientReport:
    """Return what the summary of a client's run, and the Samples of that, say of its work."""
    behind = sorted((s.sent - s.scheduled) * 1000 for s in samples) if arrivals.is_open else []
    return ClientReport(
        cpu_share=summary["cpu_share"],
        late_p99_ms=summary["late_p99_ms"],
        behind_p99_ms=behind[int(0.99 * (len(behind) - 1))] if behind else None,
        held=summary["held"],
        most=most,
        uncounted=summary["uncounted"],
        stalled_s=summary["stalled_s"],
        asleep_s=summary["asleep_s"],
        clock_step_s=summary["clock_step_s"],
    )


def worst(reports: Sequence[ClientReport]) -> ClientReport:
    """Return one report for several rounds of a load (one at least): the worst of each."""
    behind = [r.behind_p99_ms for r in reports if r.behind_p99_ms is not None]
    return ClientReport(
        cpu_share=max(r.cpu_share for r in reports),
        late_p99_ms=max(r.late_p99_ms for r in reports),
        behind_p99_ms=max(behind, default=None),
        held=sum(r.held for r in reports),
        most=max(r.most for r in reports),
        uncounted=sum(r.uncounted for r in reports),
        stalled_s=max(r.stalled_s for r in reports),
        asleep_s=sum(r.asleep_s for r in reports),
        clock_step_s=sum(r.clock_step_s for r in reports),
    )


def sentences(client: ClientReport, arrivals: Arrivals, count: int) -> list[str]:
    """Return the doubts about the figures of `count` requests under a load, a sentence each."""
    where = place(arrivals)
    found = []
    if client.saturated:
        found.append(
            f"The load client was saturated {where}: {client.saturated}, so these figures are invalid; ask for less, or use another machine."
        )
    elif client.cpu_share >= BUSY_SHARE:
        found.append(
            f"The load client took {client.cpu_share:.0%} of a core {where}, more than {BUSY_SHARE:.0%}: the figures may be its limit, not the server's."
        )
    if client.late_p99_ms >= LATE_MS:
        found.append(
            f"The load client ran up to {client.late_p99_ms:.0f} ms late {where} (p99): it had to wait for a core, so latencies are inexact by that much."
        )
    if client.stalled_s:
        found.append(
            f"The load client stood still for {client.stalled_s:.1f} s {where}: requests that were under way then look slower than they were."
        )
    if client.asleep_s:
        found.append(
            f"The machine slept for {client.asleep_s:.0f} s {where}: figures of requests that were under way then mean nothing."
        )
    if client.clock_step_s:
        found.append(
            f"The clock was set by {client.clock_step_s:.1f} s {where}; the figures come from another clock, which can't be set, and stand."
        )
    if client.uncounted:
        found.append(
            f"The server sent no token counts with {client.uncounted} of {count} answers {where}: pieces of the stream were counted instead."
        )
    streams = arrivals.streams_to or arrivals.streams or 0
    if count < streams:
        found.append(f"{count} prompts can't keep {streams} streams busy.")
    return found


def place(arrivals: Arrivals) -> str:
    """Return the load as a place in a sentence: `at 8 streams`, `at 2.5/s`, `under the trace`."""
    return "under the trace" if arrivals.kind == "trace" else f"at {arrivals.label}"
