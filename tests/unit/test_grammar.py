"""Grammars: which tokens may come, over tokenizers of several kinds, and what can't be compiled."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quicksilver.engines.grammar import Grammar, Grammars
from quicksilver.engines.grammar_check import LATE, GrammarCheck
from quicksilver.engines.openvino.sampling import Sampler
from quicksilver.nouns import Request
from quicksilver.sources.text import Tokenizer
from quicksilver.testing.tiny import make_tiny_model

INTEGER = 'start: %json {"type": "integer"}'
YES = 'start: "yes"'


def schema(value: Any) -> str:
    return f"start: %json {json.dumps(value)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def check(folder: Path) -> Iterator[GrammarCheck]:
    check = GrammarCheck(folder)
    yield check
    check.close()


def ids(folder: Path, text: str) -> list[int]:
    return Tokenizer(folder).encode(text, special=False)


def taken(grammar: Grammar, tokens: list[int]) -> Grammar:
    for token in tokens:
        grammar.take(token)
    return grammar


def test_a_mask_has_the_model_s_width_and_its_ends(folder: Path) -> None:
    grammars = Grammars(folder, {2, 0})
    for width in (300, 512, 517, 1000):  # a matrix may be narrower than the vocabulary, or wider
        grammar = taken(grammars.compile(INTEGER), ids(folder, "1"))
        mask = grammar.allowed(width)
        assert len(mask) == width
        assert mask[[0, 2]].all()
        assert not mask[1]
        assert not mask[512:].any()
        assert not grammar.allowed(width, end=False)[[0, 2]].any()


def test_only_the_end_is_left_when_the_grammar_is_complete(folder: Path) -> None:
    grammar = Grammars(folder, {2}).compile(YES)
    assert not grammar.over
    taken(grammar, ids(folder, "yes"))
    assert grammar.over
    assert grammar.allowed(512).nonzero()[0].tolist() == [2]
    assert grammar.allowed(512, end=False).nonzero()[0].tolist() == [2]


def test_a_model_without_an_end_can_follow_a_grammar_too(folder: Path) -> None:
    sampler = Sampler(Request(prompt=[1], grammar=YES), frozenset(), Grammars(folder, ()).compile(YES))
    tokens: list[int] = []
    while not sampler.over:
        tokens.append(sampler.choose(np.zeros(512, np.float32), len(tokens)).token)
    assert Tokenizer(folder).decode(tokens) == "yes"


def test_a_sentencepiece_tokenizer_can_follow_a_grammar(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers

    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "{",
        "}",
        "\u2581{",
        '"',
        "a",
    ]
    library = Library(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>")
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    mask = Grammars(tmp_path, {2}).compile(schema({"type": "object"})).allowed(len(pieces))
    assert {pieces[token] for token in mask.nonzero()[0]} == {"{"}


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (schema({"type": "objct"}), "objct"),
        (schema({"type": "string", "format": "int32"}), "Unknown format: int32."),
        (schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (schema({"$ref": "http://example.com/schema"}), "Default retriever does not fetch resources."),
        (schema({"$ref": "#"}), "can't be followed"),
        (schema({"enum": []}), "Unsatisfiable"),
        (schema({"type": "array", "items": False, "minItems": 1}), "nsatisfiable"),
        ('start: %json {"a": ' * 5000, "."),
        ("start: /(/", "unclosed group"),
        ("", "Empty"),
        ("{", "EOF"),
    ],
)  # fmt: skip
def test_what_can_t_be_compiled_is_said_on_one_line(folder: Path, check: GrammarCheck, grammar: str, said: str) -> None:
    for compiles in (Grammars(folder, {2}).compile, check.check):
        with pytest.raises(ValueError, match=r"\.$") as caught:
            compiles(grammar)
        message = str(caught.value)
        assert said in message
        assert message.endswith(".")
        assert "\n" not in message
        assert len(message) < 400


HOSTILE: dict[str, Any] = {
    "patterns": {"allOf": [{"type": "string", "pattern": f".*{char}.*"} for char in "abcdefghijklmnopqrstuvwxyz"]},
    "repeats": {"type": "string", "pattern": "^((a{1000}){1000}){1000}$"},
    "choices": {"allOf": [{"anyOf": [{"properties": {f"a{n}": {"const": m}}} for m in range(10)]} for n in range(30)]},
    "multiples": {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (1009, 1013, 1019, 1021)]},
    "optional": {"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(4000)}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused_in_seconds_and_the_next_one_is_heard(check: GrammarCheck, name: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(ValueError, match=LATE if name == "patterns" else "."):
        check.check(schema(HOSTILE[name]))
    assert time.perf_counter() - begun < 60
    check.check(INTEGER)


def test_a_verdict_is_remembered(check: GrammarCheck) -> None:
    for _ in range(2):
        check.check(YES)
        with pytest.raises(ValueError, match="objct"):
            check.check(schema({"type": "objct"}))
    assert check._process is not None
    check._process.kill()
    check.check(YES)
    check.check('start: "what another process killed says nothing of this"')


def test_a_folder_without_a_tokenizer_has_no_grammars(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        Grammars(tmp_path, {2}).compile(YES)


def sampled(folder: Path, grammar: str, **fields: Any) -> Sampler:
    return Sampler(
        Request(prompt=[1], grammar=grammar, **fields), frozenset({2}), Grammars(folder, {2}).compile(grammar)
    )


@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 2.0, "top_k": 3, "seed": 1}, {"temperature": 1.0, "top_p": 0.1},
     {"frequency_penalty": 2.0}, {"logit_bias": {5: 100.0}}],
)  # fmt: skip
def test_only_what_the_grammar_allows_is_chosen(folder: Path, fields: dict[str, Any]) -> None:
    sampler = sampled(folder, 'start: ("a" | "b"){8}', **fields)
    tokens: list[int] = []
    logits = np.random.default_rng(0).standard_normal(512).astype(np.float32)
    while not sampler.over:
        tokens.append(sampler.choose(logits, len(tokens)).token)
    assert set(Tokenizer(folder).decode(tokens)) <= {"a", "b"}
    assert len(Tokenizer(folder).decode(tokens)) == 8


def test_logprobs_stay_the_model_s_own(folder: Path) -> None:
    logits = np.zeros(512, np.float32)
    choice = sampled(folder, YES, logprobs=True, top_logprobs=2).choose(logits, 0)
    assert choice.logprob == pytest.approx(-np.log(512), abs=1e-5)
    assert len(choice.top) == 2


def test_an_end_waits_for_min_tokens_where_the_grammar_can_go_on(folder: Path) -> None:
    logits = np.zeros(512, np.float32)
    logits[[2, *ids(folder, "1")]] = 9, 5
    for fields in ({"min_tokens": 5}, {"ignore_eos": True}):
        sampler = sampled(folder, INTEGER, **fields)
        tokens = [sampler.choose(logits, given).token for given in range(5)]
        assert 2 not in tokens
    sampler = sampled(folder, YES, min_tokens=100)
    given = 0
    while not sampler.over:
        sampler.choose(logits, given)
        given += 1
    assert given < 5
