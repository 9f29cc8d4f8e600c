"""Artifact: a folder with weights, tokenizer, recipe.json and manifest.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quicksilver.errors import BadInputError, said
from quicksilver.nouns.base import Noun
from quicksilver.nouns.settings import Settings

RECIPE = "recipe.json"
MANIFEST = "manifest.json"


class Artifact(Noun):
    """A built recipe on disk."""

    path: Path
    key: str
    label: str
    model: str
    engine: str
    settings: Settings
    disk_mb: float
    target: dict[str, str]

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """Read an artefact's folder, or a run's folder that holds one. Raises BadInputError."""
        folder = path / "artifact" if (path / "artifact").is_dir() else path
        if not folder.is_dir():
            raise BadInputError(f"There is no artefact at {path}.")
        try:
            manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            recipe: dict[str, Any] = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
            return cls(
                path=folder.resolve(),
                key=manifest["key"],
                label=recipe["label"],
                model=recipe["name"],
                engine=recipe["engine"],
                settings=Settings.model_validate(recipe["serve"]),
                disk_mb=sum(entry["bytes"] for entry in manifest["files"].values()) / 1e6,
                target=manifest["target"],
            )
        except FileNotFoundError as error:
            raise BadInputError(f"{folder} is not an artefact: {Path(error.filename).name} is missing.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise BadInputError(
                f"{folder} is not an artefact that can be read: its {RECIPE} or {MANIFEST} is damaged ({said(error)}). "
                "If it is in the store, `quicksilver store prune` removes it, and it is built again when it is needed."
            ) from error

    def identity(self) -> Any:
        return {"key": self.key}
