"""Writing an export's files: all of them or none, into a folder that is new or empty."""

from __future__ import annotations

from pathlib import Path

from quicksilver.errors import BadInputError
from quicksilver.nouns.export import Export
from quicksilver.sources.home import writing

SCRIPT = 0o755


def check_folder(folder: Path) -> None:
    """Raise BadInputError for a folder that isn't empty, and for what is no folder."""
    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"{folder} is a file; give --out a folder that is new or empty.")
    if folder.is_dir() and any(folder.iterdir()):
        raise BadInputError(f"{folder} is not empty; give --out a folder that is new or empty.")


def write(export: Export, folder: Path) -> list[Path]:
    """Write an export's files and return their paths. Raises BadInputError, or NotEnoughError if the disk is full."""
    check_folder(folder)
    written = []
    with writing(folder, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in export.files.items():
            path = folder / name
            path.write_text(text, encoding="utf-8", newline="\n")
            if name.endswith(".sh"):
                path.chmod(SCRIPT)
            written.append(path)
    return written
