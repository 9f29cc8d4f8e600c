"""Become another program's server, with a watcher beside it that ends it when stdin does: it never outlives whoever started it.

`python -I -S guard.py COMMAND …`. Only the standard library: the watcher stays in memory as long as the server.
"""

from __future__ import annotations

import os
import signal
import sys


def main(command: list[str]) -> None:
    """Leave a watcher in this session, and become the command: this process's id is the server's, and so is its end."""
    between = os.fork()
    if between == 0:
        if os.fork() == 0:
            _end_with_stdin()
        os._exit(0)  # so that the watcher is no child of the server's
    os.waitpid(between, 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and what is ignored stays so
    try:
        os.execvp(command[0], command)  # noqa: S606  no shell is meant
    except OSError as error:
        sys.exit(f"error: The server could not be started with {command[0]}: {error.strerror}.")


def _end_with_stdin() -> None:
    # Our end of the pipe closes with whoever started us. The session is ours: with it goes what the server started.
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
