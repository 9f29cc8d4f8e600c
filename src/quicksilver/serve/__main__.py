"""The server's process: `python -m quicksilver.serve --engine NAME --artifact FOLDER`."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path
from typing import get_args

from quicksilver.errors import QuicksilverError
from quicksilver.serve.access import LogFormat
from quicksilver.serve.server import Place, make_recording, serve


def main() -> int:
    """Serve until SIGTERM, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m quicksilver.serve", description=__doc__)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--artifact", required=True, type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default=8000, type=int, help="0 takes a free one; the first line of stdout names it")
    parser.add_argument("--settings", default="{}", help="engine settings, JSON")
    parser.add_argument("--model-name", help="the name in the API; by default the artefact's")
    parser.add_argument("--grace", default=30, type=int, help="seconds that SIGTERM leaves to requests in flight")
    parser.add_argument("--insecure", action="store_true", help="allow a host that others can reach")
    parser.add_argument("--log-format", choices=get_args(LogFormat), default="none", help="of a line a request")
    parser.add_argument("--record", type=Path, metavar="FILE", help="record when requests come and how long they are")
    parser.add_argument("--record-prompts", action="store_true", help="and what they say: with consent only")
    parser.add_argument("--record-answers", action="store_true", help="and what is answered")
    parser.add_argument("--record-limit", type=float, metavar="MB", help="the record's size at which recording stops")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin does")
    options = parser.parse_args()
    if options.with_parent:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        place = Place(
            options.host,
            options.port,
            insecure=options.insecure,
            replaceable=not options.with_parent,
            grace_s=options.grace,
        )
        serve(
            options.engine,
            options.artifact,
            options.settings,
            place,
            model=options.model_name,
            log_format=options.log_format,
            recording=make_recording(
                options.record,
                prompts=options.record_prompts,
                answers=options.record_answers,
                limit_mb=options.record_limit,
            ),
        )
    except QuicksilverError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def _end_with_stdin() -> None:
    """Die with the parent, however it ends: its end of the pipe closes with it."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
