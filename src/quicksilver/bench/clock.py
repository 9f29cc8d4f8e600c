"""Is the client's clock to be trusted? It is looked at ten times a second, next to the machine's other clocks."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

STALL_S = 1.0
"""A tick that comes this much late: the client stood still, and what arrived meanwhile is stamped too late."""
STEP_S = 0.5
"""What two clocks may drift apart between two ticks, whatever slews them."""


def since_boot_s() -> float:
    """Return seconds since the machine started, those that it slept included, where the system counts them."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.perf_counter() if boot is None else time.clock_gettime(boot)


@dataclass(slots=True)
class ClockWatch:
    """What ticks say: how late they came, and what the wall's clock and the one that counts sleep did meanwhile."""

    late_s: list[float] = field(default_factory=list)
    stalled_s: float = 0.0
    """The longest time that the client stood still."""
    asleep_s: float = 0.0
    """How long the machine slept: the clock of the timestamps doesn't count that."""
    step_s: float = 0.0
    """How far the wall's clock was set, forwards and backwards: timestamps don't come from it."""
    _last: tuple[float, float, float] | None = None

    def look(self, due_s: float, now_s: float, wall_s: float, boot_s: float) -> None:
        """Take a tick that was due at `due_s` on the clock of the timestamps, and what three clocks say, seconds."""
        late = max(0.0, now_s - due_s)
        self.late_s.append(late)
        if late >= STALL_S:
            self.stalled_s = max(self.stalled_s, late)
        if self._last is not None:
            passed, wall, boot = (new - old for new, old in zip((now_s, wall_s, boot_s), self._last, strict=True))
            slept = boot - passed if boot - passed >= STEP_S else 0.0
            self.asleep_s += slept
            step = wall - passed - slept
            self.step_s += abs(step) if abs(step) >= STEP_S else 0.0
        self._last = (now_s, wall_s, boot_s)

    def late_p99_ms(self) -> float:
        """Return how late ticks came, ms (p99); 0 without any."""
        late = sorted(self.late_s)
        return late[int(0.99 * (len(late) - 1))] * 1000 if late else 0.0
