"""Presets in the project's folder and in artefacts: kept, found for a model and a machine, chosen, and taken elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from objects import KEY, OTHER

from quicksilver import api
from quicksilver.bench.report import load_result
from quicksilver.build import store
from quicksilver.cli import run
from quicksilver.errors import BadInputError
from quicksilver.hardware import detect
from quicksilver.nouns import Hardware, Preset, Settings
from quicksilver.nouns.artifact import RECIPE
from quicksilver.nouns.preset import PresetName, machine_key
from quicksilver.search import presets
from quicksilver.sources.home import HOME_VARIABLE

RESULT = load_result(Path(__file__).parents[1] / "golden" / "result.json")
FAR = Hardware(name="local", cpu="Another CPU", cores=64, memory_gb=256, isa=("AMX",))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    monkeypatch.delenv("COLUMNS", raising=False)
    return folder


def artefact(key: str = KEY) -> None:
    """Put an artefact into the store, as a build leaves it."""
    document = {
        "label": "int8",
        "name": "m",
        "engine": "fake",
        "recipe": {},
        "serve": Settings().model_dump(mode="json"),
    }
    facts = {"kind": "artifact", "label": "int8", "model": "m", "target": {}, "created": 1.0}
    with store.locked(key), store.new(key, facts) as folder:
        (folder / RECIPE).write_text(json.dumps(document), encoding="utf-8")


def preset(name: PresetName = "cost", *, key: str = KEY, **changes: object) -> Preset:
    candidate = RESULT.candidate("int8")
    assert candidate is not None
    made = Preset(
        name=name,
        why="the lowest price per token: 0.42x the as-is model's",
        label=candidate.label,
        recipe={"model": "m", "engine": "fake", "techniques": ["int8"]},
        recipe_hash=candidate.recipe_hash,
        settings=Settings(),
        artifact=key,
        model="m",
        source="m",
        fingerprint="f" * 64,
        workload="hotpotqa",
        workload_hash="0" * 16,
        max_quality_loss=1.0,
        benchmark=candidate.score.speed,
        costs=(candidate.score.cost,) * len(candidate.score.speed),
        quality=candidate.score.quality,
        price=RESULT.price,
        hardware=detect(),
        tools={"quicksilver": "0.1.0"},
        run="20261125-120000-m",
        created="2026-11-25T12:00:00+00:00",
    )
    return made.model_copy(update=changes)


def test_what_is_kept_is_found_for_its_model_and_in_its_artefact() -> None:
    artefact()
    kept = [preset("cost"), preset("latency")]
    presets.keep(kept)
    assert api.presets("M") == kept
    assert [p.name for p in presets._read(store.path(KEY) / presets.FILE)] == ["cost", "latency"]
    assert store.verify(KEY) == []
    assert presets.find("latency", "m") == kept[1]


def test_a_later_search_takes_the_place_of_an_earlier_one_for_the_same_workload_only() -> None:
    artefact()
    presets.keep([preset("cost")])
    presets.keep([preset("cost", workload="support", workload_hash="1" * 16, created="2026-11-26T12:00:00+00:00")])
    later = preset("cost", why="another", created="2026-11-27T12:00:00+00:00")
    presets.keep([later])
    assert [(p.workload, p.why) for p in api.presets("m")] == [
        ("hotpotqa", "another"),
        ("support", preset().why),
    ]
    assert presets.find("cost", "m", workload="support").workload == "support"
    with pytest.raises(BadInputError, match="did you mean 'support'"):
        presets.find("cost", "m", workload="suport")


def test_presets_travel_with_their_artefact_and_without_a_path_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact()
    here = str(tmp_path / "models" / "m")
    presets.keep([preset("balanced", source=here, recipe={"model": here, "engine": "fake"})])
    store.export(KEY, tmp_path / "object.tar")
    assert str(tmp_path) not in (store.path(KEY) / presets.FILE).read_text(encoding="utf-8")
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "elsewhere"))
    assert api.presets() == []
    store.import_(tmp_path / "object.tar")
    (found,) = api.presets("m")
    assert (found.name, found.source, found.recipe["model"]) == ("balanced", "m", "m")
    assert presets.artifact(found).key == KEY


def test_presets_of_another_machine_are_marked_and_not_used_silently(capsys: pytest.CaptureFixture[str]) -> None:
    artefact()
    presets.keep([preset("cost", hardware=FAR)])
    assert api.presets("m") == []
    assert [presets.here(p) for p in api.presets("m", everywhere=True)] == [False]
    with pytest.raises(BadInputError, match=r"another machine \(Another CPU, 64 cores\).*--any-machine"):
        presets.find("cost", "m")
    assert presets.find("cost", "m", any_machine=True).hardware == FAR
    assert run(["presets", "list"]) == 0
    out, err = capsys.readouterr()
    assert "no presets for this machine yet" in out
    assert "--all lists them" in err
    assert run(["presets", "list", "--all"]) == 0
    assert "on another machine" in capsys.readouterr().out
    assert run(["presets", "show", "cost"]) == 0
    assert capsys.readouterr().out.startswith("Measured on another machine")
    assert run(["presets", "use", "cost"]) == 2
    assert "--any-machine" in capsys.readouterr().err
    presets.keep([preset("cost")])
    assert presets.find("cost", "m", any_machine=True).hardware == detect()  # one of this machine goes before


def test_a_machine_is_known_by_what_changes_figures() -> None:
    same = FAR.model_copy(update={"name": "other", "memory_gb": 128})
    assert machine_key(FAR) == machine_key(same)
    assert machine_key(FAR) != machine_key(FAR.model_copy(update={"cores": 32}))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("best", "m"), "no preset named 'best'"),
        (("latancy", "m"), "did you mean 'latency'"),
        (("cost", "other"), "no model with presets named 'other'"),
        (("balanced", "m"), "no preset balanced for m; `quicksilver optimize m` finds one"),
    ],
)
def test_what_is_not_there_is_one_sentence_with_a_suggestion(args: tuple[str, str], said: str) -> None:
    artefact()
    presets.keep([preset("cost")])
    with pytest.raises(BadInputError, match=said) as caught:
        presets.find(*args)
    assert "\n" not in str(caught.value)


def test_without_any_presets_the_commands_say_how_to_get_some(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets"]) == 0
    assert "`quicksilver optimize MODEL` finds some" in capsys.readouterr().out
    assert run(["presets", "show", "cost", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "bad-input"


def test_several_models_have_to_be_told_apart() -> None:
    artefact()
    artefact(OTHER)
    presets.keep([preset("cost")])
    presets.keep([preset("cost", model="n", source="n", fingerprint="e" * 64, key=OTHER)])
    assert run(["presets", "show", "cost"]) == 2
    assert run(["presets", "show", "cost", "--model", "n"]) == 0


def test_show_has_settings_benchmark_quality_and_where_it_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    artefact()
    presets.keep([preset("cost", commit="abc1234", settings=Settings(prefix_caching=True))])
    assert run(["presets", "show", "cost"]) == 0
    out = capsys.readouterr().out
    for words in (
        "prefix_caching on",
        "tokens/s a user",
        "0.92 (0.71..1.13) %",
        "commit abc1234",
        "2026-11-25",
        "113",
        "--preset cost",
    ):
        assert words in out
    assert run(["presets", "show", "cost", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["this_machine"] is True
    assert [s["concurrency"] for s in document["benchmark"]] == [1, 8]


def test_what_was_chosen_is_served_when_the_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    artefact()
    presets.keep([preset("cost"), preset("latency")])
    with pytest.raises(
        BadInputError, match=r"none of its presets has been chosen; add --preset cost\|balanced\|latency"
    ):
        api.find_artifact("m")
    assert run(["presets", "use", "latency", "--model", "m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["artifact"] == KEY
    assert api.find_artifact("m").key == KEY
    with pytest.raises(BadInputError, match="no object 'nobody' in the store"):
        api.find_artifact("nobody")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"presets": [{"version": 99}]}', '{"presets": [{"version": 1}]}'])
def test_a_damaged_file_is_no_preset_and_no_error(content: str, home: Path) -> None:
    (home / "presets").mkdir(parents=True)
    (home / "presets" / "a-b-c.json").write_text(content, encoding="utf-8")
    (home / "presets" / "defaults.json").write_text(content, encoding="utf-8")
    assert api.presets() == []
    artefact()
    presets.keep([preset("cost")])
    assert len(api.presets()) == 1


def test_a_model_that_has_changed_since_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quicksilver.testing.tiny import make_tiny_model

    folder = make_tiny_model(tmp_path / "tiny")
    gone = preset("cost", source=str(folder), recipe={"model": str(folder), "engine": "fake"})
    with pytest.raises(BadInputError, match="has changed since"):
        presets.artifact(gone)
