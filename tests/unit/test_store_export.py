"""Export and import: an object goes to another store whole, or not at all, whatever is in the file."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from objects import KEY, OTHER, everything_below, export_of, leavings, put

from quicksilver.build import store
from quicksilver.errors import BadInputError
from quicksilver.nouns.artifact import MANIFEST
from quicksilver.sources.home import HOME_VARIABLE


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    return folder


def test_an_object_goes_to_another_store_and_is_the_same(tmp_path: Path, home: Path) -> None:
    files = {"weights.bin": bytes(range(256)) * 100, "draft/config.json": b"{}"}
    source = export_of(tmp_path, files)
    assert store.import_(source) == KEY
    assert store.verify(KEY) == []
    for name, content in files.items():
        assert (store.path(KEY) / name).read_bytes() == content
        assert (store.path(KEY) / name).stat().st_mode & 0o777 == 0o444
    assert store.manifest(KEY) == json.loads(
        (tmp_path / "elsewhere" / "store" / "objects" / KEY / MANIFEST).read_text(encoding="utf-8")
    )
    assert store.import_(source) == KEY
    assert leavings(home) == []
    assert [p.name for p in tmp_path.glob("object.tar*")] == ["object.tar"]


@pytest.mark.parametrize("damage", [b"4321", b"4"])
def test_an_import_mends_what_is_damaged(tmp_path: Path, damage: bytes) -> None:
    source = export_of(tmp_path, {"weights.bin": b"1234"})
    store.import_(source)
    file = store.path(KEY) / "weights.bin"
    file.chmod(0o644)
    file.write_bytes(damage)
    assert store.import_(source) == KEY
    assert store.verify(KEY) == []


def test_an_export_names_nobody(tmp_path: Path) -> None:
    with tarfile.open(export_of(tmp_path, {"a": b"1"})) as archive:
        for entry in archive:
            assert (entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, "", "")


def test_a_damaged_object_is_not_exported(tmp_path: Path) -> None:
    file = put() / "weights.bin"
    file.chmod(0o644)
    file.write_bytes(b"5678")
    with pytest.raises(BadInputError, match=f"^{KEY} is damaged and isn't exported: weights.bin has changed"):
        store.export(KEY, tmp_path / "out.tar")
    assert not list(tmp_path.glob("out.tar*"))


def test_an_export_to_a_place_that_is_not_there(tmp_path: Path) -> None:
    put()
    with pytest.raises(BadInputError, match="can't be written: no such file or directory"):
        store.export(KEY, tmp_path / "no" / "out.tar")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BadInputError, match="can't be written: not a directory"):
        store.export(KEY, tmp_path / "file" / "out.tar")


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: b"",
        lambda data: b"not a tar file at all",
        lambda data: cut(data, 0.01),
        lambda data: cut(data, 0.4),
        lambda data: cut(data, 0.7),
        lambda data: data.replace(b"\x07" * 2000, b"\x08" * 2000),
        lambda data: data.replace(b'"key"', b'"kez"'),
        lambda data: data[:2000] + b"\xff" * 1000 + data[3000:],
    ],
)
def test_a_damaged_export_is_refused_and_leaves_nothing(
    harm: Callable[[bytes], bytes], tmp_path: Path, home: Path
) -> None:
    whole = export_of(tmp_path, {"weights.bin": b"\x07" * 20_000, "z": b"1"})
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(harm(whole.read_bytes()))
    with pytest.raises(
        BadInputError, match=r"damaged\.tar is not an exported object that can be read: .+\.$"
    ) as caught:
        store.import_(damaged)
    assert "\n" not in str(caught.value)
    assert store.keys() == []
    assert leavings(home) == []
    assert everything_below(home / "store" / "objects") == set()


def manifest_of(files: dict[str, bytes], key: str = KEY, **more: Any) -> bytes:
    import hashlib

    entries = {n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for n, c in files.items()}
    return json.dumps({"key": key, "kind": "step", "files": entries, **more}).encode()


def entry(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


GOOD = entry(f"{KEY}/a", b"1"), entry(f"{KEY}/{MANIFEST}", manifest_of({"a": b"1"}))


@pytest.mark.parametrize(
    "entries",
    [
        [*GOOD, entry("../evil", b"x")],
        [*GOOD, entry("/tmp/evil", b"x")],
        [*GOOD, entry(f"{KEY}/../../evil", b"x")],
        [*GOOD, entry(f"{KEY}/link", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        [*GOOD, entry(f"{KEY}/link", type=tarfile.SYMTYPE, linkname="a")],
        [*GOOD, entry(f"{KEY}/link", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
        [*GOOD, entry(f"{KEY}/pipe", type=tarfile.FIFOTYPE)],
        [*GOOD, entry(f"{KEY}/device", type=tarfile.CHRTYPE)],
        [*GOOD, entry(f"{KEY}/more", b"that the manifest doesn't name")],
        [*GOOD, entry("second/a", b"1")],
        [GOOD[0]],
        [],
        [entry(f"{OTHER}/a", b"1"), entry(f"{OTHER}/{MANIFEST}", manifest_of({"a": b"1"}))],
        [entry("short/a", b"1"), entry(f"short/{MANIFEST}", manifest_of({"a": b"1"}, key="short"))],
        [entry(f"{KEY}/a", b"1"), entry(f"{KEY}/{MANIFEST}", manifest_of({"a": b"1", "../../secret": b""}))],
        [entry(f"{KEY}/a", b"1"), entry(f"{KEY}/{MANIFEST}", manifest_of({"a": b"1"}, kind="artifact"))],
    ],
)
def test_a_foreign_tar_is_refused_and_writes_nowhere(
    entries: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path, home: Path
) -> None:
    source = tmp_path / "foreign.tar"
    with tarfile.open(source, "w") as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    before = everything_below(tmp_path)
    with pytest.raises(
        BadInputError, match=r"foreign\.tar is not an exported object that can be read: .+\.$"
    ) as caught:
        store.import_(source)
    assert str(home) not in str(caught.value)
    assert {n for n in everything_below(tmp_path) - before if not n.endswith(".lock")} == set()
    assert store.keys() == []
    assert not Path("/tmp/evil").exists()


def test_a_good_foreign_tar_is_taken(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "good.tar", "w") as archive:
        for info, content in GOOD:
            archive.addfile(info, io.BytesIO(content))
    assert store.import_(tmp_path / "good.tar") == KEY


def test_a_file_that_is_not_there_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"There is no file at .*none\.tar\.$"):
        store.import_(tmp_path / "none.tar")


def test_a_file_that_is_added_belongs_to_the_object_and_its_key_stays(tmp_path: Path) -> None:
    folder = put(label="as-is")
    before, inode = store.manifest(KEY), (folder / "weights.bin").stat().st_ino
    for text in ("first", "second"):
        store.amend(KEY, "notes.json", text)
        assert (folder / "notes.json").read_text(encoding="utf-8") == text
        assert store.verify(KEY) == []
    after = store.manifest(KEY)
    assert {name: after["files"][name] for name in before["files"]} == before["files"]
    assert after["files"].keys() - before["files"].keys() == {"notes.json"}
    assert {fact: after[fact] for fact in ("key", "created", "label")} == {
        f: before[f] for f in ("key", "created", "label")
    }
    assert (folder / "weights.bin").stat().st_ino == inode
    assert (folder / "notes.json").stat().st_mode & 0o777 == 0o444
    store.export(KEY, tmp_path / "it.tar")
    store.remove(KEY)
    assert store.import_(tmp_path / "it.tar") == KEY
    assert (folder / "notes.json").read_text(encoding="utf-8") == "second"


def test_what_is_wrong_with_an_object_stays_wrong_when_a_file_is_added() -> None:
    folder = put()
    (folder / "weights.bin").chmod(0o644)
    (folder / "weights.bin").write_bytes(b"4321")
    store.amend(KEY, "notes.json", "text")
    assert store.verify(KEY) == ["weights.bin has changed"]
