"""Run another program's server and end it when stdin does, so that it never outlives whoever started it.

`python -I -S guard.py COMMAND …`. Only the standard library: it stays in memory as long as the server.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Run a command; SIGTERM is handed on to it. Return its exit code, or end by the signal that ended it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    threading.Thread(target=_end_with_stdin, args=(process,), daemon=True).start()
    code = process.wait()
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _end_with_stdin(process: subprocess.Popen[bytes]) -> None:
    # Our end of the pipe closes with whoever started us. The session is ours: with it goes what the server started.
    while os.read(0, 4096):
        pass
    process.kill()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
