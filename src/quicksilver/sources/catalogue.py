"""Models known by a short name, with their licences."""

from __future__ import annotations

from dataclasses import dataclass

from quicksilver.errors import unknown
from quicksilver.sources.packages import SMOLLM2_135M, Package


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue: in a package, or on the Hugging Face hub."""

    name: str
    licence: str
    hub: str | None = None
    package: Package | None = None
    needs_acceptance: bool = False
    """Whether the user has to accept the licence (`--accept-licence`) before anything is downloaded."""
    remark: str = ""


def _llama(name: str, hub: str, licence: str) -> Entry:
    return Entry(name, licence=licence, hub=f"meta-llama/{hub}", needs_acceptance=True)


ENTRIES = (
    Entry(
        "smollm2-135m-instruct",
        licence=SMOLLM2_135M.licence,
        package=SMOLLM2_135M,
        remark="its linear weights come as 4-bit codes (Q4_1, groups of 32): the as-is baseline is a dequantised 4-bit model",
    ),
    _llama("llama-3-8b-instruct", "Meta-Llama-3-8B-Instruct", "Meta Llama 3 Community License"),
    _llama("llama-3-70b-instruct", "Meta-Llama-3-70B-Instruct", "Meta Llama 3 Community License"),
    _llama("llama-3.1-8b-instruct", "Llama-3.1-8B-Instruct", "Llama 3.1 Community License"),
    _llama("llama-3.1-70b-instruct", "Llama-3.1-70B-Instruct", "Llama 3.1 Community License"),
    Entry("mistral-7b-instruct-v0.3", licence="Apache-2.0", hub="mistralai/Mistral-7B-Instruct-v0.3"),
    Entry("mixtral-8x7b-instruct", licence="Apache-2.0", hub="mistralai/Mixtral-8x7B-Instruct-v0.1"),
    Entry("qwen3-8b", licence="Apache-2.0", hub="Qwen/Qwen3-8B"),
)


def names() -> list[str]:
    """Return the catalogue's names in its order."""
    return [entry.name for entry in ENTRIES]


def entry(name: str) -> Entry:
    """Return the entry of a name. Raises BadInputError that suggests the nearest one."""
    for one in ENTRIES:
        if one.name == name.lower():
            return one
    raise unknown("model", name, names())


def by_hub_id(repository: str) -> Entry | None:
    """Return the entry whose weights are in a hub repository."""
    return next((one for one in ENTRIES if one.hub is not None and one.hub.lower() == repository.lower()), None)
