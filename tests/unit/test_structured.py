"""Answers that follow a grammar, from the engines: JSON that fits its schema even from random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from decoders import EXACT, LOOKUP, Heard, decode, tiny_artifact

from quicksilver.engines.fake import Fake
from quicksilver.engines.openvino.paged import PagedDecoder
from quicksilver.nouns import Decoder, Request, Settings
from quicksilver.sources.text import Tokenizer

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
    with tiny_artifact(tmp_path_factory) as path:
        yield path


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


def asked(n: int, **fields: Any) -> Request:
    prompt = [(7 * n * i + i * i) % 500 + 3 for i in range(5 + 11 * n)]
    given: dict[str, Any] = {"max_tokens": 400, "seed": n, "grammar": GRAMMAR} | fields
    return Request(prompt, **given)


def fitting(artifact: Path, answer: Heard) -> dict[str, Any]:
    """Return the object that an answer is, once it is known to fit the schema."""
    assert (answer.last.finish, answer.last.error) == ("stop", None)
    value: dict[str, Any] = json.loads(Tokenizer(artifact).decode(answer.tokens))
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
    for answer in answers[:-1]:  # every part of the schema is bounded, and so every answer ends
        fitting(artifact, answer)
    assert len(answers[-1].tokens) == 400


def test_a_seed_gives_the_same_with_and_without_guesses(artifact: Path) -> None:
    found = []
    for speculation in (None, LOOKUP):
        settings = Settings.model_validate({"kv_cache_gb": 0.01, "properties": EXACT, "speculation": speculation})
        decoder = PagedDecoder(artifact, settings)
        found.append(
            [one.tokens for t in (0.0, 1.0) for one in decode(decoder, *(asked(n, temperature=t) for n in range(1, 5)))]
        )
        decoder.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 300}, {}], ids=str)
def test_a_complete_grammar_ends_the_answer(
    paged: PagedDecoder, fake: Decoder, artifact: Path, fields: dict[str, Any]
) -> None:
    for decoder in (paged, fake):
        (answer,) = decode(decoder, asked(1, grammar='start: "yes"', **fields))
        assert Tokenizer(artifact).decode(answer.tokens) == "yes"
        assert answer.last.finish == "stop"


def test_max_tokens_cut_an_answer_short(paged: PagedDecoder) -> None:
    (answer,) = decode(paged, asked(1, max_tokens=3))
    assert (len(answer.tokens), answer.last.finish) == (3, "length")


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
        assert dead.last.finish == "error"
        assert dead.last.error
        assert alive.last.finish in ("length", "stop")


def test_the_fake_engine_s_json_fits_and_is_the_same_again(fake: Decoder, artifact: Path) -> None:
    for temperature in (0.0, 1.0):
        first, again = (decode(fake, *(asked(n, temperature=temperature) for n in range(1, 9))) for _ in range(2))
        assert [answer.tokens for answer in first] == [answer.tokens for answer in again]
        assert len({json.dumps(fitting(artifact, answer)) for answer in first}) > 4
