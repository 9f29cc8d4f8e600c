"""Answers that follow a grammar, from the engines: JSON that fits its schema even from random weights."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quicksilver import api
from quicksilver.engines.fake import Fake
from quicksilver.engines.openvino.paged import PagedDecoder
from quicksilver.nouns import Burst, Decoder, Recipe, Request, Settings
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.sources.text import Tokenizer
from quicksilver.techniques import make
from quicksilver.testing.tiny import make_tiny_model

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
LOOKUP = {"kind": "prompt_lookup", "tokens": 6}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["river", "town"]},
        "sizes": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 9999},
            "minItems": 2,
            "maxItems": 3,
        },
        "old": {"type": "boolean"},
        "name": {"type": "string", "maxLength": 12},
    },
    "required": ["kind", "sizes", "old", "name"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_pattern": "[ \\n]{1,4}"},
}
GRAMMAR = f"start: %json {json.dumps(SCHEMA)}"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", "llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(tmp_path_factory.mktemp("home")))
        yield api.build(Recipe(str(folder), [make({"name": "as-is", "precision": "fp32"})])).path


@pytest.fixture(scope="module", params=[None, LOOKUP], ids=["plain", "lookup"])
def paged(artifact: Path, request: pytest.FixtureRequest) -> Iterator[PagedDecoder]:
    fields = {"kv_cache_gb": 0.01, "properties": EXACT, "speculation": request.param}
    decoder = PagedDecoder(artifact, Settings.model_validate(fields))
    yield decoder
    assert decoder.blocks_used == 0
    decoder.close()


@pytest.fixture(scope="module")
def fake(artifact: Path) -> Iterator[Decoder]:
    decoder = Fake().open(artifact, Settings())
    yield decoder
    decoder.close()


def decode(decoder: Decoder, *requests: Request) -> list[list[Burst]]:
    boxes: list[queue.Queue[Burst]] = [queue.Queue() for _ in requests]
    for request, box in zip(requests, boxes, strict=True):
        decoder.submit(request, box.put)
    answers = []
    for box in boxes:
        bursts = [box.get(timeout=60)]
        while bursts[-1].finish is None:
            bursts.append(box.get(timeout=60))
        answers.append(bursts)
    return answers


def tokens(bursts: list[Burst]) -> list[int]:
    return [token for burst in bursts for token in burst.tokens]


def asked(n: int, **fields: Any) -> Request:
    prompt = [(7 * n * i + i * i) % 500 + 3 for i in range(5 + 11 * n)]
    given: dict[str, Any] = {"max_tokens": 400, "seed": n, "grammar": GRAMMAR} | fields
    return Request(prompt, **given)


def fitting(artifact: Path, bursts: list[Burst]) -> dict[str, Any]:
    """Return the object that an answer is, once it is known to fit the schema."""
    assert (bursts[-1].finish, bursts[-1].error) == ("stop", None)
    value: dict[str, Any] = json.loads(Tokenizer(artifact).decode(tokens(bursts)))
    assert list(value) == ["kind", "sizes", "old", "name"]
    assert value["kind"] in ("river", "town")
    assert 2 <= len(value["sizes"]) <= 3
    assert all(type(size) is int for size in value["sizes"])
    assert type(value["old"]) is bool
    assert len(value["name"]) <= 12
    return value


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "logprobs": True}], ids=str
)
def test_random_weights_give_json_that_fits(artifact: Path, paged: PagedDecoder, fields: dict[str, Any]) -> None:
    answers = decode(paged, *(asked(n, **fields) for n in range(1, 9)), asked(9, grammar=None, ignore_eos=True))
    for bursts in answers[:-1]:  # every part of the schema is bounded, and so every answer ends
        fitting(artifact, bursts)
    assert len(tokens(answers[-1])) == 400


def test_a_seed_gives_the_same_with_and_without_guesses(artifact: Path) -> None:
    found = []
    for speculation in (None, LOOKUP):
        settings = Settings.model_validate({"kv_cache_gb": 0.01, "properties": EXACT, "speculation": speculation})
        decoder = PagedDecoder(artifact, settings)
        found.append(
            [tokens(b) for t in (0.0, 1.0) for b in decode(decoder, *(asked(n, temperature=t) for n in range(1, 5)))]
        )
        decoder.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 300}, {}], ids=str)
def test_a_complete_grammar_ends_the_answer(
    paged: PagedDecoder, fake: Decoder, artifact: Path, fields: dict[str, Any]
) -> None:
    for decoder in (paged, fake):
        ((burst, *others),) = decode(decoder, asked(1, grammar='start: "yes"', **fields))
        said = tokens([burst, *others])
        assert Tokenizer(artifact).decode(said) == "yes"
        assert [burst, *others][-1].finish == "stop"


def test_max_tokens_cut_an_answer_short(paged: PagedDecoder) -> None:
    (bursts,) = decode(paged, asked(1, max_tokens=3))
    assert (len(tokens(bursts)), bursts[-1].finish) == (3, "length")


def test_a_grammar_that_can_t_be_compiled_is_refused(paged: PagedDecoder, fake: Decoder) -> None:
    for decoder in (paged, fake):
        with pytest.raises(ValueError, match="objct"):
            decoder.submit(asked(1, grammar='start: %json {"type": "objct"}'), lambda _: None)


def test_a_dead_end_is_an_error_of_its_own(paged: PagedDecoder, fake: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    # Too many items in a row come with the first quote, after what `compile` looks at.
    wide = {"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(1500)}}
    for decoder in (paged, fake):
        dead, alive = decode(
            decoder, asked(1, grammar=f"start: %json {json.dumps(wide)}"), asked(2, max_tokens=20, grammar=None)
        )
        assert dead[-1].finish == "error"
        assert dead[-1].error
        assert alive[-1].finish in ("length", "stop")


def test_the_fake_engine_s_json_fits_and_is_the_same_again(fake: Decoder, artifact: Path) -> None:
    for temperature in (0.0, 1.0):
        first, again = (decode(fake, *(asked(n, temperature=temperature) for n in range(1, 9))) for _ in range(2))
        assert [tokens(bursts) for bursts in first] == [tokens(bursts) for bursts in again]
        assert len({json.dumps(fitting(artifact, bursts)) for bursts in first}) > 4
