"""Looks at loads that a search for an SLO has finished, kept beside its Samples: after a kill it goes on from there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quicksilver.bench.load import read_samples
from quicksilver.errors import BadInputError
from quicksilver.nouns.sample import Sample


def file_of(samples: Path) -> Path:
    """Return where the looks of a search are, which is there as long as it can go on."""
    return samples.with_suffix(".looks.jsonl")


@dataclass(slots=True)
class KeptLooks:
    """The file of a search's Samples, and a line for each look at a load: when it began, and when it was over.

    The first line holds the key of what the search was asked for; a search that is asked for anything else begins anew.
    """

    samples: Path
    key: str
    finished: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Round → load, requests and notes, of each look that an earlier process has finished."""
    broken_off: int = 0
    """Requests of looks that it has begun and not finished."""
    _read: dict[int, list[Sample]] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Where the lines are."""
        return file_of(self.samples)

    def open(self) -> None:
        """Take up what an earlier process has kept for the same search, or begin anew. Raises BadInputError."""
        lines = self._lines()
        begun = sum(line["requests"] for line in lines[1:] if not line.get("over"))
        over = {line["round"]: line for line in lines[1:] if line.get("over")}
        try:
            self.samples.parent.mkdir(parents=True, exist_ok=True)
            if not lines or lines[0].get("key") != self.key:
                self.samples.unlink(missing_ok=True)
                self.file.unlink(missing_ok=True)
                self._append({"key": self.key})
                return
            found = read_samples(self.samples) if self.samples.is_file() else []
            by_round = {number: [s for s in found if s.round == number and not s.warmup] for number in over}
            # Whole looks only, from the first on; of what was broken off nothing is known.
            for number in range(len(over)):
                if number not in over or len(by_round[number]) != over[number]["requests"]:
                    break
                self.finished[number], self._read[number] = over[number], by_round[number]
            self.broken_off = begun - sum(line["requests"] for line in self.finished.values())
            kept = [s for s in found if s.warmup or s.round in self.finished]
            # In place of the old file: a load client that outlived its parent may still have that one open.
            part = self.samples.with_name(self.samples.name + ".part")
            part.write_text("".join(json.dumps(s.to_json()) + "\n" for s in kept), encoding="utf-8")
            part.replace(self.samples)
        except OSError as error:
            raise BadInputError(f"The samples can't be written to {self.samples}: {error.strerror}.") from error

    def again(self, number: int, load: float, requests: int) -> Sequence[Sample] | None:
        """Return the Samples of a look that an earlier process has finished; None if it has to be measured."""
        kept = self.finished.get(number)
        return self._read[number] if kept is not None and (kept["load"], kept["requests"]) == (load, requests) else None

    def begin(self, number: int, load: float, requests: int) -> None:
        """Note that a look begins."""
        self._append({"round": number, "load": load, "requests": requests})

    def over(self, number: int, load: float, requests: int, notes: Sequence[str]) -> None:
        """Note that a look is over, and what there is to say of it."""
        self._append({"round": number, "load": load, "requests": requests, "notes": list(notes), "over": True})

    def close(self) -> None:
        """Forget the lines, since the search is done: the next one begins anew."""
        self.file.unlink(missing_ok=True)

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        """Read the whole lines; a killed process may have left half of one."""
        found: list[dict[str, Any]] = []
        text = self.file.read_text(encoding="utf-8") if self.file.is_file() else ""
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not isinstance(entry, dict):
                break
            found.append(entry)
        return found
