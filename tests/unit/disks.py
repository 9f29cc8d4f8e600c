"""Disks that are small or can't be written to, where the machine lets us make them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[Path]:
    """Mount a disk of a few KB; skips the test where that isn't allowed."""
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """Make a folder read-only: by its mode, and for root, whom modes don't stop, by a mount."""
    if os.geteuid() != 0:
        folders = [folder, *(item for item in folder.rglob("*") if item.is_dir())]
        for item in folders:
            item.chmod(0o555)
        try:
            yield folder
        finally:
            for item in folders:
                item.chmod(0o755)
        return
    for command in (["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]):
        if subprocess.run([str(part) for part in command], capture_output=True, check=False).returncode:
            pytest.skip("root can't make a folder read-only here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
