"""The technique contract over every technique found, built for OpenVINO."""

from __future__ import annotations

from pathlib import Path

import pytest

from quicksilver import techniques
from quicksilver.nouns import Technique
from quicksilver.testing.technique_contract import TechniqueContract
from quicksilver.testing.tiny import make_tiny_model


def example(name: str, folder: Path) -> Technique:
    """Return a technique with its defaults, and with what it can't do without."""
    fields: dict[str, dict[str, str]] = {}
    if name == "draft":
        fields["draft"] = {"model": str(make_tiny_model(folder / "draft", seed=1, layers=1))}
    return techniques.make({"name": name, **fields.get(name, {})})


class TestEveryTechnique(TechniqueContract):
    @pytest.fixture(scope="class", params=techniques.names())
    @classmethod
    def technique(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Technique:
        return example(request.param, tmp_path_factory.mktemp("technique"))


class TestAsIsInBf16(TechniqueContract):
    @pytest.fixture(scope="class")
    @classmethod
    def technique(cls) -> Technique:
        return techniques.make({"name": "as-is", "precision": "bf16"})
