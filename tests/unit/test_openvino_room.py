"""OpenVINO refuses weights that the machine has no room for, before a process is started or a graph is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from quicksilver.engines import find, process
from quicksilver.engines.openvino import files, paged
from quicksilver.errors import NotEnoughError
from quicksilver.nouns import Settings

MB = 1_000_000
SENTENCE = (
    "Serving needs about 253 MB (3 of weights, and no KV cache yet) and 150 MB of memory are free; "
    "round the weights to fewer bits, or free some."
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights of a model and of a draft, and a tokenizer's."""
    (tmp_path / "draft").mkdir()
    for name, size in (("openvino_model.bin", 2 * MB), ("draft/openvino_model.bin", MB), ("openvino_model.xml", MB)):
        (tmp_path / name).write_bytes(bytes(size))
    return tmp_path


def test_no_room_for_the_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def heavy(*_: object, **__: object) -> None:
        raise AssertionError("This comes too early.")

    monkeypatch.setattr(process, "serve_process", heavy)
    monkeypatch.setattr(paged, "PagedDecoder", heavy)
    monkeypatch.setattr(files, "available_memory", lambda: 150 * MB)
    engine = find("openvino")
    with pytest.raises(NotEnoughError) as caught, engine.serve(folder, Settings()):
        pass
    assert str(caught.value) == SENTENCE
    with pytest.raises(NotEnoughError):
        engine.open(folder, Settings())


def test_room_that_just_suffices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "available_memory", lambda: 253 * MB)
    files.check_room(folder, 250)
