"""Whether a server is still there after a load: one that is gone is told from one that is overloaded."""

from __future__ import annotations

from collections.abc import Sequence

from quicksilver.engines.remote import request_json
from quicksilver.errors import EngineError
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.sample import Sample

GONE = ("connect", "disconnect", "unsent")
"""How the errors of requests begin that reached nobody, or lost who answered them."""
LAST = 3
"""Requests of a load's end that are looked at, or as many as there were streams."""
ALIVE_S = 10.0


def gone(endpoint: Endpoint, samples: Sequence[Sample], where: str) -> str:
    """Return the sentence that says since when nothing answers, or nothing if the server is there. `samples` are a load's, in order."""
    last = samples[-max(LAST, samples[-1].concurrency) :]
    if not any(s.error is not None and s.error.startswith(GONE) for s in last):
        return ""
    # The load is over: one that is only overloaded has time for this.
    try:
        request_json(f"{endpoint.url}/models", api_key=endpoint.api_key, timeout_s=ALIVE_S)
    except EngineError as error:
        answered = sum(s.error is None for s in samples)
        return f"The server stopped answering {where}, after {answered} of {len(samples)} requests: {str(error).rstrip('.')}."
    return ""
