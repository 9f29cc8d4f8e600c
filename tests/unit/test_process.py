"""Servers of other programs: started, watched, explained and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from quicksilver.engines.process import GUARD, serve_command
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Command

SERVER = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        body = {"data": [{"id": os.environ.get("NAME", "a")}]} if "models" in self.path else {}
        self.wfile.write(json.dumps(body).encode())
print("chatter " * 20_000)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def command(port: int) -> Command:
    return Command([sys.executable, "-c", SERVER, str(port)], {"NAME": "mine"})


def failing(text: str, code: int = 3) -> Sequence[str]:
    return [sys.executable, "-c", f"import sys; print({text!r}); print('Traceback and so on'); sys.exit({code})"]


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return True


def test_serves_with_what_was_added_to_the_environment_and_leaves_nothing(tmp_path: Path) -> None:
    with serve_command(command, log=tmp_path / "log") as endpoint:
        assert endpoint.model == "mine"
        assert endpoint.load_s is not None
        assert (endpoint.peak_memory_mb() or 0) > 1
        pid = endpoint.pid
        assert pid is not None
    assert gone(pid)
    assert "chatter" in (tmp_path / "log").read_text(encoding="utf-8")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{endpoint.url}/models", timeout=5)


def test_says_what_the_server_said_last() -> None:
    with (
        pytest.raises(EngineError, match="exit code 3: Traceback and so on"),
        serve_command(lambda _: Command(failing("no"))),
    ):
        pass


def test_explains_what_is_known_of_the_server() -> None:
    def explain(lines: Sequence[str]) -> str | None:
        return "The file is cut off." if "truncated" in lines else None

    served = serve_command(lambda _: Command(failing("truncated"), explain=explain))
    with pytest.raises(EngineError, match=r"^The file is cut off\.$"), served:
        pass


def test_says_that_the_server_was_killed() -> None:
    with pytest.raises(EngineError, match="SIGKILL"), serve_command(command) as endpoint:
        assert endpoint.pid is not None
        os.kill(endpoint.pid, signal.SIGKILL)
        time.sleep(0.1)


def test_a_port_in_use_and_a_program_that_is_not_there() -> None:
    with serve_command(command) as endpoint:
        port = int(endpoint.url.split(":")[2].split("/")[0])
        with pytest.raises(BadInputError, match=str(port)), serve_command(command, port=port):
            pass
    with pytest.raises(EngineError), serve_command(lambda _: Command(["/no/such/program"])):
        pass


def test_a_server_ends_with_whoever_started_it() -> None:
    sleeper = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", str(GUARD), *sleeper],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert guard.stdin is not None
    assert guard.stdout is not None
    pid = int(guard.stdout.readline())
    guard.stdin.close()
    guard.wait(30)
    guard.stdout.close()
    for _ in range(500):
        if gone(pid):
            return
        time.sleep(0.02)
    pytest.fail("the server goes on")
