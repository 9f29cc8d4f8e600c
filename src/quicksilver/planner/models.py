"""What a plan has to know of a model, from its config.json alone: nothing is downloaded, and no weights are needed."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from quicksilver.errors import BadInputError, said
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import Guessing
from quicksilver.sources import catalogue
from quicksilver.sources.directory import inspect, model_facts

HEAD_VOCABULARY = 32_000
"""Tokens that an EAGLE-3 head chooses from (arXiv 2503.01840 and the heads published with it)."""
DRAFT_SHARE = 0.2
"""A draft model has at most this share of its target's parameters."""
_COUNTED = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")
"""Model types whose weights follow from config.json by the arithmetic below."""


def facts(name: str) -> ModelFacts:
    """Return a model's facts; `name` is a catalogue name, a hub id or its last part, a config.json or the folder of one.

    Raises BadInputError, which says what file to give, where no config.json is at hand.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return _from_folder(path)
        raise BadInputError(f"{path} holds no config.json; give the model's config.json, or a folder with it.")
    if path.is_file():
        return from_config(_read(path), str(path))
    if path.suffix == ".json":
        raise BadInputError(f"There is no file {path}; give the model's config.json, or a folder with it.")
    found = _named().get(name.lower())
    if found is None:
        raise BadInputError(
            f"The shape of {name!r} isn't known here; save its config.json from the hub (a few hundred bytes) and give that file "
            f"instead of the name, or take one of these: {', '.join(_bundled())}."
        )
    return found


def names() -> tuple[str, ...]:
    """Return the short names of the bundled models, in the order of the file."""
    return tuple(_bundled())


def from_config(config: Mapping[str, Any], place: str, *, instruct: bool = False) -> ModelFacts:
    """Make facts of a config.json, parameters counted by arithmetic. Raises BadInputError for a type that isn't known here."""
    kind = config.get("model_type")
    if kind not in _COUNTED:
        raise BadInputError(
            f"{place} is of a model of type {kind!r}, whose weights can't be counted from it (it can for {', '.join(_COUNTED)}); "
            "give a folder that has the safetensors files, too."
        )
    try:
        return model_facts(config, place, weight_shapes(config), instruct=instruct)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BadInputError(f"{place} doesn't say what the model's weights are ({said(error)}).") from error


def weight_shapes(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the shapes of a decoder's weights as its config.json implies them, layers and experts as leading dimensions.

    Grouped-query attention, a gated MLP or a mixture of them, RMS norms: what Llama, Mistral, Mixtral and Qwen have.
    """
    kind = config["model_type"]
    layers, width, heads = config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    q, kv = heads * head, (config.get("num_key_value_heads") or heads) * head
    shapes = {
        "embed_tokens": [config["vocab_size"], width],
        "norm": [width],
        "layers.norms": [layers, 2, width],
        "layers.q_proj": [layers, q, width],
        "layers.kv_proj": [layers, 2, kv, width],
        "layers.o_proj": [layers, width, q],
    }
    if kind == "qwen2" or config.get("attention_bias"):
        shapes |= {"layers.q_bias": [layers, q], "layers.kv_bias": [layers, 2, kv]}
    if config.get("attention_bias"):
        shapes["layers.o_bias"] = [layers, width]
    if kind in {"qwen3", "qwen3_moe"}:
        shapes["layers.qk_norms"] = [layers, 2, head]
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    inner = config.get("moe_intermediate_size") or config["intermediate_size"]
    shapes["layers.mlp"] = [layers, experts or 1, 3, inner, width]
    if experts:
        shapes["layers.router"] = [layers, experts, width]
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = [config["vocab_size"], width]
    return shapes


def draft(target: ModelFacts) -> ModelFacts | None:
    """Return the smallest bundled model that could guess for a target: same vocabulary, a fifth of its size at most."""
    could = [
        one
        for one in _bundled().values()
        if one.vocab_size == target.vocab_size and one.parameters <= DRAFT_SHARE * target.parameters
    ]
    return min(could, key=lambda one: one.parameters, default=None)


def eagle_head(target: ModelFacts) -> ModelFacts:
    """Return the shape of an EAGLE-3 head: one layer of the target's width and a vocabulary of its own; see arXiv 2503.01840.

    Its projection of three hidden states and its attention's double input are counted; the target's embedding isn't.
    """
    width, q = target.hidden_size, target.heads * target.head_dim
    kv = target.kv_heads * target.head_dim
    parameters = 3 * width * width + 2 * width * (q + 2 * kv) + q * width
    parameters += 3 * width * target.intermediate_size + 4 * width + HEAD_VOCABULARY * width
    return target.model_copy(
        update={
            "architecture": "llama",
            "layers": 1,
            "vocab_size": HEAD_VOCABULARY,
            "parameters": parameters,
            "tied_embeddings": False,
            "experts": 0,
            "experts_per_token": 0,
        }
    )


def guesser(target: ModelFacts, guessing: Guessing) -> ModelFacts | None:
    """Return the shape of what guesses, found by its number of parameters; None for prompt lookup.

    A number that is no bundled model's and no head's is taken for the target's shape with fewer layers.
    """
    count = guessing.draft_parameters
    if count == 0:
        return None
    known = (eagle_head(target), *(one for one in _bundled().values() if one.vocab_size == target.vocab_size))
    found = next((one for one in known if one.parameters == count), None)
    if found is not None:
        return found
    layers = max(1, round(target.layers * count / target.parameters))
    return target.model_copy(update={"layers": layers, "parameters": count})


def active_parameters(model: ModelFacts) -> int:
    """Return the parameters that one token is multiplied by: of a mixture only its experts; the embedding is looked up."""
    idle = max(0, model.experts - model.experts_per_token) if model.experts else 0
    unused = 3 * model.layers * idle * model.intermediate_size * model.hidden_size
    looked_up = 0 if model.tied_embeddings else model.vocab_size * model.hidden_size
    return model.parameters - unused - looked_up


@cache
def _bundled() -> dict[str, ModelFacts]:
    text = resources.files("quicksilver.planner").joinpath("models.toml").read_text(encoding="utf-8")
    return {
        short: from_config(table, f"models.toml, {short}", instruct=bool(table.get("instruct")))
        for short, table in tomllib.loads(text).items()
    }


@cache
def _named() -> dict[str, ModelFacts]:
    """Return the bundled facts by every name that they go by, in lower case."""
    text = resources.files("quicksilver.planner").joinpath("models.toml").read_text(encoding="utf-8")
    found: dict[str, ModelFacts] = {}
    for short, table in tomllib.loads(text).items():
        one = _bundled()[short]
        for hub in table["ids"]:
            talks = one.model_copy(update={"instruct": one.instruct or "-instruct" in hub.lower()})
            found |= {hub.lower(): talks, hub.lower().partition("/")[2]: talks}
        found.setdefault(short, one)
    for entry in catalogue.ENTRIES:
        known = found.get((entry.hub or entry.name).lower()) or found.get(entry.name)
        if known is not None:
            found[entry.name] = known
    return found


def _from_folder(folder: Path) -> ModelFacts:
    config = _read(folder / "config.json")
    if any(folder.glob("*.safetensors")):
        return inspect(folder).facts
    settings = folder / "tokenizer_config.json"
    instruct = (folder / "chat_template.jinja").is_file() or (settings.is_file() and "chat_template" in _read(settings))
    return from_config(config, str(folder / "config.json"), instruct=instruct)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} is no config.json that can be read ({said(error)}).") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{path} holds no JSON object; give the model's config.json.")
    return value
