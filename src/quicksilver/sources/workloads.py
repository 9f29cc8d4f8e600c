"""Workloads by name: the built-in ones, synthetic shapes, and JSON Lines files of the user's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.workload import Prompt, Workload
from quicksilver.sources import jsonl, traffic
from quicksilver.sources.datasets import DATA_SETS
from quicksilver.sources.splits import Item, assemble
from quicksilver.sources.synthetic import PREFIX, load_synthetic

_EXAMPLE_SHAPE = f"{PREFIX}622x250"
_SYNTHETIC = "random English sentences of INPUTxOUTPUT tokens, answers forced to their length · no licence needed"


def load(spec: str, *, prompts: int | None = None, seed: int = 0, trace: bool = False) -> Workload:
    """Load a built-in workload, a synthetic shape (`synthetic:622x250`), a JSON Lines file or recorded traffic.

    `prompts` is how many to take over all three splits: 160 if it isn't given, or as many as there are. With `trace` it is
    how many of a file's first to take, all if it isn't given, as they came (`Prompt.arrival_s`) and with repeats. The same spec,
    number and seed give the same workload, on any machine. Raises BadInputError; a built-in one that isn't here yet is
    downloaded, which raises BadInputError or NotEnoughError.
    """
    if trace and (spec in DATA_SETS or spec.startswith(PREFIX)):
        raise BadInputError(
            f"{spec} has no arrival times; give a record (quicksilver serve --record) or a file with 'arrival_s'."
        )
    if spec in DATA_SETS:
        return DATA_SETS[spec].build(prompts, seed)
    if spec == PREFIX.rstrip(":") or spec.startswith(PREFIX):
        return load_synthetic(spec, prompts=prompts, seed=seed)
    path = Path(spec)
    if not spec.strip() or not _exists(path):
        raise _missing(spec, path)
    data = jsonl.contents(path)
    if traffic.is_record(data):
        return traffic.load(data, path.name, prompts=prompts, seed=seed, trace=trace)
    read = jsonl.parse(data, str(path))
    return assemble(
        path.name,
        [Item(prompt) for prompt in read],
        prompts=prompts,
        seed=seed,
        task=jsonl.task(read),
        max_tokens=256,
        licence="the user's own",
        trace=trace,
    )


def names() -> list[str]:
    """Return what `load` takes besides files: the built-in names, and a synthetic shape as an example."""
    return [*DATA_SETS, _EXAMPLE_SHAPE]


def describe(name: str) -> str:
    """Return one line on a built-in workload or a shape: what it is, its licence, its lengths. Raises BadInputError."""
    if name.startswith(PREFIX):
        return _SYNTHETIC
    if name not in DATA_SETS:
        raise unknown("workload", name, names())
    return DATA_SETS[name].about


def fits(workload: Workload, lengths: Mapping[str, int], max_positions: int) -> None:
    """Check that every prompt and its answer fit into a context of `max_positions` tokens.

    `lengths` are the prompts' lengths in tokens, chat template included, by prompt id. Raises BadInputError, which names
    the longest prompt that doesn't fit.
    """
    every = [*workload.calibration, *workload.search, *workload.evaluation]
    prompt = max(every, key=lambda p: (lengths[p.id] >= max_positions, lengths[p.id] + _answer(workload, p)))
    length, answer = lengths[prompt.id], _answer(workload, prompt)
    if length >= max_positions:
        raise BadInputError(
            f"The prompt {prompt.id!r} of {workload.name} is {length:,} tokens long, and the model's context is "
            f"{max_positions:,}; shorten it or leave it out."
        )
    if length + answer > max_positions:
        raise BadInputError(
            f"The prompt {prompt.id!r} of {workload.name} is {length:,} tokens long and its answer may take {answer:,} "
            f"more, which is over the model's context of {max_positions:,}; shorten it or lower max_tokens."
        )


def _answer(workload: Workload, prompt: Prompt) -> int:
    return prompt.max_tokens or workload.max_tokens


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or one with a null character
        return False


def _missing(spec: str, path: Path) -> BadInputError:
    """Make the error for a spec that is neither a name nor a file, with the nearest of either."""
    try:
        files = [entry.name for entry in path.parent.iterdir() if entry.suffix in {".jsonl", ".json", path.suffix}]
    except (OSError, ValueError):
        files = []
    near_files = difflib.get_close_matches(path.name, files, n=1, cutoff=0.6)
    near_names = difflib.get_close_matches(spec, names(), n=1, cutoff=0.5)
    looks_like_path = bool(path.suffix) or len(path.parts) > 1
    nearest = [str(path.with_name(near)) for near in near_files]
    nearest = nearest + near_names if looks_like_path else near_names + nearest
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"built-in workloads: {', '.join(names())}."
    return BadInputError(f"There is no {'file' if looks_like_path else 'workload or file'} {spec!r}; {hint}")
