"""The technique contract over every technique found, built for OpenVINO, or for llama.cpp where it is for that."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from quicksilver import environments, techniques
from quicksilver.nouns import Settings, Technique
from quicksilver.testing.technique_contract import TechniqueContract
from quicksilver.testing.tiny import make_tiny_model


def example(name: str, folder: Path) -> Technique:
    """Return a technique with its defaults, and with what it can't do without."""
    fields: dict[str, dict[str, str]] = {}
    if name == "draft":
        fields["draft"] = {"model": str(make_tiny_model(folder / "draft", seed=1, layers=1))}
    return techniques.make({"name": name, **fields.get(name, {})})


def for_format(name: str) -> list[str]:
    """Return the techniques that are for engines of a format, or for any."""
    return [
        each
        for each in techniques.names()
        if name in techniques.find(each).formats or not techniques.find(each).formats
    ]


OPENVINO = for_format("openvino-ir")


class TestEveryTechnique(TechniqueContract):
    @pytest.fixture(scope="class", params=OPENVINO)
    @classmethod
    def technique(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Technique:
        return example(request.param, tmp_path_factory.mktemp("technique"))


class TestAsIsInBf16(TechniqueContract):
    @pytest.fixture(scope="class")
    @classmethod
    def technique(cls) -> Technique:
        return techniques.make({"name": "as-is", "precision": "bf16"})


class TestThoseForLlamaCpp(TechniqueContract):
    engine: ClassVar[str] = "llamacpp"
    settings: ClassVar[Settings] = Settings(max_streams=4)

    @pytest.fixture(scope="class", params=sorted({*for_format("gguf")} - {*OPENVINO}))
    @classmethod
    def technique(cls, request: pytest.FixtureRequest, home: Path) -> Technique:
        environments.add("llamacpp", say=print)
        return techniques.make(request.param)
