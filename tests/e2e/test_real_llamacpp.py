"""llama.cpp on the real model: served as it comes in the foreground, rounded anew, and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quicksilver import api, environments
from quicksilver.engines import find
from quicksilver.errors import EngineError
from quicksilver.nouns import Artifact, Endpoint, Recipe, Settings
from quicksilver.techniques import make
from quicksilver.testing.engine_contract import ask, open_answer, until

MODEL = "smollm2-135m-instruct"
QUESTION = {"messages": [{"role": "user", "content": "At which temperature does water boil?"}], "max_tokens": 24}


@pytest.fixture(scope="module")
def installed(shared_home: Path) -> Path:
    environments.add("llamacpp", say=print)
    return shared_home


@pytest.fixture(scope="module")
def as_it_comes(installed: Path) -> Artifact:
    return api.build(Recipe(MODEL, engine="llamacpp", settings=Settings(max_streams=2)))


@pytest.mark.real
@pytest.mark.timeout(600)
def test_served_in_the_foreground_it_answers_and_ends(as_it_comes: Artifact) -> None:
    assert (as_it_comes.path / "model.gguf").stat().st_size == 98_362_432
    command = [sys.executable, "-m", "quicksilver", "serve", str(as_it_comes.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            port = json.loads(server.stdout.readline())["port"]
            endpoint = Endpoint(url=f"http://127.0.0.1:{port}/v1", model=MODEL)
            until(lambda: _answers(endpoint))
            said = ask(endpoint, "/chat/completions", QUESTION | {"temperature": 0})
            assert "boil" in said["choices"][0]["message"]["content"]
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


@pytest.mark.real
@pytest.mark.timeout(900)
def test_rounded_anew_it_says_much_the_same(as_it_comes: Artifact) -> None:
    recipe = Recipe(
        MODEL, [make({"name": "k-quant", "type": "q8_0"})], engine="llamacpp", settings=Settings(max_streams=2)
    )
    rounded = api.build(recipe)
    assert 1.3 < rounded.disk_mb / as_it_comes.disk_mb < 1.6
    with find("llamacpp").serve(rounded.path, rounded.settings) as endpoint:
        said = ask(endpoint, "/chat/completions", QUESTION | {"temperature": 0})["choices"][0]["message"]["content"]
        assert "boil" in said
        lines = ask(
            endpoint, "/completions", {"prompt": [504, 3575, 282, 4649, 314], "max_tokens": 4, "temperature": 0}
        )
        assert "Paris" in lines["choices"][0]["text"]


@pytest.mark.real
def test_a_server_that_dies_says_how(as_it_comes: Artifact) -> None:
    served = find("llamacpp").serve(as_it_comes.path, as_it_comes.settings)
    with pytest.raises(EngineError, match="SIGKILL"), served as endpoint:
        assert endpoint.pid is not None
        os.kill(endpoint.pid, signal.SIGKILL)
        until(lambda: not endpoint.alive())


def _answers(endpoint: Endpoint) -> bool:
    try:
        return open_answer(endpoint, "//health", None).status == 200
    except OSError:
        return False
