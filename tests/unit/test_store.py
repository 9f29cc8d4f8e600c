"""The store: objects are whole or absent, whoever is killed, whatever runs at once, whatever is imported."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disks import read_only, small_disk
from objects import KEY, OTHER, export_of, leavings, put

from quicksilver.build import store
from quicksilver.errors import BadInputError, NotEnoughError, QuicksilverError
from quicksilver.nouns.artifact import MANIFEST
from quicksilver.sources.home import HOME_VARIABLE


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    return folder


# Objects


def test_an_object_is_there_with_a_manifest_of_its_files() -> None:
    folder = put(label="as-is")
    assert store.has(KEY)
    assert store.keys() == [KEY]
    manifest = store.manifest(KEY)
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {
        "weights.bin": 4,
        "draft/config.json": 2,
    }
    assert manifest["files"]["weights.bin"].keys() == {"sha256", "bytes"}
    assert manifest["label"] == "as-is"
    assert manifest["key"] == KEY
    assert store.verify(KEY) == []
    assert (folder / "weights.bin").stat().st_mode & 0o777 == 0o444


def test_a_manifest_names_no_place_of_this_machine(tmp_path: Path) -> None:
    folder = put()
    assert str(tmp_path) not in (folder / MANIFEST).read_text(encoding="utf-8")
    assert "inode" not in (folder / MANIFEST).read_text(encoding="utf-8")


def test_a_block_that_raises_leaves_nothing(home: Path) -> None:
    with pytest.raises(ZeroDivisionError), store.locked(KEY), store.new(KEY, {}) as folder:
        (folder / "half").write_bytes(b"1")
        _ = 1 / 0
    assert not store.has(KEY)
    assert not store.path(KEY).exists()
    assert leavings(home) == []


def test_a_build_that_is_ended_while_its_folder_is_made_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal's handler runs right after the call that it came in."""
    make = Path.mkdir

    def ended(folder: Path, *args: Any, **options: Any) -> None:
        make(folder, *args, **options)
        if folder.parent.name == "work":
            raise SystemExit(143)

    monkeypatch.setattr(Path, "mkdir", ended)
    with pytest.raises(SystemExit), store.new(KEY, {}):
        pass
    assert not list((home / "store" / "work").iterdir())


def test_what_lies_at_an_objects_place_without_a_manifest_is_no_object() -> None:
    store.path(KEY).mkdir(parents=True)
    (store.path(KEY) / "stray").write_bytes(b"?")
    assert not store.has(KEY)
    put()
    assert store.verify(KEY) == []


def test_a_link_to_a_users_file_becomes_a_copy(tmp_path: Path) -> None:
    mine, pointed_at = tmp_path / "tokenizer.json", tmp_path / "config.json"
    mine.write_text("mine", encoding="utf-8")
    pointed_at.write_text("pointed at", encoding="utf-8")
    with store.locked(KEY), store.new(KEY, {}) as folder:
        os.link(mine, folder / "tokenizer.json")
        (folder / "config.json").symlink_to(pointed_at)
    assert mine.stat().st_mode & 0o200
    mine.write_text("changed", encoding="utf-8")
    pointed_at.write_text("changed", encoding="utf-8")
    assert store.verify(KEY) == []
    assert (store.path(KEY) / "tokenizer.json").read_text(encoding="utf-8") == "mine"
    assert (store.path(KEY) / "config.json").read_text(encoding="utf-8") == "pointed at"
    assert not (store.path(KEY) / "config.json").is_symlink()


def link_from(key: str, new: str) -> Path:
    with store.locked(new), store.new(new, {"kind": "artifact"}, source=key) as folder:
        os.link(store.path(key) / "weights.bin", folder / "weights.bin")
        (folder / "own.json").write_text("{}", encoding="utf-8")
    return store.path(new)


def test_objects_share_files_and_outlive_each_other() -> None:
    step = put()
    artifact = link_from(KEY, OTHER)
    assert artifact.joinpath("weights.bin").stat().st_ino == step.joinpath("weights.bin").stat().st_ino
    assert store.verify(OTHER) == []
    store.remove(KEY)
    assert store.keys() == [OTHER]
    assert store.verify(OTHER) == []


def test_a_shared_file_that_was_changed_in_place_is_found_in_both() -> None:
    """Were it hashed anew for the second object, its damage would be recorded as what was built."""
    file = put() / "weights.bin"
    status = file.stat()
    file.chmod(0o644)
    file.write_bytes(b"4321")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    link_from(KEY, OTHER)
    assert store.verify(KEY) == ["weights.bin has changed"]
    assert store.verify(OTHER) == ["weights.bin has changed"]


def test_removing_says_how_much_it_frees() -> None:
    put(files={"weights.bin": b"x" * 1000})
    link_from(KEY, OTHER)
    assert store.remove(KEY) < 1000
    assert store.remove(OTHER) >= 1000


# Verify, resolve, prune


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda f: f.write_bytes(b"123"), "weights.bin has 3 bytes instead of 4"),
        (lambda f: f.write_bytes(b"1235"), "weights.bin has changed"),
        (lambda f: f.unlink(), "weights.bin is missing"),
        (lambda f: f.with_name("more").write_bytes(b""), "more was added"),
    ],
)
def test_verify_finds(harm: Callable[[Path], Any], found: str) -> None:
    file = put() / "weights.bin"
    file.chmod(0o644)
    harm(file)
    assert store.verify(KEY) == [found]


