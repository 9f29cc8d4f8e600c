"""vLLM on a CPU, in earnest: the engine contract, and stacks of techniques. Needs `quicksilver engine add vllm`; takes minutes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import pytest

from quicksilver.engines import find
from quicksilver.engines.vllm import installed
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Engine, Settings
from quicksilver.testing.engine_contract import EngineContract, ask
from quicksilver.testing.tiny import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
QUICK = {"enforce_eager": True, "max_model_len": 1024}
"""Nothing is compiled: a start takes half a minute instead of a whole one."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose heads are as wide as its attention on a CPU takes them: 32 and more."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", hidden_size=128, heads=4, kv_heads=2)


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    try:
        installed.installed()
    except EngineError as error:
        if "vllm" in os.environ.get("QUICKSILVER_TEST_ENGINES", "").split():
            raise
        pytest.skip(str(error))


class TestVllm(EngineContract):
    settings: ClassVar[Settings] = Settings(max_streams=4, kv_cache_gb=0.1, properties=QUICK)

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Engine:
        return find("vllm")

    @pytest.fixture(scope="class")
    @classmethod
    def artifact(cls, tiny: Path) -> Path:
        return tiny


def test_its_parser_knows_every_argument_and_the_server_starts_with_all(tiny: Path) -> None:
    settings = Settings.model_validate(
        {
            "threads": 1,
            "max_streams": 4,
            "max_batched_tokens": 64,
            "kv_cache_gb": 0.1,
            "kv_precision": "fp8",
            "prefix_caching": True,
            "speculation": {"kind": "prompt_lookup", "tokens": 3, "max_ngram": 3},
            "properties": QUICK,
        }
    )
    with find("vllm").serve(tiny, settings) as endpoint:
        answer = ask(
            endpoint, "/completions", {"prompt": "The river, the river, the", "max_tokens": 24, "ignore_eos": True}
        )
    assert answer["usage"]["completion_tokens"] == 24


def test_an_argument_of_another_version_is_refused_before_anything_starts(tiny: Path) -> None:
    settings = Settings(properties={"swap_space": 4})
    with pytest.raises(BadInputError, match="knows no argument --swap-space"), find("vllm").serve(tiny, settings):
        pass
