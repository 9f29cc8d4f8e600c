"""What a model's tokenizer maps to which id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quicksilver.errors import BadInputError
from quicksilver.sources import gguf, gguf_tokenizer


def vocabulary(model: Path) -> dict[str, int]:
    """Return token → id of a Hugging Face directory or a GGUF file, added tokens too. Raises BadInputError."""
    if model.is_file():
        built = gguf_tokenizer.tokenizer(gguf.Gguf(model).value)
        return _tokens(json.loads(built.to_str()), model)
    path = model / "tokenizer.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInputError(f"{model} has no tokenizer.json.") from error
    except (ValueError, OSError) as error:
        raise BadInputError(f"{path} can't be read: {error}.") from error
    return _tokens(document, path)


def _tokens(document: Any, place: Path) -> dict[str, int]:
    """Read the vocabulary of a tokenizer.json: a table, or for Unigram a list whose order is the ids."""
    try:
        known = document["model"]["vocab"]
        tokens = dict(known) if isinstance(known, dict) else {piece: n for n, (piece, _) in enumerate(known)}
        return tokens | {token["content"]: token["id"] for token in document.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInputError(f"{place} holds no vocabulary that can be read.") from error
