"""What all nouns share: they are frozen values with a content hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


def content_hash(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Noun(BaseModel):
    """A frozen value that is equal to, and hashes like, any other with the same content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def identity(self) -> Any:
        """Return the JSON value that the content hash is taken of."""
        return self.model_dump(mode="json")

    @property
    def hash(self) -> str:
        """The content hash: 16 hex digits."""
        return content_hash(self.identity())
