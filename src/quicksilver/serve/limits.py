"""Limits: how much a server takes on at once, for how long, and from whom."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Sequence
from dataclasses import dataclass

from quicksilver.serve.wire import ApiError

LONGEST_WAIT_S = 60
"""The longest that a client is told to wait before it asks again."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server allows."""

    max_streams: int = 64
    """Sequences decoded at once."""
    max_waiting: int = 256
    """Sequences that wait for their turn besides."""
    request_timeout_s: float = 600.0
    """Seconds from a request's arrival to the end of its answer."""
    client_timeout_s: float = 60.0
    """Seconds that a client may take to send a request's head, or its body, or before it takes more of what it is sent."""
    api_keys: Sequence[str] = ()
    """Keys of which a request has to carry one; without any, everybody may ask."""


class Admission:
    """Lets sequences in while there is room to wait, and says when to come again otherwise."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._each_s = 1.0
        """How long a sequence takes, an exponential average."""

    def check(self, wanted: int, running: int) -> None:
        """Raise ApiError 429 if `wanted` more sequences find no room beside those that run or wait, 400 if they never will."""
        limits = self._limits
        room = limits.max_streams + limits.max_waiting
        if wanted > room:
            raise ApiError(
                400, f"The request asks for {wanted} answers at once, and this server takes on {room}.",
                param="n", code="too_many_answers",
            )  # fmt: skip
        if running + wanted <= room:
            return
        over = running + wanted - room
        wait = math.ceil(min(max(over * self._each_s / limits.max_streams, 1), LONGEST_WAIT_S))
        raise ApiError(
            429,
            f"{running} answers run or wait, and this server takes on {room}; ask again in {wait} s.",
            code="too_many_requests",
            headers={"retry-after": str(wait)},
        )

    def learn(self, seconds: float) -> None:
        """Take in how long a sequence took."""
        self._each_s += 0.05 * (seconds - self._each_s)


def check_key(keys: Sequence[str], authorization: str | None) -> None:
    """Raise ApiError 401 unless an Authorization header carries one of the keys. Takes the same time for each wrong key."""
    if not keys:
        return
    scheme, _, given = (authorization or "").partition(" ")
    # Digests have one length, so that the comparison doesn't tell the key's.
    digest = hashlib.sha256(given.strip().encode()).digest()
    right = False
    for key in keys:
        right |= hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest())
    if scheme.lower() != "bearer" or not right:
        raise ApiError(
            401,
            "The API key is wrong." if authorization else "This server wants an API key: Authorization: Bearer KEY.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
