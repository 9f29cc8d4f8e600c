"""Which engines a search drives."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from quicksilver import engines
from quicksilver.errors import EngineError
from quicksilver.nouns.engine import Abilities
from quicksilver.search.choosing import chosen_engines


def engine(name: str, abilities: Abilities = Abilities(), missing: str = "") -> Any:  # noqa: B008  it is frozen
    def version() -> str:
        if missing:
            raise EngineError(missing)
        return f"{name} 1"

    return SimpleNamespace(name=name, abilities=abilities, version=version, environment="default", isa=())


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    found = {
        "openvino": engine("openvino"),
        "deaf": engine("deaf", Abilities(prompt_logprobs=False)),
        "fake": engine("fake", Abilities(pretends=True)),
        "llamacpp": engine("llamacpp"),
        "remote": engine("remote", Abilities(owned=False)),
        "vllm": engine("vllm", missing="The engine vllm isn't installed; quicksilver engine add vllm adds it."),
    }
    monkeypatch.setattr(engines, "names", lambda: sorted(found))
    monkeypatch.setattr(engines, "find", found.__getitem__)
    return found


def test_all_are_those_that_are_installed_and_the_usual_one_comes_first(known: Mapping[str, Any]) -> None:
    driven = chosen_engines("all")
    assert driven.names == ("openvino", "llamacpp", "deaf")
    assert [(item.label, item.reason) for item in driven.left_out] == [
        ("vllm: all recipes", "The engine vllm isn't installed; quicksilver engine add vllm adds it")
    ]


def test_the_first_tells_the_log_probabilities_of_a_prompt(known: Mapping[str, Any]) -> None:
    assert chosen_engines("deaf, llamacpp,openvino,llamacpp").names == ("llamacpp", "openvino", "deaf")
    assert chosen_engines(["deaf"]).names == ("deaf",)


def test_one_engine_is_known_by_its_version_as_it_was_before_there_were_several(known: Mapping[str, Any]) -> None:
    assert chosen_engines("llamacpp").identity == "llamacpp 1"
    assert chosen_engines("llamacpp,openvino").identity == {"llamacpp": "llamacpp 1", "openvino": "openvino 1"}


def test_of_none_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "names", lambda: ["fake"])
    with pytest.raises(EngineError, match="No engine is installed; `quicksilver engine list` says how"):
        chosen_engines("all")
