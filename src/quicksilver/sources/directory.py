"""A Hugging Face directory: what it must hold, what is refused, and what its files say of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import yaml

from quicksilver.errors import BadInputError
from quicksilver.nouns.model import ModelFacts

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_CODE = ("modeling_", "modelling_", "configuration_", "tokenization_", "processing_")
_HEADER_LIMIT = 100_000_000  # the format's own limit on the length of its header
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a directory was found to hold."""

    facts: ModelFacts
    weights: tuple[Path, ...]
    small: tuple[Path, ...]
    """The other files that make the model: configuration, tokenizer, chat template."""
    licence: str


def is_pickle(name: str) -> bool:
    """Say whether a file of this name holds pickled weights."""
    return name.lower().endswith(_PICKLES) and name != "training_args.bin"


def is_code(name: str) -> bool:
    """Say whether a file of this name is a model's own code."""
    return name.endswith(".py") and name.startswith(_CODE)


def inspect(folder: Path) -> Inspection:
    """Check a Hugging Face directory and read its facts from config.json and the safetensors headers.

    Raises BadInputError for what is missing, cut off, pickled, or would need code from the directory.
    """
    if not (folder / "config.json").is_file():
        found = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f"; it holds {found[0]}: give that file" if found else ""
        raise BadInputError(f"{folder} is not a Hugging Face directory: config.json is missing{hint}.")
    config = _json(folder / "config.json")
    settings = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    _refuse_code(folder, config, settings)
    weights, shapes = _weights(folder)
    _check_tokenizer(folder)
    instruct = bool(settings.get("chat_template")) or any(
        (folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")
    )
    facts = model_facts(config, str(folder / "config.json"), shapes, instruct=instruct)
    small = tuple(folder / name for name in _SMALL_FILES if (folder / name).is_file())
    return Inspection(facts, weights, small, _licence(folder))


def model_facts(
    config: Mapping[str, Any], place: str, shapes: Mapping[str, list[int]], *, instruct: bool
) -> ModelFacts:
    """Make the facts of a config.json; parameters are counted from the weights' shapes. Raises BadInputError."""
    missing = [name for name in _NEEDED if not isinstance(config.get(name), int)]
    if missing:
        raise BadInputError(
            f"{place} doesn't say {missing[0]}: this kind of model ({config.get('model_type')!r}) isn't supported."
        )
    heads, width = config["num_attention_heads"], config["hidden_size"]
    tied = bool(config.get("tie_word_embeddings", "lm_head.weight" not in shapes))
    counted = (prod(shape) for name, shape in shapes.items() if not (tied and name == "lm_head.weight"))
    try:
        return ModelFacts(
            architecture=config.get("model_type") or "unknown",
            layers=config["num_hidden_layers"],
            hidden_size=width,
            intermediate_size=config.get("moe_intermediate_size") or config.get("intermediate_size") or 4 * width,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or width // heads,
            vocab_size=config["vocab_size"],
            max_positions=config["max_position_embeddings"],
            parameters=sum(counted),
            tied_embeddings=tied,
            experts=config.get("num_local_experts") or config.get("num_experts") or 0,
            experts_per_token=config.get("num_experts_per_tok") or 0,
            instruct=instruct,
        )
    except (ValueError, ZeroDivisionError) as error:
        raise BadInputError(f"{place} says something that can't be: {error}.") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInputError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{path} holds no JSON object.")
    return value


def _refuse_code(folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    code = sorted(path.name for path in folder.glob("*.py") if is_code(path.name))
    if "auto_map" in config or "auto_map" in settings:
        code.append(f"auto_map in {'config.json' if 'auto_map' in config else 'tokenizer_config.json'}")
    if code:
        raise BadInputError(f"{folder} brings code of its own ({code[0]}), which is never run here.")


def _check_tokenizer(folder: Path) -> None:
    if (folder / "tokenizer.json").is_file():
        _json(folder / "tokenizer.json")
        return
    if any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json", "vocab.txt")):
        raise BadInputError(
            f"{folder} has its tokenizer only in an old form; write tokenizer.json beside it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)."
        )
    raise BadInputError(f"{folder} has no tokenizer: tokenizer.json is missing.")


def _weights(folder: Path) -> tuple[tuple[Path, ...], dict[str, list[int]]]:
    """Return the files that hold the weights, and every tensor's shape."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return (single,), safetensors_shapes(single)
    if not index.is_file():
        if pickled := sorted(path.name for path in folder.iterdir() if is_pickle(path.name)):
            raise BadInputError(
                f"{folder} has its weights only as pickle files ({pickled[0]}), which can run code when they are read; "
                "only safetensors are taken."
            )
        raise BadInputError(f"{folder} holds no weights: model.safetensors is missing.")
    mapping = _json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(n, str) for n in mapping.values()):
        raise BadInputError(f"{index} names no weights.")
    files = {name: folder / name for name in sorted(set(mapping.values()))}
    shapes: dict[str, list[int]] = {}
    for name, path in files.items():
        if Path(name).name != name or not path.is_file():
            raise BadInputError(f"{folder} is not whole: its index names {name}, which is missing.")
        shapes |= safetensors_shapes(path)
    if absent := sorted(mapping.keys() - shapes.keys()):
        raise BadInputError(f"{folder} is not whole: no file holds {absent[0]}, which its index names.")
    return tuple(files.values()), shapes


def safetensors_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor in a safetensors file, whose length must be what its header says.

    Raises BadInputError for a file that is cut off or damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise BadInputError(
                f"{path} is cut off or no safetensors file: its header doesn't end ({size:,} bytes are there)."
            )
        raw = file.read(length)
    try:
        header = {name: entry for name, entry in json.loads(raw).items() if name != "__metadata__"}
        shapes = {name: [int(n) for n in entry["shape"]] for name, entry in header.items()}
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise BadInputError(f"{path} is damaged: its header can't be read.") from error
    if 8 + length + end != size:
        raise BadInputError(
            f"{path} is cut off or damaged: it has {size:,} bytes where its header says {8 + length + end:,}."
        )
    return shapes


def _licence(folder: Path) -> str:
    """Return the licence that the model card's first lines state."""
    card = folder / "README.md"
    if not card.is_file():
        return "not stated"
    lines = card.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
    try:
        front = yaml.safe_load(lines.removeprefix("---")) if lines.startswith("---") else None
    except yaml.YAMLError:
        return "not stated"
    return str(front.get("license") or "not stated") if isinstance(front, dict) else "not stated"
