"""A headless Chromium for tests of pages, driven over the DevTools protocol: no driver binary is needed."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class Page:
    """A tab: what it asked the network for, what it wrote to the console, and what it shows."""

    def __init__(self, socket: websocket.WebSocket) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._loaded = False
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result; events that come before it are noted."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.problems.append(params["entry"]["text"])
            case "Page.loadEventFired":
                self._loaded = True

    def look(self, *, width: int = 1280, dark: bool = False, scripts: bool = True, media: str = "") -> None:
        """Set how the page is looked at; before `open`."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)

    def open(self, file: Path) -> None:
        """Open a file and wait until it is loaded."""
        self._loaded = False
        self.send("Page.navigate", url=file.as_uri())
        while not self._loaded:
            self._note(json.loads(self._socket.recv()))

    def eval(self, expression: str) -> Any:
        """Evaluate JavaScript (a promise is waited for) and return its value."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until a JavaScript expression holds; the socket's own timeout bounds each look."""
        deadline = time.monotonic() + 60
        while not self.eval(f"Boolean({expression})"):
            assert time.monotonic() < deadline, f"never true: {expression}; {self.problems}"
            time.sleep(0.05)

    def screenshot(self, file: Path) -> None:
        """Write the whole page as a PNG."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
        file.write_bytes(base64.b64decode(data))


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a browser's DevTools; the tests are skipped if the machine has none."""
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        message = f"no browser on PATH (looked for {', '.join(NAMES)})"
        if os.environ.get("QUICKSILVER_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    profile = tmp_path_factory.mktemp("profile")
    process = subprocess.Popen(
        [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HOME": str(profile)},  # it writes to the home folder besides
    )
    try:
        yield _address(process, profile)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], profile: Path) -> str:
    """Wait for the browser to say where it listens."""
    deadline, file = time.monotonic() + 60, profile / "DevToolsActivePort"
    while not (file.exists() and len(file.read_text(encoding="utf-8").split()) == 2):
        assert process.poll() is None, f"the browser ended with code {process.returncode}"
        assert time.monotonic() < deadline, "the browser didn't start"
        time.sleep(0.05)
    port, path = file.read_text(encoding="utf-8").split()
    return f"ws://127.0.0.1:{port}{path}"


@pytest.fixture
def page(chromium: str) -> Iterator[Page]:
    """A fresh tab."""
    browser = websocket.create_connection(chromium, timeout=60, suppress_origin=True)
    try:
        browser.send(json.dumps({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}))
        target = json.loads(browser.recv())["result"]["targetId"]
        host = chromium.split("/devtools/", maxsplit=1)[0]
        socket = websocket.create_connection(f"{host}/devtools/page/{target}", timeout=60, suppress_origin=True)
        try:
            yield Page(socket)
        finally:
            socket.close()
            browser.send(json.dumps({"id": 2, "method": "Target.closeTarget", "params": {"targetId": target}}))
            browser.recv()
    finally:
        browser.close()
