"""Compiled graphs that are kept: the same logits, used only for what they were compiled for, and never a reason not to start."""

from __future__ import annotations

import locale
import logging
import os
import shutil
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from disks import read_only
from numpy.typing import NDArray

from quicksilver import api
from quicksilver.build import store
from quicksilver.engines.openvino import blob, compiled
from quicksilver.engines.openvino.graph import Graph, Work
from quicksilver.nouns import Recipe, Settings
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.techniques import make
from quicksilver.testing.engine_contract import until
from quicksilver.testing.tiny import make_tiny_model

PROPERTIES: list[dict[str, Any]] = [
    {},
    {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
    {"KV_CACHE_PRECISION": "u8", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
]


@pytest.fixture(scope="module", params=["fp32", "bf16", "int8"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", "llama")
    stack = ["int8"] if request.param == "int8" else [{"name": "as-is", "precision": request.param}]
    return built(folder, tmp_path_factory.mktemp("home"), stack)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", "llama")
    return built(folder, tmp_path_factory.mktemp("home"), [{"name": "as-is", "precision": "fp32"}])


def built(model: Path, home: Path, stack: list[Any]) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        return api.build(Recipe(str(model), [make(technique) for technique in stack])).path


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder in which nothing is kept."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, compiled.__name__):
        yield


def logits(artifact: Path, properties: dict[str, Any] | None = None, *, keep: bool = True) -> list[NDArray[np.float32]]:
    """Return the logits of a prompt and of a step after it."""
    graph = Graph(artifact, properties or {}, lambda *_: 10_000_000, keep=keep)
    return [
        graph.run([Work(list(range(3, 60)), 0, [0, 1], 57)]).copy(),
        graph.run([Work([7], 57, [0, 1], 1)]).copy(),
    ]


def kept(artifact: Path) -> list[Path]:
    return sorted(compiled.kept_of(artifact).glob("*"))


def largest_of(artifact: Path) -> tuple[int, int]:
    """Return where the largest constant is in the weights' file, and its size."""
    constants = ET.parse(artifact / "openvino_model.xml").getroot().iter("data")
    extents = [(int(data.get("size", 0)), int(data.get("offset", 0))) for data in constants]
    size, at = max(extents)
    return at, size


def same(some: list[NDArray[np.float32]], others: list[NDArray[np.float32]]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("properties", PROPERTIES, ids=str)
def test_a_graph_that_was_kept_gives_the_same_logits(
    artifact: Path, properties: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    fresh = logits(artifact, properties, keep=False)
    assert kept(artifact) == []
    first = logits(artifact, properties)
    (file,) = kept(artifact)
    assert "it wasn't compiled before" in caplog.text
    caplog.clear()
    before = file.read_bytes()
    again = logits(artifact, properties)
    assert caplog.text == ""
    assert file.read_bytes() == before
    assert same(fresh, first)
    assert same(fresh, again)


def test_it_is_found_and_not_compiled_again(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits(plain)

    def compile_model(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(ov.Core, "compile_model", compile_model)
    logits(plain)


def test_weights_are_not_kept_twice(artifact: Path) -> None:
    logits(artifact)
    (file,) = kept(artifact)
    at, size = largest_of(artifact)
    assert (artifact / "openvino_model.bin").read_bytes()[at : at + size] not in file.read_bytes()


def test_another_version_compiles_anew_and_says_why(
    plain: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = logits(plain)
    now = ov.get_version()
    monkeypatch.setattr(ov, "get_version", lambda: "2031.1")
    caplog.clear()
    assert same(logits(plain), before)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == f"The graph is compiled anew: the engine's version changed from {now} to 2031.1."
    assert len(kept(plain)) == 2


def test_other_instructions_are_another_graph(
    plain: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logits(plain)
    monkeypatch.setenv("OV_CPU_MAX_ISA", "avx2")
    logits(plain)
    assert "the CPU changed from" in caplog.text
    assert len(kept(plain)) == 2


def test_other_properties_are_another_graph(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    logits(plain)
    logits(plain, PROPERTIES[1])
    assert "the properties changed from {} to {'INFERENCE_PRECISION_HINT': 'f32'" in caplog.text
    caplog.clear()
    logits(plain)
    logits(plain, PROPERTIES[1])
    assert caplog.text == ""


def test_other_weights_are_another_graph(plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(plain, copy)
    for file in copy.iterdir():
        file.chmod(0o644)
    before = logits(copy)
    weights = copy / "openvino_model.bin"
    at, size = largest_of(copy)
    data = np.memmap(weights, np.float32, "r+", at, shape=(size // 4,))
    data *= 0.5
    data.flush()
    caplog.clear()
    changed = logits(copy)
    assert "the model's files changed" in caplog.text
    assert not same(before, changed)
    assert same(changed, logits(copy, keep=False))


def test_weights_that_only_look_the_same_are_another_graph(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(plain, copy)
    weights = copy / "openvino_model.bin"
    weights.chmod(0o644)
    logits(copy)
    stat = weights.stat()
    at, size = largest_of(copy)
    data = np.memmap(weights, np.float32, "r+", at, shape=(size // 4,))
    data *= 0.5
    data.flush()
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    caplog.clear()
    changed = logits(copy)
    assert "the model's files changed" in caplog.text
    assert same(changed, logits(copy, keep=False))


def test_a_file_of_another_user_is_not_trusted(
    plain: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = logits(plain)
    (file,) = kept(plain)
    if os.geteuid() == 0:
        os.chown(file, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    caplog.clear()
    assert same(logits(plain), before)
    assert "another user's" in caplog.text


@pytest.mark.parametrize("at", [10, blob.GRAIN + 20, -1000], ids=["head", "opening", "closing"])
def test_a_damaged_file_is_written_again(plain: Path, caplog: pytest.LogCaptureFixture, at: int) -> None:
    before = logits(plain)
    (file,) = kept(plain)
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[at] ^= 0xFF
    file.write_bytes(damaged)
    caplog.clear()
    assert same(logits(plain), before)
    assert len(caplog.records) == 1
    assert "can't be used" in caplog.text
    assert "damaged" in caplog.text
    caplog.clear()
    assert same(logits(plain), before)
    assert caplog.text == ""


@pytest.mark.parametrize("size", [0, 100, blob.GRAIN, blob.GRAIN + 5000, -1])
def test_a_file_that_was_cut_short_is_written_again(plain: Path, caplog: pytest.LogCaptureFixture, size: int) -> None:
    before = logits(plain)
    (file,) = kept(plain)
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    caplog.clear()
    assert same(logits(plain), before)
    assert "can't be used" in caplog.text
    assert file.stat().st_size == len(whole)


def test_a_file_that_the_engine_refuses_is_no_reason_not_to_start(
    plain: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = logits(plain)

    def refuse(*_: Any) -> None:
        raise RuntimeError("Exception from somewhere:\nRuntime info is required.\n\n")

    caplog.clear()
    monkeypatch.setattr(ov.Core, "import_model", refuse)
    assert same(logits(plain), before)
    (record,) = caplog.records
    assert "the engine refuses" in record.message
    assert "Runtime info is required" in record.message


def test_an_export_of_another_form_is_not_kept(
    plain: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blob, "TAG", b"SOMETHING ELSE")
    fresh = logits(plain, keep=False)
    assert same(logits(plain), fresh)
    assert kept(plain) == []
    assert "can't be kept: the engine's export has a form that isn't known." in caplog.text


def test_a_folder_that_cannot_be_written_to(plain: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    fresh = logits(plain)
    (file,) = kept(plain)
    caplog.clear()
    with read_only(home):
        assert same(logits(plain), fresh)
    assert caplog.text == ""
    file.unlink()
    with read_only(home):
        assert same(logits(plain), fresh)
    assert "can't be kept" in caplog.text
    assert kept(plain) == []


def test_a_folder_that_cannot_be_made(plain: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.write_text("a file where the cache folder should be", encoding="utf-8")
    fresh = logits(plain, keep=False)
    assert same(logits(plain), fresh)
    assert "can't be kept" in caplog.text


def test_a_disk_without_room(plain: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    logits(plain)
    assert kept(plain) == []
    assert "are free" in caplog.text


def test_what_was_not_used_for_long_makes_room(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits(plain)
    (old,) = kept(plain)
    logits(plain, PROPERTIES[1])
    (used,) = set(kept(plain)) - {old}
    os.utime(old, (1, 1))
    elsewhere = old.parent.with_name("other") / f"other{compiled.SUFFIX}"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"")
    os.utime(elsewhere, (0, 0))
    abandoned = old.parent / f"{compiled.SCRATCH}abandoned"
    abandoned.mkdir()
    os.utime(abandoned, (1, 1))
    monkeypatch.setattr(compiled, "LIMIT_BYTES", int(2.5 * used.stat().st_size))
    logits(plain, PROPERTIES[2])
    left = kept(plain)
    assert len(left) == 2
    assert used in left
    assert not elsewhere.parent.exists()


def test_a_graph_that_is_too_large_is_not_kept(
    plain: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "LIMIT_BYTES", 10)
    logits(plain)
    assert kept(plain) == []
    assert "can't be kept" in caplog.text


@pytest.fixture
def restored_locale() -> Iterator[None]:
    """OpenVINO sets the C locale while it compiles; of two threads that do, one restores what the other had set."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.mark.usefixtures("restored_locale")
def test_two_at_once_do_not_harm_each_other(plain: Path) -> None:
    fresh = logits(plain, keep=False)
    found: list[list[NDArray[np.float32]]] = []
    threads = [threading.Thread(target=lambda: found.append(logits(plain))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(same(fresh, one) for one in found)
    assert len(kept(plain)) == 1
    assert same(fresh, logits(plain))


def test_a_process_ends_well_with_a_graph_that_was_kept(plain: Path) -> None:
    logits(plain)
    code = (
        "import sys, pathlib; from quicksilver.engines.openvino.graph import Graph, Work;"
        "g = Graph(pathlib.Path(sys.argv[1]), {}, lambda *_: 10_000_000, keep=True); print(g.run([Work([5], 0, [0], 1)]).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(plain)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_technique_compiles_at_build(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_tiny_model(tmp_path / "model", "llama")
    recipe = Recipe(
        str(folder), [make({"name": "as-is", "precision": "fp32"}), make({"name": "kv-cache"}), make("compile")]
    )
    artifact = api.build(recipe)
    assert store.verify(artifact.path.name) == []
    (file,) = kept(artifact.path)
    before = file.read_bytes()
    from quicksilver.engines import find

    decoder = find("openvino").open(artifact.path, Settings.model_validate(recipe.effective_settings()))
    until(lambda: decoder.blocks_used == 0)  # type: ignore[attr-defined]
    decoder.close()
    assert kept(artifact.path) == [file]
    assert file.read_bytes() == before
    assert "anew" not in caplog.text


def test_openvino_is_whole_after_it_was_imported_lightly() -> None:
    code = (
        "import quicksilver.engines.openvino as engine, sys; engine._import_lightly();"
        "assert not [m for m in sys.modules if m.startswith('openvino.tools')];"
        "import openvino; model = openvino.convert_model;"
        "from openvino.tools.ovc import convert_model; assert callable(convert_model) and callable(model)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
