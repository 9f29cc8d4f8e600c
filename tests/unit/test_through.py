"""The benchmark of what driving an engine through us costs: how it finds the server, and how it takes turns."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from quicksilver import engines
from quicksilver.errors import EngineError
from quicksilver.nouns import Endpoint, Settings
from quicksilver.testing.tiny import make_tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("through", "gateway", "decoder", "peer_servers", "stamp"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("through")


def test_by_hand_is_the_same_command_on_another_port(through: Any) -> None:
    words = ("python", "server.py", "--model", "m.gguf", "--port", "8080", "--parallel", "8080")
    assert through.by_hand(words, 9) == [
        "python",
        "server.py",
        "--model",
        "m.gguf",
        "--port",
        "9",
        "--parallel",
        "8080",
    ]


def test_a_command_that_is_kept_names_no_place_of_this_machine(through: Any) -> None:
    words = ["/home/me/bin/llama-server", "--model", "/tmp/m.gguf", "--port", "9", "--temp", "1"]
    assert through.nameless(words) == ["llama-server", "--model", "m.gguf", "--port", "9", "--temp", "1"]


def test_the_engines_server_is_the_last_below_ours(through: Any) -> None:
    inner = "import time; time.sleep(60)"
    # As a guard does, the one in the middle carries the command that it runs.
    guard = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    words = [sys.executable, "-c", guard, sys.executable, "-c", inner, "--port", "1234"]
    outer = subprocess.Popen([sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", *words])
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                found = through.server_of(Endpoint(url="", model="", pid=outer.pid))
                if inner == found.words[2]:
                    break
            except EngineError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert found.words == (sys.executable, "-c", inner, "--port", "1234")
        assert found.environment
    finally:
        import psutil

        for process in psutil.Process(outer.pid).children(recursive=True):
            process.kill()
        outer.wait()


def test_without_a_server_below_it_is_refused(through: Any) -> None:
    quiet = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(EngineError, match="0 processes"):
            through.server_of(Endpoint(url="", model="", pid=quiet.pid))
    finally:
        quiet.kill()
        quiet.wait()


def test_both_sides_answer_the_same_prompts_in_turns(
    through: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(through, "STREAMS", {1: 1, 2: 2})
    model = make_tiny_model(tmp_path / "tiny")
    prompts = [[5, 6, 7 + n] for n in range(through.WARM_UP + 2 * 3)]
    with engines.find("fake").serve(model, Settings()) as endpoint:
        rates = through.compare({"through us": endpoint, "by hand": endpoint}, prompts, 2)
    assert {side: {c: len(found) for c, found in own.items()} for side, own in rates.items()} == {
        "through us": {1: 2, 2: 2},
        "by hand": {1: 2, 2: 2},
    }
    said = [line.split(":")[1].split(",")[0].strip() for line in capsys.readouterr().err.splitlines()]
    assert said == ["through us", "by hand", "by hand", "through us", "by hand", "through us", "through us", "by hand"]


def test_an_engine_that_is_missing_is_named(
    through: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(engine: str, *_: object) -> None:
        raise EngineError(f"The engine {engine} isn't installed.")

    monkeypatch.setattr(through, "measure", missing)
    assert through.main(["--engines", "llamacpp"]) == 0
    assert '"failed": {"llamacpp": "The engine llamacpp isn\'t installed."}' in capsys.readouterr().out
