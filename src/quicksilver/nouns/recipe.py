"""Recipe: a model, an ordered stack of techniques, engine settings. Its hash names what it builds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, SerializeAsAny

from quicksilver.nouns.base import Noun
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.technique import Technique


class Recipe(Noun):
    """What to build and how to serve it. `Recipe("smollm2-135m-instruct", [Awq(bits=4), PromptLookup(tokens=4)])`."""

    model: str = Field(description="a catalogue name, a path or a hub id")
    techniques: tuple[SerializeAsAny[Technique], ...] = ()
    engine: str = "openvino"
    settings: Settings = Settings()

    def __init__(self, model: str | None = None, techniques: Sequence[Technique] = (), /, **fields: Any) -> None:
        if model is not None:
            fields["model"] = model
        if techniques:
            fields["techniques"] = tuple(techniques)
        super().__init__(**fields)

    def identity(self) -> Any:
        return {
            "model": self.model,
            "techniques": [t.identity() for t in self.techniques],
            "engine": self.engine,
            "settings": self.settings.identity(),
        }

    @property
    def label(self) -> str:
        """The stack in words, for tables: `int8 + prompt-lookup(tokens=4)`, or `as-is`; settings off their defaults come last."""
        parts = [t.label for t in self.techniques] or ["as-is"]
        # What is handed to an engine as it is may be long, and differs in what no search chooses.
        if changed := self.settings.model_dump(exclude_defaults=True, exclude={"properties", "speculation"}):
            parts.append(f"settings({', '.join(f'{name}={value}' for name, value in changed.items())})")
        return " + ".join(parts)

    def effective_settings(self) -> Settings:
        """The engine settings with what the techniques set."""
        changes: dict[str, Any] = {}
        for technique in self.techniques:
            changes |= technique.settings()
        return Settings.model_validate({**self.settings.model_dump(), **changes})
