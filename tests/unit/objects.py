"""Objects of the store for tests, and what a test leaves behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from quicksilver.build import store
from quicksilver.sources.home import HOME_VARIABLE

KEY, OTHER = "0123456789abcdef", "01230000ffffffff"


def put(key: str = KEY, files: dict[str, bytes] | None = None, **facts: Any) -> Path:
    """Make an object."""
    with store.locked(key), store.new(key, {"kind": "step", **facts}) as folder:
        for name, content in (files or {"weights.bin": b"1234", "draft/config.json": b"{}"}).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    return store.path(key)


def everything_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()} if folder.is_dir() else set()


def leavings(home: Path) -> list[Path]:
    return list((home / "store" / "work").iterdir()) if (home / "store" / "work").is_dir() else []


def export_of(tmp_path: Path, files: dict[str, bytes]) -> Path:
    """Export an object from a store of its own."""
    target = tmp_path / "object.tar"
    before = os.environ[HOME_VARIABLE]
    os.environ[HOME_VARIABLE] = str(tmp_path / "elsewhere")
    try:
        put(files=files)
        store.export(KEY, target)
    finally:
        os.environ[HOME_VARIABLE] = before
    return target
