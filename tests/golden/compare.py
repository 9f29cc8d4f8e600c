"""Golden files: `QUICKSILVER_UPDATE_GOLDEN=1 pytest tests/golden` rewrites them; then read the diff."""

from __future__ import annotations

import os
from pathlib import Path

UPDATE = "QUICKSILVER_UPDATE_GOLDEN"


def check(name: str, text: str) -> None:
    """Compare a text with the golden file of that name, or rewrite the file when asked to."""
    file = Path(__file__).parent / name
    if os.environ.get(UPDATE) == "1":
        file.write_text(text, encoding="utf-8")
    assert file.exists(), f"{name} is missing: make it with {UPDATE}=1"
    assert text == file.read_text(encoding="utf-8"), f"{name} differs; if it should, run with {UPDATE}=1"
