"""EAGLE: a small head, trained for this very model, guesses ahead from the model's own hidden states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from quicksilver.errors import BadInputError, IllegalRecipeError
from quicksilver.nouns.model import Model, ModelFacts
from quicksilver.nouns.technique import Choices, Step, Technique

FOLDER = "head"


class Eagle(Technique):
    """Speculative sampling with a trained EAGLE head of the user's (arXiv 2401.15077; EAGLE-3: arXiv 2503.01840)."""

    needs = frozenset({"plain decoding", "engine format", "uncompiled"})
    takes = frozenset({"plain decoding"})
    gives = frozenset({"speculation"})
    formats = frozenset({"hf"})
    builds = True
    lossless = True

    model: Path = Field(description="the head's folder: config.json and safetensors")
    version: Annotated[Literal["eagle", "eagle3"], Field(description="of the head")] = "eagle3"
    tokens: Annotated[int, Choices(3, 5), Field(ge=1, le=32, description="tokens guessed ahead")] = 3

    @property
    def _folder(self) -> Path:
        return self.model.expanduser().absolute()

    def identity(self) -> Any:
        from quicksilver.sources.models import file_sha256

        files = sorted(self._folder.glob("*.safetensors")) if self._folder.is_dir() else []
        return super().identity() | ({"model": [file_sha256(file) for file in files]} if files else {})

    def check_model(self, model: Model) -> None:
        """Raise BadInputError for a folder that holds no head, IllegalRecipeError for one of another model."""
        from quicksilver.sources.directory import safetensors_shapes

        config, weights = self._folder / "config.json", sorted(self._folder.glob("*.safetensors"))
        if not config.is_file() or not weights:
            raise BadInputError(f"{self.model} holds no EAGLE head: it needs config.json and safetensors.")
        for file in weights:
            safetensors_shapes(file)
        try:
            width = int(json.loads(config.read_text(encoding="utf-8"))["hidden_size"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInputError(f"{config} doesn't say hidden_size: it is not an EAGLE head's.") from error
        if width != model.facts.hidden_size:
            raise IllegalRecipeError(
                f"The head {self.model.name} is for a hidden size of {width}, and {model.name} has {model.facts.hidden_size}."
            )

    def settings(self) -> Mapping[str, Any]:
        return {"speculation": {"kind": self.version, "tokens": self.tokens, "draft": FOLDER}}

    def build(self, step: Step) -> None:
        from quicksilver.engines.vllm import files

        files.add_head(step, self._folder, FOLDER)

    def build_memory_mb(self, facts: ModelFacts) -> float:
        return 300.0

    def disk_mb(self, facts: ModelFacts) -> float:
        size = sum(file.stat().st_size for file in self._folder.glob("*.safetensors")) if self._folder.is_dir() else 0
        return max(1.0, size / 1e6)
