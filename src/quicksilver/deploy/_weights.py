"""Weights: where a deployment finds an artefact's files, as `--model-uri` says it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quicksilver.errors import BadInputError, unknown

Kind = Literal["folder", "hub", "s3", "gs", "pvc"]
WORDS: dict[Kind, str] = {
    "folder": "a folder",
    "hub": "a hub id",
    "s3": "s3://…",
    "gs": "gs://…",
    "pvc": "pvc://CLAIM/PATH",
}
"""What a user writes for each kind."""
_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<revision>[\w./-]+))?")
_BUCKET = re.compile(r"[^\s/]+(/\S+)?")
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(/\S*)?")


@dataclass(frozen=True, slots=True)
class Weights:
    """A place that has an artefact's files."""

    kind: Kind
    text: str
    """The absolute path of a folder, a hub id without its revision, or the whole URI."""
    revision: str | None = None
    """Of a hub id."""

    @property
    def uri(self) -> str:
        """The place with its scheme: `hf://org/name:revision`, `s3://…`; the plain path of a folder."""
        if self.kind != "hub":
            return self.text
        return f"hf://{self.text}" + (f":{self.revision}" if self.revision else "")


def parse(text: str) -> Weights:
    """Read a folder's path, `org/name`, `hf://org/name:revision`, `s3://`, `gs://` or `pvc://`. Raises BadInputError."""
    scheme, separator, rest = text.partition("://")
    if any(ord(sign) < ord(" ") for sign in text):
        raise BadInputError(f"{text!r} can't be where weights are: it has a control character.")
    if not separator:
        if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
            return Weights("folder", str(Path(text).expanduser().absolute()))
        return _hub(text, text)
    match scheme.lower():
        case "hf":
            return _hub(rest, text)
        case "file" if rest.startswith("/"):
            return Weights("folder", str(Path(rest)))
        case "s3" if _BUCKET.fullmatch(rest):
            return Weights("s3", f"s3://{rest.rstrip('/')}")
        case "gs" if _BUCKET.fullmatch(rest):
            return Weights("gs", f"gs://{rest.rstrip('/')}")
        case "pvc" if _CLAIM.fullmatch(rest):
            return Weights("pvc", f"pvc://{rest.rstrip('/')}")
        case "file" | "s3" | "gs" | "pvc":
            raise BadInputError(f"{text!r} is not whole: write it as {_example(scheme)}.")
    raise unknown("place for weights", f"{scheme}://", ("hf://", "file://", "s3://", "gs://", "pvc://"))


def _hub(text: str, given: str) -> Weights:
    found = _HUB.fullmatch(text)
    if found is None:
        raise BadInputError(
            f"{given!r} is not where weights can be: a folder begins with / or ./, a hub id looks like org/name, and there "
            "are s3://, gs:// and pvc://."
        )
    return Weights("hub", found["repo"], found["revision"])


def _example(scheme: str) -> str:
    examples = {"file": "file:///models/mine", "pvc": "pvc://claim/models/mine"}
    return examples.get(scheme.lower(), f"{scheme.lower()}://bucket/models/mine")