def test_the_beginning_of_a_key_is_enough_if_it_is_one_objects() -> None:
    put(KEY)
    put(OTHER)
    assert store.resolve("01234") == KEY
    assert store.resolve(OTHER) == OTHER
    with pytest.raises(BadInputError, match=r"^0123 stands for 2 objects; give more of its letters"):
        store.resolve("0123")
    for nothing in ("ffff", "", "../objects"):
        with pytest.raises(BadInputError, match="There is no object"):
            store.resolve(nothing)


def test_an_empty_store_says_so() -> None:
    with pytest.raises(BadInputError, match="the store is empty"):
        store.resolve("abc")
    assert store.keys() == []
    assert store.sweep() == 0


def test_prune_takes_the_steps_and_leaves_artefacts_whole() -> None:
    put()
    link_from(KEY, OTHER)
    count, freed = store.prune()
    assert count == 1
    assert freed > 0
    assert store.keys() == [OTHER]
    assert store.verify(OTHER) == []
    assert store.prune([OTHER[:6]])[0] == 1
    assert store.keys() == []


def test_prune_of_an_unknown_key_removes_nothing() -> None:
    put()
    with pytest.raises(BadInputError, match="There is no object"):
        store.prune([KEY, "ffff"])
    assert store.has(KEY)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', '{"key": "a", "files": {"../../x": {}}}'])
def test_a_damaged_manifest_is_said_and_can_be_pruned(text: str) -> None:
    file = put() / MANIFEST
    file.chmod(0o644)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match=f"The manifest of {KEY} is damaged; .*prune {KEY}"):
        store.verify(KEY)
    assert store.prune([KEY])[0] == 1
    assert not store.has(KEY)


# Killed, at once, without room


BUILDER = """
import sys, time
from quicksilver.build import store
with store.locked(sys.argv[1]):
    if not store.has(sys.argv[1]):
        with store.new(sys.argv[1], {}) as folder:
            (folder / "half").write_bytes(b"1" * 1000)
            print("half", flush=True)
            sys.stdin.readline()
            (folder / "whole").write_bytes(b"2")
            print("built", flush=True)
print("done", flush=True)
"""


def builder() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, KEY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_killed_build_leaves_nothing_that_looks_finished(home: Path) -> None:
    with builder() as process:
        assert hear(process) == "half"
        assert store.sweep() == 0
        assert leavings(home) != []
        process.send_signal(signal.SIGKILL)
    assert not store.has(KEY)
    assert not store.path(KEY).exists()
    assert store.sweep() == 1
    assert leavings(home) == []
    put()
    assert store.verify(KEY) == []


def test_two_builds_at_once_build_once() -> None:
    with builder() as first:
        assert hear(first) == "half"
        with builder() as second:
            say(first)
            assert (hear(first), hear(first)) == ("built", "done")
            assert hear(second) == "done"
    assert first.returncode == second.returncode == 0
    assert store.verify(KEY) == []


def test_a_build_that_waits_says_so() -> None:
    told = []
    with builder() as process:
        assert hear(process) == "half"

        def waiting() -> None:
            told.append("waiting")
            say(process)

        with store.locked(KEY, waiting):
            assert store.has(KEY)
    assert told == ["waiting"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "small", 64) as disk:
        monkeypatch.setenv(HOME_VARIABLE, str(disk / "home"))
        put(OTHER)
        with pytest.raises(OSError, match="No space left"), store.locked(KEY), store.new(KEY, {}) as folder:
            (folder / "large").write_bytes(b"1" * 100_000)
        with pytest.raises(NotEnoughError, match=r"^The disk that holds .* is full"):
            put(words="w" * 60_000)
        assert not store.path(KEY).exists()
        assert leavings(disk / "home") == []
        assert store.verify(OTHER) == []
        source = export_of(tmp_path, {"large": b"1" * 100_000})
        with pytest.raises(NotEnoughError, match="MB of disk"):
            store.import_(source)
        assert leavings(disk / "home") == []
        (disk / "fill").write_bytes(b"1" * (shutil.disk_usage(disk).free - 4096))
        with pytest.raises(NotEnoughError, match="can't be written: no space left on device"):
            store.export(OTHER, disk / "out.tar")
        assert not list(disk.glob("out.tar*"))


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [(errno.ENOSPC, NotEnoughError, "is full"), (errno.EROFS, BadInputError, "can't be written to")],
)
def test_a_disk_that_fails_when_the_object_is_moved_in(
    number: int, kind: type[QuicksilverError], words: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(kind, match=words):
            put()
    assert not store.has(KEY)
    assert leavings(home) == []


def test_a_read_only_home_is_one_sentence_and_can_be_read(home: Path) -> None:
    put()
    with read_only(home):
        assert store.keys() == [KEY]
        assert store.verify(KEY) == []
        for write in (lambda: put(OTHER), lambda: store.remove(KEY)):
            with pytest.raises(BadInputError, match="can't be written to"):
                write()
    assert store.keys() == [KEY]


# History


def test_history_is_remembered_and_a_cut_file_is_no_obstacle(home: Path) -> None:
    assert store.history("int8") is None
    store.remember("int8", {"seconds": 3.0})
    store.remember("awq", {"seconds": 5.0})
    assert store.history("int8") == {"seconds": 3.0}
    (home / "store" / "history.json").write_text('{"int8": {"seco', encoding="utf-8")
    assert store.history("int8") is None
    store.remember("int8", {"seconds": 4.0})
    assert store.history("int8") == {"seconds": 4.0}


def test_objects_can_be_copied_by_other_tools(tmp_path: Path) -> None:
    folder = put()
    shutil.copytree(folder, tmp_path / "copy")
    assert store.wrong_in(tmp_path / "copy", store.read_manifest(tmp_path / "copy")) == []
