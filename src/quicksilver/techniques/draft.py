"""Draft model: a smaller model guesses ahead, the model checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from quicksilver.errors import IllegalRecipeError
from quicksilver.nouns.model import Model, ModelFacts
from quicksilver.nouns.technique import Choices, Step, Technique
from quicksilver.techniques.as_is import AsIs
from quicksilver.techniques.int8 import Int8

FOLDER = "draft"


class Draft(Technique):
    """Speculative sampling with a draft model of the user's (arXiv 2302.01318); it must share the vocabulary."""

    needs = frozenset({"plain decoding", "engine format", "uncompiled"})
    takes = frozenset({"plain decoding"})
    gives = frozenset({"speculation"})
    builds = True
    lossless = True

    model: Path = Field(description="a Hugging Face directory")
    tokens: Annotated[int, Choices(3, 5), Field(ge=1, le=32, description="tokens guessed ahead")] = 4
    precision: Annotated[Literal["fp16", "int8"], Field(description="of the draft's own weights")] = "int8"

    @property
    def _folder(self) -> Path:
        return self.model.expanduser().absolute()

    def identity(self) -> Any:
        from quicksilver.sources import models

        document = super().identity()
        if self._folder.is_dir():
            document["model"] = models.resolve(str(self._folder)).fingerprint
        return document

    def check_model(self, model: Model) -> None:
        """Raise BadInputError for a draft that can't be used, IllegalRecipeError if its vocabulary is another."""
        from quicksilver.sources.vocabulary import vocabulary

        self._facts()
        theirs, ours = vocabulary(model.path), vocabulary(self._folder)
        if theirs != ours:
            differ = len(theirs.keys() ^ ours.keys()) + sum(
                theirs[token] != ours[token] for token in theirs.keys() & ours.keys()
            )
            raise IllegalRecipeError(
                f"The draft {self.model.name} can't guess for {model.name}: their vocabularies differ in {differ:,} "
                f"tokens (of {len(ours):,} and {len(theirs):,})."
            )

    def _facts(self) -> ModelFacts:
        """Return the draft's own facts. Raises BadInputError for a folder that is missing, not whole or not safe."""
        from quicksilver.sources.directory import inspect

        return inspect(self._folder).facts

    def build(self, step: Step) -> None:
        from quicksilver.engines.openvino import ir

        ir.add_draft(step, self._folder, self.precision)

    def settings(self) -> Mapping[str, Any]:
        return {"speculation": {"kind": "draft", "tokens": self.tokens, "draft": FOLDER}}

    def build_memory_mb(self, facts: ModelFacts) -> float:
        return max(t.build_memory_mb(self._facts()) for t in self._steps())

    def disk_mb(self, facts: ModelFacts) -> float:
        return sum(t.disk_mb(self._facts()) for t in self._steps())

    def _steps(self) -> tuple[Technique, ...]:
        """What is done to the draft itself."""
        return (AsIs(), Int8()) if self.precision == "int8" else (AsIs(),)
