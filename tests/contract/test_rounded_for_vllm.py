"""The technique contract over what llm-compressor rounds, built and served with vLLM on a CPU."""

from __future__ import annotations

import pytest

from quicksilver import techniques
from quicksilver.engines.vllm import quantise
from quicksilver.nouns import Settings, Technique
from quicksilver.testing.technique_contract import TechniqueContract

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class TestRoundedForVllm(TechniqueContract):
    engine = "vllm"
    settings = Settings(kv_cache_gb=0.2, properties={"enforce_eager": True})

    @pytest.fixture(scope="class", params=sorted(set(quantise.RECIPES) - set(quantise.GPU_ONLY)))
    @classmethod
    def technique(cls, request: pytest.FixtureRequest) -> Technique:
        return techniques.make(request.param)
