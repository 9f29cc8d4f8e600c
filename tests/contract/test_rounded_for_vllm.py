"""The technique contract over what llm-compressor rounds, built and served with vLLM on a CPU.

Needs `quicksilver engine add` for vllm and llmcompressor; takes minutes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quicksilver import environments, techniques
from quicksilver.engines.vllm import installed, quantise
from quicksilver.errors import EngineError
from quicksilver.nouns import Model, Settings, Technique
from quicksilver.sources import models
from quicksilver.sources.home import home as cache_folder
from quicksilver.testing.technique_contract import TechniqueContract
from quicksilver.testing.tiny import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    try:
        installed.installed()
        environments.python(quantise.ENVIRONMENT, quantise.WHAT)
    except EngineError as error:
        if quantise.ENVIRONMENT in os.environ.get("QUICKSILVER_TEST_ENGINES", "").split():
            raise
        pytest.skip(str(error))


class TestRoundedForVllm(TechniqueContract):
    engine = "vllm"
    settings = Settings(max_streams=4, kv_cache_gb=0.1, properties={"enforce_eager": True, "max_model_len": 1024})

    @pytest.fixture(scope="class")
    @classmethod
    def home(cls) -> Path:
        """The session's own, which has the engines' environments."""
        return cache_folder()

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, home: Path) -> Model:
        """A tiny model whose heads are as wide as vLLM's attention on a CPU takes them."""
        folder = home / f"models-{os.getpid()}" / "wide"
        return models.resolve(str(make_tiny_model(folder, hidden_size=128, heads=4, kv_heads=2)))

    @pytest.fixture(scope="class", params=sorted(set(quantise.RECIPES) - set(quantise.GPU_ONLY)))
    @classmethod
    def technique(cls, request: pytest.FixtureRequest) -> Technique:
        return techniques.make(request.param)
