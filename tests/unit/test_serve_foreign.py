"""An engine's own server in the foreground: what ends it, before it is ready and after."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own, as it is served: the signals are that process's.
SERVED = '''
import signal, sys
from pathlib import Path

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
    abilities = Abilities(own_server=True)

    def command(self, artifact, settings, *, host, port, api_keys=()):
        return Command([sys.executable, "-c", SERVER, str(port), sys.argv[1]])

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
kept = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
artifact = Artifact(
    path=Path(sys.argv[2]), key="k", label="as-is", model="m", engine="fake", settings=Settings(), disk_mb=1, target={}
)
serve(Slow(), artifact, Place(port=0), say=lambda text: print(text, file=sys.stderr, flush=True))
assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == kept
'''


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("load_s", [0, 600])
def test_it_ends_when_it_is_told_to(number: signal.Signals, load_s: int, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVED, str(load_s), str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert "port" in json.loads(process.stdout.readline())
            said = [process.stderr.readline()]
            if load_s == 0:
                said.append(process.stderr.readline())
            process.send_signal(number)
            said += process.communicate(timeout=60)[1].splitlines()
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert any(line.startswith("Ready") for line in said) == (load_s == 0)
