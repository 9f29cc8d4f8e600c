"""From a Hugging Face directory to served tokens, for each architecture of the catalogue, on tiny random models."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from quicksilver import engines
from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.hardware import instructions
from quicksilver.nouns import Artifact, Recipe, Settings
from quicksilver.sources import models
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.sources.text import Tokenizer
from quicksilver.techniques import make
from quicksilver.testing.engine_contract import ask, listen
from quicksilver.testing.technique_contract import TEXT
from quicksilver.testing.tiny import make_tiny_model

Architecture = Literal["llama", "mistral", "mixtral"]
PROMPTS = (
    "The question is which of these answers is right, and",
    "In the city there were many people who",
    "She wrote a letter to her brother about the winter,",
    "Water flows down the mountain",
    "def measure(values): return",
    TEXT,
)
TOKENS = 8
NEAR_TIE = 0.01
"""Logits that are this near may change places by rounding alone."""
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module", params=get_args(Architecture))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture: Architecture = request.param
    return make_tiny_model(tmp_path_factory.mktemp("models") / architecture, architecture)


def build(folder: Path, *stack: Any, properties: dict[str, Any] | None = None) -> Artifact:
    settings = Settings(properties=properties or {})
    recipe = Recipe(str(folder), [make(t) for t in stack], settings=settings)
    return building.build(planning.make(recipe, models.resolve(str(folder))))


def serve(artifact: Artifact, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Serve an artefact, and return the answers to requests for completions."""
    with engines.find("openvino").serve(artifact.path, artifact.settings) as endpoint:
        return [ask(endpoint, "/completions", {"temperature": 0, "ignore_eos": True} | r) for r in requests]


def scored(artifact: Artifact) -> list[float]:
    """Return the log-probabilities of a text's own tokens."""
    (answer,) = serve(artifact, [{"prompt": TEXT, "max_tokens": 1, "echo": True, "logprobs": 1}])
    found: list[float] = answer["choices"][0]["logprobs"]["token_logprobs"][1:-1]
    return found


def greedy_by_transformers(folder: Path, prompt: list[int]) -> tuple[list[int], float]:
    """Return the tokens that transformers' own model chooses, and the smallest lead that one of them had."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens, lead = list(prompt), float("inf")
    with torch.inference_mode():
        for _ in range(TOKENS):
            best = model(torch.tensor([tokens])).logits[0, -1].topk(2)
            lead = min(lead, float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
    return tokens[len(prompt) :], lead


def test_as_is_in_32_bits_says_what_transformers_says(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    expected = {}
    for prompt in PROMPTS:
        tokens, lead = greedy_by_transformers(folder, tokenizer.encode(prompt))
        if lead > NEAR_TIE:
            expected[prompt] = tokenizer.decode(tokens)
    assert len(expected) >= 3
    artifact = build(folder, {"name": "as-is", "precision": "fp32"}, properties=EXACT)
    answers = serve(artifact, [{"prompt": prompt, "max_tokens": TOKENS} for prompt in expected])
    assert [answer["choices"][0]["text"] for answer in answers] == list(expected.values())


def test_as_is_and_int8_are_served(folder: Path) -> None:
    plain, rounded = build(folder, properties=EXACT), build(folder, "int8", properties=EXACT)
    exact = build(folder, {"name": "as-is", "precision": "fp32"}, properties=EXACT)
    reference = scored(exact)
    assert statistics.correlation(scored(plain), reference) > 0.9999
    # A mixture's router makes more of rounding, and without AVX-512 the engine rounds in another way: there it comes to 0.984.
    other = folder.name == "mixtral" and "AVX-512" not in instructions()
    assert statistics.correlation(scored(rounded), reference) > (0.98 if other else 0.99)
    assert (rounded.path / "openvino_model.bin").stat().st_size < 0.6 * (
        plain.path / "openvino_model.bin"
    ).stat().st_size
    # As a user has them: no settings, a conversation, a stream.
    artifact = build(folder, "int8")
    with engines.find("openvino").serve(artifact.path, artifact.settings) as endpoint:
        assert endpoint.model == folder.name
        body = {"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": TOKENS, "ignore_eos": True}
        whole = ask(endpoint, "/chat/completions", body | {"temperature": 0})
        assert whole["usage"]["completion_tokens"] == TOKENS
        pieces = listen(endpoint, "/chat/completions", body | {"temperature": 0})
        text = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces)
        assert text == whole["choices"][0]["message"]["content"]


@pytest.mark.parametrize("folder", ["mixtral"], indirect=True)
def test_as_is_in_bf16_is_the_model_in_half_the_space(folder: Path) -> None:
    exact, half = (build(folder, {"name": "as-is", "precision": p}, properties=EXACT) for p in ("fp32", "bf16"))
    # Of a mixture's experts, rounding may choose others.
    assert statistics.correlation(scored(half), scored(exact)) > 0.95
    sizes = [(artifact.path / "openvino_model.bin").stat().st_size for artifact in (exact, half)]
    assert sizes[1] < 0.55 * sizes[0]
