"""Acceptance that was measured goes before what is stated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quicksilver.nouns.artifact import MANIFEST, RECIPE
from quicksilver.nouns.prediction import Guessing, Layout
from quicksilver.nouns.speculation import FILE, SpeculationTable
from quicksilver.planner import acceptance, models

FACTS = models.facts("llama-3.1-8b")
HEAD = Guessing(tokens=3, accepted=1.4, draft_parameters=10)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path))


def artifact(home: Path, key: str, model: str, created: float, **changed: Any) -> None:
    """Put an artefact with a table into the store: three guesses are the best, 2.4 of them are made and 1.7 hold."""
    folder = home / "store" / "objects" / key
    folder.mkdir(parents=True)
    table = {
        "machine": "a machine", "engine": "e", "threads": 2, "workload": "hotpotqa", "context_tokens": 600, "streams": [1, 8],
        "lengths": [0, 3, 5], "step_ms": [[10, 12, 13], [20, 40, 60]], "guessed": [0, 2.4, 3.5], "gained": [1, 2.7, 2.75],
    } | changed  # fmt: skip
    (folder / FILE).write_text(SpeculationTable.model_validate(table).model_dump_json(), encoding="utf-8")
    document = {"label": f"int8 of {key}", "name": model, "engine": "fake", "recipe": {}, "serve": {}}
    (folder / RECIPE).write_text(json.dumps(document), encoding="utf-8")
    facts = {
        "key": key,
        "kind": "artifact",
        "model": model,
        "label": "x",
        "created": created,
        "tools": {},
        "target": {},
    }
    (folder / MANIFEST).write_text(
        json.dumps(facts | {"files": {RECIPE: {"sha256": "", "bytes": 1}}}), encoding="utf-8"
    )


def test_nothing_is_measured_in_an_empty_store() -> None:
    assert acceptance.measured(FACTS) is None
    layouts = (Layout(), Layout(guessing=HEAD))
    assert acceptance.put(layouts, None) == layouts


def test_the_last_table_of_the_model_counts(tmp_path: Path) -> None:
    artifact(tmp_path, "0" * 16, "llama-3.1-8b-instruct", 1.0)
    artifact(tmp_path, "1" * 16, "llama-3.1-8b-instruct", 2.0, gained=[1, 2.5, 2.6])
    artifact(tmp_path, "2" * 16, "qwen3-8b", 3.0)
    artifact(tmp_path, "3" * 16, "a-model-of-their-own", 4.0)
    found = acceptance.measured(FACTS)
    assert found is not None
    assert (found.tokens, found.accepted) == (3, 1.5)
    assert found.origin == f"measured on hotpotqa with int8 of {'1' * 16} (a machine)"


def test_a_damaged_object_is_passed_over(tmp_path: Path) -> None:
    artifact(tmp_path, "0" * 16, "llama-3.1-8b", 1.0)
    (tmp_path / "store" / "objects" / ("0" * 16) / MANIFEST).write_text("{", encoding="utf-8")
    assert acceptance.measured(FACTS) is None


def test_guesses_that_did_not_pay_are_not_proposed(tmp_path: Path) -> None:
    artifact(tmp_path, "0" * 16, "llama-3.1-8b", 1.0, step_ms=[[10, 40, 60], [20, 90, 99]])
    assert acceptance.measured(FACTS) is None


def test_it_replaces_what_is_stated_of_prompt_lookup_alone() -> None:
    known = Guessing(tokens=3, accepted=1.7, origin="measured")
    stated = Layout(weights="int8", guessing=Guessing(tokens=4, accepted=0.64))
    layouts = acceptance.put((Layout(), stated, Layout(guessing=HEAD)), known)
    assert layouts == (Layout(), Layout(weights="int8", guessing=known), Layout(guessing=HEAD))
