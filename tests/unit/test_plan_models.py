"""A model's facts come from config.json alone, and its parameters are counted exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quicksilver.errors import BadInputError
from quicksilver.nouns.prediction import Guessing
from quicksilver.planner import models
from quicksilver.sources import catalogue
from quicksilver.sources.directory import inspect
from quicksilver.testing.tiny import Architecture, make_tiny_model

PARAMETERS = {
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
}
"""As the hub counts them in the safetensors files."""


@pytest.mark.parametrize(("hub", "count"), PARAMETERS.items())
def test_parameters_are_counted_exactly(hub: str, count: int) -> None:
    assert models.facts(hub).parameters == count


def test_every_catalogue_model_has_facts() -> None:
    for name in catalogue.names():
        assert models.facts(name).parameters > 100_000_000


def test_a_name_is_taken_in_any_case_and_with_or_without_its_owner() -> None:
    base = models.facts("meta-llama/Llama-3.1-70B")
    talks = models.facts("META-LLAMA/llama-3.1-70b-instruct")
    assert (base.instruct, talks.instruct) == (False, True)
    assert talks.model_copy(update={"instruct": False}) == base
    assert models.facts("Llama-3.1-70B") == models.facts("llama-3.1-70b") == base


@pytest.mark.parametrize("architecture", ["llama", "mistral", "mixtral", "qwen2"])
def test_the_count_from_a_config_is_that_of_the_weights(tmp_path: Path, architecture: Architecture) -> None:
    folder = make_tiny_model(tmp_path / "m", architecture, tied_embeddings=architecture == "qwen2")
    counted = models.facts(str(folder / "config.json"))
    held = inspect(folder).facts
    assert counted.model_copy(update={"instruct": held.instruct}) == held
    assert models.facts(str(folder)) == held


def test_a_model_that_isnt_at_hand_says_what_file_to_give(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"save its config\.json from the hub"):
        models.facts("someone/Their-Model-9B")
    with pytest.raises(BadInputError, match="holds no config"):
        models.facts(str(tmp_path))
    with pytest.raises(BadInputError, match="There is no file"):
        models.facts(str(tmp_path / "config.json"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no config.json that can be read"),
        ("[]", "no JSON object"),
        (json.dumps({"model_type": "mamba"}), "type 'mamba'"),
        (json.dumps({"model_type": "llama", "hidden_size": 64}), "doesn't say what the model's weights are"),
        (
            json.dumps(
                {
                    "model_type": "llama",
                    "hidden_size": 64,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 0,
                    "vocab_size": 100,
                    "intermediate_size": 128,
                    "max_position_embeddings": 64,
                }
            ),
            "doesn't say what",
        ),
    ],
)
def test_a_config_that_cant_be_used_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match=says):
        models.facts(str(path))


def test_what_guesses_is_found_by_its_size() -> None:
    target = models.facts("llama-3.1-70b")
    small = models.draft(target)
    assert small == models.facts("meta-llama/Llama-3.2-1B")
    assert models.draft(models.facts("mistral-7b-v0.3")) is None
    head = models.eagle_head(target)
    assert (head.layers, head.parameters) == (1, 1_403_027_456)
    for one in (small, head):
        assert models.guesser(target, Guessing(tokens=3, accepted=1, draft_parameters=one.parameters)) == one
    other = models.guesser(target, Guessing(tokens=3, accepted=1, draft_parameters=7_000_000_000))
    assert other is not None
    assert (other.layers, other.hidden_size) == (8, 8192)
    assert models.guesser(target, Guessing(tokens=3, accepted=1)) is None


def test_of_a_mixture_a_token_meets_its_experts_only() -> None:
    mixtral = models.facts("mixtral-8x7b-v0.1")
    assert models.active_parameters(mixtral) == pytest.approx(12.75e9, rel=0.01)
    small = models.facts("smollm2-135m")
    assert models.active_parameters(small) == small.parameters, "a tied embedding is the head's matrix, too"
