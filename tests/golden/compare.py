"""Golden files: `QUICKSILVER_UPDATE_GOLDEN=1 pytest tests/golden` rewrites them; then read the diff."""

from __future__ import annotations

import os
import re
from pathlib import Path

UPDATE = "QUICKSILVER_UPDATE_GOLDEN"


def check(name: str, text: str) -> None:
    """Compare a text with the golden file of that name, or rewrite the file when asked to."""
    file = Path(__file__).parent / name
    if os.environ.get(UPDATE) == "1":
        file.write_text(text, encoding="utf-8")
    assert file.exists(), f"{name} is missing: make it with {UPDATE}=1"
    assert steady(text) == steady(file.read_text(encoding="utf-8")), (
        f"{name} differs; if it should, run with {UPDATE}=1"
    )


def steady(text: str) -> str:
    """Leave out what differs from one processor to another: the last digits of sums, and the hash of a document that has them."""
    text = re.sub(r"-?\d+\.\d{9,}(?:e[-+]?\d+)?", lambda found: f"{float(found[0]):.9g}", text)
    return re.sub(r'"benchmark_id": "[0-9a-f]{16}"', '"benchmark_id": ""', text)
