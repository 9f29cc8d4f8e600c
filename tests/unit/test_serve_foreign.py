"""An engine's own server in the foreground: what ends it, before it is ready and after."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from quicksilver.engines.fake import Fake
from quicksilver.nouns import Artifact, Command, Settings
from quicksilver.nouns.engine import Abilities
from quicksilver.serve.foreign import serve
from quicksilver.serve.server import Place

SERVER = """
import http.server, json, sys, time
time.sleep(float(sys.argv[2]))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "its-model"}]}).encode())

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Slow(Fake):
    """Loads for as long as it is told to."""

    abilities: ClassVar[Abilities] = Abilities(own_server=True)
    load_s: ClassVar[float] = 0.0

    def command(
        self, artifact: Path, settings: Settings, *, host: str, port: int, api_keys: Sequence[str] = ()
    ) -> Command:
        return Command([sys.executable, "-c", SERVER, str(port), str(self.load_s)])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("load_s", [0.0, 600.0])
def test_it_ends_when_it_is_told_to(
    number: signal.Signals,
    load_s: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Slow, "load_s", load_s)
    own = signal.signal(number, lambda *_: None)  # a server that fails ends this test, and not the process of all tests
    before = signal.getsignal(number)
    artifact = Artifact(
        path=tmp_path, key="k", label="as-is", model="m", engine="fake", settings=Settings(), disk_mb=1, target={}
    )
    said: list[str] = []

    def end() -> None:
        deadline = time.monotonic() + 60
        while (load_s == 0) != any(line.startswith("Ready") for line in said) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        os.kill(os.getpid(), number)

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    try:
        serve(Slow(), artifact, Place(port=0), say=said.append)
        assert signal.getsignal(number) == before
    finally:
        ending.join(90)
        signal.signal(number, own)
    assert "port" in json.loads(capsys.readouterr().out)
    assert any(line.startswith("Ready") for line in said) == (load_s == 0)
