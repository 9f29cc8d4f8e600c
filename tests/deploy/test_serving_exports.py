"""A built artefact is exported, and what the container would run is run here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

from quicksilver import Recipe, api
from quicksilver.deploy._deployment import PORT

LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
TRIES, WAIT_S = 240, 0.25


def status(url: str, key: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with LOCAL.open(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_what_the_container_runs_serves_by_key(folder: Path, tmp_path: Path) -> None:
    artifact = api.build(Recipe(str(folder), engine="fake"))
    made = api.export(artifact.key, "docker-compose", out=tmp_path / "out")
    (service,) = yaml.safe_load((tmp_path / "out" / made.main).read_text(encoding="utf-8"))["services"].values()
    words = list(service["command"])
    assert words[0] == service["volumes"][0]["target"]
    words[0] = service["volumes"][0]["source"]
    assert words[words.index("--port") + 1] == str(PORT)
    words[words.index("--port") + 1] = "0"
    server = subprocess.Popen(
        [sys.executable, "-m", "quicksilver", "serve", *words],
        env=os.environ | {"QUICKSILVER_API_KEY": "secret"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = json.loads(server.stdout.readline())["port"]
        _, _, *probe = service["healthcheck"]["test"]
        probe = [sys.executable, *(word.replace(f":{PORT}/", f":{port}/") for word in probe)]
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        for _ in range(TRIES):
            if subprocess.run(probe, env=environment, check=False, stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(WAIT_S)
        assert status(f"http://127.0.0.1:{port}/health") == 200
        assert status(f"http://127.0.0.1:{port}/v1/models") == 401
        assert status(f"http://127.0.0.1:{port}/v1/models", "secret") == 200
    finally:
        server.terminate()
        server.wait(timeout=60)
