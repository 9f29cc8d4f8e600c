"""The folder where everything that was downloaded, converted or built is kept."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from quicksilver.errors import BadInputError, NotEnoughError

HOME_VARIABLE = "QUICKSILVER_HOME"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG}


def home() -> Path:
    """Return the cache folder: QUICKSILVER_HOME, or the user's cache directory. It need not exist yet."""
    chosen = os.environ.get(HOME_VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("quicksilver")


@contextmanager
def writing(folder: Path, variable: str = HOME_VARIABLE) -> Iterator[None]:
    """Turn a full or read-only disk inside the block into one sentence. Raises NotEnoughError or BadInputError.

    `variable` is the environment variable that would put the folder elsewhere.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NotEnoughError(
                f"The disk that holds {folder} is full; free some space, or set {variable} to a folder on another disk."
            ) from error
        if error.errno in _FORBIDDEN:
            reason = (error.strerror or str(error)).lower()
            raise BadInputError(
                f"{folder} can't be written to ({reason}); make it writable, or set {variable} to a folder that is."
            ) from error
        raise


def writable(folder: Path, variable: str = HOME_VARIABLE) -> Path:
    """Make the folder, prove by writing a byte that it takes files, and return it. Raises as `writing` does."""
    with writing(folder, variable):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
            probe.flush()
    return folder


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest one around it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def need_disk(folder: Path, size: int, what: str, variable: str = HOME_VARIABLE) -> None:
    """Raise NotEnoughError unless the disk that holds an existing folder has `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise NotEnoughError(
            f"{what} needs {size / 1e6:,.0f} MB of disk, and {folder} has {free / 1e6:,.0f} MB free; "
            f"free some space, or set {variable} to a folder on another disk."
        )
