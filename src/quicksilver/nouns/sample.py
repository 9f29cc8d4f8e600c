"""Sample: the raw timestamps of one request."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Sample:
    """What the load client saw of one request; times are seconds on its monotonic clock."""

    prompt_id: str
    concurrency: int
    """Streams of a closed loop; in an open loop the bound on requests under way."""
    scheduled: float
    """When it was due; in a closed loop that is when it was sent."""
    sent: float
    first: float | None = None
    """When the first token arrived; None if none did."""
    arrivals: list[float] = field(default_factory=list)
    """When each piece of the stream arrived (several tokens may come in one piece)."""
    end: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish: str | None = None
    error: str | None = None
    text: str = ""
    warmup: bool = False
    round: int = 0
    turn: int = 0
    """Which part of its round it belongs to: between two of them its server may have waited for others to have their turns."""
    load: str = ""
    """What the load is called, for any but a closed loop with a fixed number of streams."""
    drafted: int | None = None
    """Tokens that speculation guessed ahead for this answer; None where the server doesn't say."""
    accepted: int | None = None
    """Those of them that were right."""

    def to_json(self) -> dict[str, Any]:
        """The sample as a JSON object, one line of samples.jsonl."""
        return asdict(self)
