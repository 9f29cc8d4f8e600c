"""One file under several names: what a build leaves as it was isn't copied."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


def link(source: Path, target: Path) -> None:
    """Give a file a second name by hard link, or copy its bytes where the file system doesn't let it be linked."""
    try:
        # A symbolic link would keep its relative place, and so point nowhere.
        os.link(source.resolve(strict=True), target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)


def link_all(source: Path, target: Path, *, but: Iterable[str] = ()) -> None:
    """Give `target` the files of `source` except those named, by their paths below it."""
    left_out = set(but)
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if path.is_dir() or relative.as_posix() in left_out:
            continue
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        link(path, target / relative)
