"""The engine that docs/engines.md adds in one file, by an entry point: its blocks are written to files and run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quicksilver import engines
from quicksilver.testing import engine_contract

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a package as pip would install it: the engine's file, its entry point, and its test."""
    folder = tmp_path_factory.mktemp("package")
    text = PAGE.read_text(encoding="utf-8")
    engine, test = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (entry_point,) = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (folder / "parrot.py").write_text(engine, encoding="utf-8")
    (folder / "test_parrot.py").write_text(test, encoding="utf-8")
    info = folder / "parrot-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parrot\nVersion: 1.0\n", encoding="utf-8")
    found = re.fullmatch(r'\[project\.entry-points\."(.+)"\]\n(\w+) = "(\w+)"\n', entry_point)
    assert found
    (info / "entry_points.txt").write_text(f"[{found[1]}]\n{found[2]} = {found[3]}\n", encoding="utf-8")
    assert found[1] == engines.GROUP
    return folder


def run_in(package: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(package), *(p for p in sys.path if p)])
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=package,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
    )


def test_it_is_listed_and_sound(package: Path) -> None:
    shown = run_in(package, ["quicksilver", "engine", "list"])
    assert re.search(r"^parrot +Parrot 1\.0 +parrot +Says the prompt again, at no cost\.", shown.stdout, re.MULTILINE)
    shown = run_in(package, ["quicksilver", "engine", "doctor", "parrot"])
    assert shown.stdout == "parrot: sound\n"


def test_it_passes_the_contract(package: Path) -> None:
    """Every test of the contract runs, and none is skipped but those that its abilities rule out."""
    ended = run_in(package, ["pytest", "-q", "-p", "no:cacheprovider", "test_parrot.py"])
    assert ended.returncode == 0, ended.stdout[-4000:]
    tests = [name for name in vars(engine_contract.EngineContract) if name.startswith("test_")]
    passed = re.search(r"(\d+) passed", ended.stdout)
    assert passed
    assert int(passed[1]) >= len(tests) - 2
