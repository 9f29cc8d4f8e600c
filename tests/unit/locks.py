"""Lock files and wheels made here, so that an environment is made in seconds and without a network."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from quicksilver import environments
from quicksilver.environments import make_venv
from quicksilver.sources.home import HOME_VARIABLE


def make_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set a cache folder of the test's own, and have pip take wheels from a folder of it and from nowhere else."""
    folder = tmp_path / "home"
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return folder


def make_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the lock files in a folder of the test's own: tiny.lock names qs-tiny 1.0, of which there is a 2.0, too."""
    folder = tmp_path / "locks"
    folder.mkdir()
    (tmp_path / "wheels").mkdir()
    monkeypatch.setattr(environments, "folder_of_locks", lambda: folder)
    (folder / "tiny.lock").write_text("# disk_mb: 1\n# minutes: 1\nqs-tiny==1.0\n", encoding="utf-8")
    (folder / "default.lock").write_text("", encoding="utf-8")
    make_wheel(tmp_path / "wheels", "qs_tiny", "1.0")
    make_wheel(tmp_path / "wheels", "qs_tiny", "2.0")
    return folder


def copy_venvs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have venvs copied from one that is made once: pip's own installation takes seconds."""
    base = tmp_path_factory.getbasetemp() / "venv"
    if not base.exists():
        make_venv("template", base)

    def copy(name: str, folder: Path) -> None:
        shutil.copytree(base, folder, symlinks=True)

    monkeypatch.setattr(environments, "make_venv", copy)


def make_wheel(folder: Path, name: str, version: str, code: str = "") -> None:
    """Write a wheel of one module, which knows its version."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"VERSION = {version!r}\n{code}\n")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
