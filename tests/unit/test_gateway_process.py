"""The server's process: what it refuses, and what it says when it can't start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from quicksilver.engines.process import serve_process
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Settings
from quicksilver.serve.server import Place, _bind
from quicksilver.testing.tiny import make_tiny_model


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quicksilver.serve", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)


def test_a_host_that_others_can_reach_has_to_be_meant(folder: Path) -> None:
    done = run("--engine", "fake", "--artifact", str(folder), "--host", "0.0.0.0")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip() == (
        "error: 0.0.0.0 can be reached from other machines; set an API key, or add --insecure if that is meant."
    )


@pytest.mark.parametrize(
    ("settings", "said"), [('{"max_streams": 0}', "max_streams"), ('{"max_stream": 1}', "max_stream"), ("{", "JSON")]
)
def test_settings_that_make_no_sense_are_refused(folder: Path, settings: str, said: str) -> None:
    done = run("--engine", "fake", "--artifact", str(folder), "--port", "0", "--settings", settings)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_port_in_use_is_one_sentence(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("--engine", "fake", "--artifact", str(folder), "--port", str(port))
        assert done.returncode == 2
        assert done.stderr.strip() == f"error: Port {port} on 127.0.0.1 can't be used: address already in use."
        with (
            pytest.raises(BadInputError, match=f"Port {port}"),
            serve_process("fake", folder, Settings(), port=port),
        ):
            pass


def test_what_is_written_to_a_client_is_sent_at_once() -> None:
    with _bind(Place(port=0)) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_none_is_one_sentence(folder: Path) -> None:
    with pytest.raises(BadInputError, match="70000"), serve_process("fake", folder, Settings(), port=70000):
        pass


def test_the_last_words_of_a_server_that_dies_while_loading_are_the_error(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "server.log"
    settings = Settings(properties={"decod_ms": 1.0})
    with (
        pytest.raises(EngineError, match=r"^The fake engine has no property 'decod_ms'\.$"),
        serve_process("fake", folder, settings, log=log),
    ):
        pass
    assert "decod_ms" in log.read_text(encoding="utf-8")


def test_an_engine_that_can_t_read_its_artefact_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    broken = make_tiny_model(tmp_path / "model")
    (broken / "fake.json").write_text("{", encoding="utf-8")
    log = tmp_path / "server.log"
    with (
        pytest.raises(EngineError, match=r"could not open .* `quicksilver store verify`") as caught,
        serve_process("fake", broken, Settings(), log=log),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert "Traceback" not in log.read_text(encoding="utf-8")


def test_a_python_that_isn_t_there_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    python = str(tmp_path / "python")
    with pytest.raises(EngineError, match="No such file"), serve_process("fake", folder, Settings(), python=python):
        pass


def test_an_old_log_doesn_t_explain_a_new_death(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("error: something of yesterday.\n", encoding="utf-8")
    with (
        pytest.raises(EngineError, match="exit code"),
        serve_process("fake", folder, Settings(), log=log, python="false"),
    ):
        pass


def test_an_error_of_the_caller_stays_its_own(folder: Path) -> None:
    with pytest.raises(KeyError, match="mine"), serve_process("fake", folder, Settings()):
        raise KeyError("mine")


def test_memory_is_measured_while_it_runs_and_remembered_after(folder: Path) -> None:
    with serve_process("fake", folder, Settings()) as endpoint:
        during = endpoint.peak_memory_mb()
    assert during is not None
    assert during > 10
    assert endpoint.peak_memory_mb() == during


def test_the_server_needs_neither_torch_nor_transformers(folder: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom quicksilver.nouns import Settings\n"
        "import quicksilver.serve.gateway\nfrom quicksilver.sources.text import Tokenizer\nfrom quicksilver.engines import find\n"
        "Tokenizer(Path(sys.argv[1])).chat([{'role': 'user', 'content': 'a'}])\n"
        "find('fake').open(Path(sys.argv[1]), Settings()).close()\n"
        "print([m for m in ('torch', 'transformers', 'openvino', 'nncf') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
