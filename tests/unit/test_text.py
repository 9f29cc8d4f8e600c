"""Text to token ids and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers

from quicksilver.errors import BadInputError
from quicksilver.sources.text import StopScanner, Tokenizer
from quicksilver.testing.tiny import make_tiny_model


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(make_tiny_model(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer as Llama 2's and Mistral's: spaces written as U+2581, bytes as <0xNN>, a first space stripped."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"abcdefgh",
        "\u2581a",
        "ab",
    ]
    merges = [("\u2581", "a"), ("a", "b")]
    library = Library(
        models.BPE({word: n for n, word in enumerate(words)}, merges, byte_fallback=True, unk_token="<unk>")
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    folder = tmp_path_factory.mktemp("fallback")
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}), encoding="utf-8")
    return Tokenizer(folder)


@given(text=st.text())
def test_byte_level_text_survives_the_round_trip(byte_level: Tokenizer, text: str) -> None:
    assert byte_level.decode(byte_level.encode(text, special=False)) == text


@given(tokens=st.lists(st.integers(0, 511), max_size=30))
def test_any_tokens_decode_as_the_library_decodes_them(byte_level: Tokenizer, tokens: list[int]) -> None:
    assert byte_level.decode(tokens) == byte_level._tokenizer.decode(tokens)


@given(text=st.text(st.sampled_from("abc é你🎉"), max_size=20))
def test_byte_fallback_text_survives_the_round_trip(byte_fallback: Tokenizer, text: str) -> None:
    tokens = byte_fallback.encode(text, special=False)
    assert byte_fallback.decode(tokens, opens=True) == byte_fallback._tokenizer.decode(tokens) == text


def test_a_continuation_keeps_its_first_space(byte_fallback: Tokenizer) -> None:
    tokens = byte_fallback.encode("a b", special=False)
    assert byte_fallback.decode(tokens, opens=False) == " a b"


def test_no_part_of_a_stream_has_half_a_character(byte_level: Tokenizer) -> None:
    stream = byte_level.stream(opens=True)
    parts = [stream.step(token) for token in byte_level.encode("你🎉", special=False)]
    assert [part for part in parts if part] == ["你", "🎉"]
    assert stream.finish() == ""


def test_a_cut_off_character_is_replaced_at_the_end(byte_level: Tokenizer) -> None:
    stream = byte_level.stream(opens=True)
    tokens = byte_level.encode("你", special=False)[:-1]
    assert [stream.step(token) for token in tokens] == [""] * len(tokens)
    assert stream.finish() == "\ufffd"


def test_special_tokens_have_no_text(byte_level: Tokenizer) -> None:
    (end,) = byte_level.eos
    assert end in byte_level.special
    assert byte_level.decode([end]) == ""


def test_other_decoders_are_followed_too(tmp_path: Path) -> None:
    library = Library(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2, "now": 3}, unk_token="[UNK]"))
    library.decoder = decoders.WordPiece(cleanup=False)
    library.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path).decode([1, 2, 3]).strip() == library.decode([1, 2, 3]) == "playing now"


@given(
    parts=st.lists(st.text(st.sampled_from("ab"), max_size=4), max_size=12),
    stop=st.text(st.sampled_from("ab"), min_size=1, max_size=4),
)
def test_a_stop_string_cuts_the_text_wherever_parts_end(parts: list[str], stop: str) -> None:
    scanner, said, stopped = StopScanner([stop]), "", False
    for part in parts:
        text, stopped = scanner.step(part)
        said += text
        assert "".join(parts).startswith(said)
        if stopped:
            break
    said += scanner.finish()
    assert said == "".join(parts).split(stop)[0]
    assert stopped == (stop in "".join(parts))


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    scanner = StopScanner(["END", "\n\n"])
    assert scanner.step("one E") == ("one ", False)
    assert scanner.step("N") == ("", False)
    assert scanner.step("T\n") == ("ENT", False)
    assert scanner.step("\nmore") == ("", True)


MESSAGES = [
    {"role": "system", "content": "  Be <brief> & kind. "},
    {"role": "user", "content": "Hi\n"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "你好"},
]
SKIPPING = """\
{{ bos_token }}{% for m in messages %}
  {% if m.role == 'system' %}
[{{ m.content | trim }}]
    {% continue %}
  {% endif %}
{{ m['content'] + eos_token }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"""
DUMPING = """\
{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=1) }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}"""
COUNTING = """\
{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}
{{ ns.n }} {{ strftime_now('%Y') }}{% if tools is not none %}tools{% endif %}"""


@pytest.mark.parametrize("template", [SKIPPING, DUMPING, COUNTING])
def test_chat_templates_render_as_in_transformers(tmp_path: Path, template: str | None) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    folder = make_tiny_model(tmp_path / "model", chat_template=False)
    config = folder / "tokenizer_config.json"
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    config.write_text(json.dumps(special | {"chat_template": template}), encoding="utf-8")
    (expected,), _ = render_jinja_template(
        [MESSAGES], chat_template=template, tools=None, documents=None, add_generation_prompt=True, **special
    )
    assert Tokenizer(folder).chat(MESSAGES) == expected


def test_the_template_file_comes_before_the_config(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", chat_template=False)
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "config"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}), encoding="utf-8")
    assert Tokenizer(folder).chat(MESSAGES) == "config"
    (folder / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert Tokenizer(folder).chat(MESSAGES) == "file"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[0].content.missing() }}", "refuses these messages"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),
        ("{{ messages.append(1) }}", "refuses these messages"),
        ("{% if %}", "can't be compiled"),
        (None, "no chat template"),
    ],
)
def test_a_template_that_fails_says_why(tmp_path: Path, template: str | None, said: str) -> None:
    folder = make_tiny_model(tmp_path / "model", chat_template=False)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    with pytest.raises(BadInputError, match=said):
        Tokenizer(folder).chat(MESSAGES)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [({"eos_token_id": [2, 5]}, {"eos_token_id": 7}, {2, 5}), ({}, {"eos_token_id": 7}, {7}), ({}, {}, {2})],
)
def test_the_end_tokens_come_from_the_generation_config_first(
    tmp_path: Path, generation: dict[str, Any], config: dict[str, Any], expected: set[int]
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"vocab_size": 512} | config), encoding="utf-8")
    assert Tokenizer(folder).eos == expected


def test_truncation_that_the_file_asks_for_is_off(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    library = Library.from_file(str(folder / "tokenizer.json"))
    library.enable_truncation(3)
    library.save(str(folder / "tokenizer.json"))
    assert len(Tokenizer(folder).encode("a b c d e f g")) > 3


@pytest.mark.parametrize(
    ("name", "content"), [("tokenizer.json", "{"), ("tokenizer_config.json", "{"), ("config.json", "[]")]
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = make_tiny_model(tmp_path / "model")
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(BadInputError, match=name):
        Tokenizer(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
