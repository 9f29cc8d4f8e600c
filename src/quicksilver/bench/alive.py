"""Whether a server is still there after a load: one that is gone is told from one that is overloaded."""

from __future__ import annotations

from collections.abc import Sequence

from quicksilver.engines.remote import request_json
from quicksilver.errors import EngineError
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.sample import Sample

GONE = ("connect", "disconnect", "unsent")
"""How the errors of requests begin that reached nobody, or lost who answered them."""
FEWEST = 3
"""Requests of a load's end that must have failed so, at least."""
ALIVE_S = 10.0


def gone(endpoint: Endpoint, samples: Sequence[Sample], where: str) -> str:
    """Return the sentence that says since when nothing answers, or nothing if the server is there. `samples` are a load's, in order."""
    last = samples[-max(FEWEST, samples[-1].concurrency) :]
    if not all(s.error is not None and s.error.startswith(GONE) for s in last):
        return ""
    try:
        request_json(f"{endpoint.url}/models", api_key=endpoint.api_key, timeout_s=ALIVE_S)
    except EngineError as error:
        answered = sum(s.error is None for s in samples)
        return f"The server stopped answering {where}, after {answered} of {len(samples)} requests: {str(error).rstrip('.')}."
    return ""
