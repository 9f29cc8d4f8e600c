"""What can't be exported is one sentence that says what to do; what a target can't say is listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import artifacts
import pytest

from quicksilver import api, deploy
from quicksilver.cli import run
from quicksilver.deploy import _options, _vllm, _weights
from quicksilver.errors import BadInputError
from quicksilver.nouns import Settings, Speculation


@pytest.fixture
def vllm(tmp_path: Path) -> str:
    return str(artifacts.write(tmp_path / "vllm", "vllm", artifacts.PLAIN).path)


@pytest.fixture
def openvino(tmp_path: Path) -> str:
    return str(artifacts.write(tmp_path / "openvino", "openvino", artifacts.PLAIN).path)


def refused(match: str, *args: Any, **options: Any) -> None:
    with pytest.raises(BadInputError, match=match):
        api.export(*args, **options)


def test_an_unknown_target_has_a_suggestion(vllm: str) -> None:
    refused("did you mean 'kserve'", vllm, "kserv")


def test_a_target_is_checked_before_the_artefact() -> None:
    refused("There is no target named 'helm'", "nowhere/at/all", "helm")


def test_an_artefact_that_is_not_there(tmp_path: Path) -> None:
    refused("There is no artefact at", str(tmp_path / "gone"), "lmi")


@pytest.mark.parametrize("to", ["vllm-args", "lmi", "ray-serve"])
def test_an_engine_that_a_target_cannot_run(openvino: str, to: str) -> None:
    refused(f"{to} can't serve .* openvino: it runs vllm only; docker-compose and kserve can", openvino, to)


def test_a_folder_that_is_not_empty(vllm: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
    refused("out is not empty", vllm, "lmi", out=tmp_path / "out")
    refused("mine.txt is a file", vllm, "lmi", out=tmp_path / "out" / "mine.txt")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_nothing_is_written_for_what_cannot_be_exported(openvino: str, tmp_path: Path) -> None:
    refused("can't serve", openvino, "lmi", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("to", "uri", "match"),
    [
        ("kserve", None, "add --model-uri with a hub id, s3"),
        ("kserve", "/srv/models", "can't serve vllm weights from /srv/models: --model-uri may be a hub id"),
        ("vllm-args", "pvc://claim/x", "--model-uri may be a folder, a hub id, s3"),
        ("lmi", "gs://bucket/x", "--model-uri may be a folder, a hub id, s3"),
        ("lmi", "s4://bucket/x", "did you mean 's3://'"),
        ("lmi", "s3://", "'s3://' is not whole: write it as s3://bucket/models/mine"),
        ("lmi", "pvc:///x", "write it as pvc://claim/models/mine"),
        ("lmi", "models/of/mine", "is not where weights can be"),
        ("lmi", "", "is not where weights can be"),
        ("lmi", "hf://mine", "is not where weights can be"),
        ("lmi", "s3://b/x\nengine=MPI", "control character"),
    ],
)
def test_a_place_that_does_not_go(vllm: str, to: str, uri: str | None, match: str) -> None:
    refused(match, vllm, to, model_uri=uri)


def test_our_own_server_is_given_a_folder(openvino: str) -> None:
    refused(
        "can't serve openvino weights from s3://b: --model-uri may be a folder",
        openvino,
        "docker-compose",
        model_uri="s3://b",
    )


def test_a_cluster_needs_an_image_that_is_built(openvino: str) -> None:
    refused("build one .*--to docker-compose --out DIR.* --image", openvino, "kserve", model_uri="pvc://claim")


@pytest.mark.parametrize(
    "options", [{"image": "Not An Image"}, {"image": ""}, {"name": "Mine"}, {"name": "1"}, {"name": "x" * 51}]
)
def test_names_that_cannot_be(vllm: str, options: dict[str, str]) -> None:
    refused("can't be a service's name|is not the name of an image", vllm, "docker-compose", **options)


def test_options_that_do_not_go_with_it(vllm: str, openvino: str) -> None:
    refused("lmi has no image to name", vllm, "lmi", image="mine:1")
    refused("vllm-args has no service to name", vllm, "vllm-args", name="mine")
    refused("lmi serves on GPUs only", vllm, "lmi", gpus=0)
    refused("openvino runs on the CPU; leave --gpus out", openvino, "docker-compose", gpus=1)


def test_too_few_gpus(tmp_path: Path) -> None:
    settings = Settings(properties={"tensor_parallel_size": 4})
    folder = str(artifacts.write(tmp_path / "a", "vllm", settings).path)
    refused("split over 4 GPUs: --gpus 2 is too few", folder, "docker-compose", gpus=2)
    refused("split over 4 GPUs: --gpus 0 is too few", folder, "vllm-args", gpus=0)
    assert "count: 4" in api.export(folder, "docker-compose").text
    settings = Settings(properties={"tensor_parallel_size": "max"})
    refused("number of GPUs, not 'max'", str(artifacts.write(tmp_path / "b", "vllm", settings).path), "lmi")


def test_a_draft_that_would_not_be_found(tmp_path: Path) -> None:
    settings = Settings(speculation=Speculation(kind="draft", tokens=3, draft="draft"))
    folder = str(artifacts.write(tmp_path / "a", "vllm", settings).path)
    refused("The draft lies in the artefact's folder draft/", folder, "ray-serve", model_uri="s3://b/m")


def test_a_manifest_that_says_too_little(vllm: str) -> None:
    (Path(vllm) / "manifest.json").write_text('{"key": "0", "files": {}, "target": {}}', encoding="utf-8")
    refused("doesn't say what built the artefact", vllm, "docker-compose")


def test_speculation_that_follows_the_load_is_noted(tmp_path: Path) -> None:
    settings = Settings(speculation=Speculation(kind="prompt_lookup", tokens=7))
    artifact = artifacts.write(tmp_path / "a", "vllm", settings)
    for to in ("vllm-args", "lmi", "docker-compose", "ray-serve"):
        made = deploy.render(artifact, to)
        assert any("follows the load" in note and "always guesses 7" in note for note in made.notes), to
        for note in made.notes:
            assert f"# - {note}" in made.text


def test_a_setting_without_an_argument_is_noted(tmp_path: Path) -> None:
    settings = Settings(
        threads=2, max_streams=3, kv_cache_gb=1.5, properties={"max_model_len": 512, "enforce_eager": True}
    )
    artifact = artifacts.write(tmp_path / "a", "vllm", settings)
    on_gpus = [note for note in deploy.render(artifact, "docker-compose").notes if "not carried over" in note]
    assert [note.split()[0] for note in on_gpus] == ["threads=2"]
    on_a_cpu = deploy.render(artifact, "docker-compose", gpus=0)
    assert not any("not carried over" in note for note in on_a_cpu.notes)
    assert "OMP_NUM_THREADS: '2'" in on_a_cpu.text


def test_a_setting_that_vllm_cannot_have_is_an_error(tmp_path: Path) -> None:
    settings = Settings(activation_group_size=64)
    refused("no setting for the group", str(artifacts.write(tmp_path / "a", "vllm", settings).path), "lmi")


@pytest.mark.parametrize("to", ["lmi", "ray-serve"])
def test_what_a_server_of_its_own_has_no_place_for_is_noted(tmp_path: Path, to: str) -> None:
    settings = Settings(properties={"shutdown_timeout": 60})
    made = deploy.render(artifacts.write(tmp_path / "a", "vllm", settings), to)
    assert any("--shutdown-timeout has no place" in note for note in made.notes)
    plain = deploy.render(artifacts.write(tmp_path / "b", "vllm", artifacts.PLAIN), to)
    assert not any("has no place there" in note for note in plain.notes)
    assert not any("shutdown" in line for text in (made, plain) for line in text.text.splitlines() if line[:1] != "#")


@pytest.mark.parametrize("to", ["vllm-args", "lmi", "docker-compose", "ray-serve"])
def test_nothing_of_this_machine_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path / "home"))
    settings = Settings(speculation=Speculation(kind="draft", tokens=3, draft="draft"))
    artifact = artifacts.write(tmp_path / "a", "vllm", settings)
    for gpus in (1,) if to == "lmi" else (0, 1):
        made = deploy.render(artifact, to, weights="/srv/models/mine", gpus=gpus)
        for text in made.files.values():
            assert str(tmp_path) not in text
            assert str(_vllm.WEIGHTS) not in text
            assert str(_vllm.CACHE) not in text
            assert "PYTHON" not in text


def test_our_own_server_keeps_its_settings_and_says_nothing_of_them(openvino: str) -> None:
    notes = api.export(openvino, "docker-compose").notes
    assert not any("carried" in note for note in notes)


@pytest.mark.parametrize("words", [["x"], ["--a", "b", "--c=1", "x"], ["-O3"]])
def test_words_that_are_no_options(words: list[str]) -> None:
    with pytest.raises(ValueError, match="belongs to no option"):
        _options.read(words)


def test_places() -> None:
    assert _weights.parse("hf://org/name:v1.0").uri == "hf://org/name:v1.0"
    assert _weights.parse("org/name") == _weights.Weights("hub", "org/name")
    assert _weights.parse("file:///srv/x/").text == "/srv/x"
    assert _weights.parse("S3://b/x/").text == "s3://b/x"


def test_the_command_prints_the_main_file_and_notes_beside_it(vllm: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", vllm, "--to", "vllm-args"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("#!/bin/sh\n")
    assert out == api.export(vllm, "vllm-args").text
    assert "--out DIR writes serve.sh, vllm.yaml." in err


def test_the_command_writes_all_files(vllm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    assert run(["export", vllm, "--to", "lmi", "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["written"] == [str(out / "serving.properties"), str(out / "lmi.env")]
    assert document["files"]["lmi.env"] == (out / "lmi.env").read_text(encoding="utf-8")
    assert document["to"] == "lmi"
    assert document["notes"]


def test_the_command_says_what_is_wrong(openvino: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", openvino, "--to", "ray-serve"]) == 2
    assert "docker-compose and kserve can" in capsys.readouterr().err
