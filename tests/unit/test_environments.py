"""Environments: whole or not there, resumed, made once, and what goes wrong is one sentence. The packages are made here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from disks import small_disk
from locks import copy_venvs, make_home, make_locks

from quicksilver import environments
from quicksilver.environments import NativeBuild, make_venv
from quicksilver.errors import BadInputError, EngineError, NotEnoughError
from quicksilver.hardware import instructions
from quicksilver.sources.home import HOME_VARIABLE

QUIET = {"say": lambda _: None}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_venvs(tmp_path_factory, monkeypatch)
    return make_home(tmp_path, monkeypatch)


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_locks(tmp_path, monkeypatch)


def version_in(python: Path) -> str:
    command = [str(python), "-c", "import qs_tiny; print(qs_tiny.VERSION)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_locks_of_this_checkout_are_found() -> None:
    assert (environments.folder_of_locks() / "default.lock").is_file()
    assert not {"default", "dev", "serve", "clients", "aiperf"} & set(environments.names())


def test_the_default_environment_is_ours() -> None:
    assert environments.python("default") == Path(sys.executable)


def test_one_that_is_not_there_says_the_one_command(locks: Path) -> None:
    with pytest.raises(EngineError, match=r"^The engine tiny isn't installed; quicksilver engine add tiny adds it\.$"):
        environments.python("tiny")
    with pytest.raises(EngineError, match=r"^LLM Compressor isn't installed; quicksilver engine add tiny adds it\.$"):
        environments.python("tiny", "LLM Compressor")
    with pytest.raises(BadInputError, match="'tiny'"):
        environments.python("tinny")


def test_it_is_made_once_and_can_be_removed(locks: Path, home: Path) -> None:
    said: list[str] = []
    python = environments.add("tiny", say=said.append)
    assert python == environments.python("tiny")
    assert version_in(python) == "1.0"
    assert "0.0 GB" in said[0]
    assert "1 min" in said[0]
    made = python.stat().st_ctime_ns
    said.clear()
    assert environments.add("tiny", say=said.append) == python
    assert said == []
    assert python.stat().st_ctime_ns == made
    (found,) = environments.find()
    assert found.name == "tiny"
    assert found.current
    assert found.size() > 1000
    assert environments.remove("tiny") > 1000
    assert environments.find() == []
    with pytest.raises(BadInputError, match="nothing to remove"):
        environments.remove("tiny")


def test_another_lock_makes_it_anew(locks: Path) -> None:
    python = environments.add("tiny", **QUIET)
    (locks / "tiny.lock").write_text("qs-tiny==2.0\n", encoding="utf-8")
    assert not environments.find()[0].current
    with pytest.raises(EngineError, match=r"another tiny\.lock; quicksilver engine add tiny brings it up to date"):
        environments.python("tiny")
    environments.add("tiny", **QUIET)
    assert version_in(python) == "2.0"


def test_what_pip_says_last_is_in_the_sentence_and_a_half_made_one_is_none(locks: Path, home: Path) -> None:
    (locks / "tiny.lock").write_text("qs-tiny==1.0\nqs-missing==9.9\n", encoding="utf-8")
    with pytest.raises(EngineError, match=r"No matching distribution found for qs-missing==9.9; the log is .*log\.$"):
        environments.add("tiny", **QUIET)
    assert "qs-missing" in (home / "envs" / "tiny.log").read_text(encoding="utf-8")
    with pytest.raises(EngineError, match="isn't installed"):
        environments.python("tiny")
    assert environments.find()[0].marker is None


def test_a_package_that_a_killed_pip_left_half_is_installed_again(locks: Path, home: Path) -> None:
    python = environments.add("tiny", **QUIET)
    folder = home / "envs" / "tiny"
    (folder / environments.MARKER).unlink()
    (module,) = folder.glob("lib/*/site-packages/qs_tiny.py")
    module.unlink()
    (module.parent / "qs_tiny-1.0.dist-info" / "INSTALLER").unlink()
    kept = folder / "kept"
    kept.touch()
    environments.add("tiny", **QUIET)
    assert version_in(python) == "1.0"
    assert kept.exists()  # it went on where it was


def test_what_pythonpath_names_is_not_in_the_environment(
    locks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    with zipfile.ZipFile(tmp_path / "wheels" / "qs_tiny-1.0-py3-none-any.whl") as wheel:
        wheel.extractall(elsewhere)
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    python = environments.add("tiny", **QUIET)
    assert [folder for folder in environments.packages(python) if (folder / "qs_tiny.py").is_file()]


ADD = (
    "import sys, pathlib; from quicksilver import environments as e\n"
    "e.folder_of_locks = lambda: pathlib.Path(sys.argv[1])\n"
    "e.add('tiny', say=lambda text: print(text, flush=True))"
)


def test_two_at_once_make_it_once(locks: Path) -> None:
    command = [sys.executable, "-c", ADD, str(locks)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("Installing tiny into" in text for text in said) == 1
    assert version_in(environments.python("tiny")) == "1.0"


def test_one_that_is_killed_leaves_nothing_that_looks_whole_and_no_pip(locks: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "requirements")  # pip waits for what nobody writes
    (locks / "tiny.lock").write_text(f"-r {tmp_path / 'requirements'}\n", encoding="utf-8")
    with subprocess.Popen([sys.executable, "-c", ADD, str(locks)], stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (found := pips(tmp_path)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    while pips(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found
    with pytest.raises(EngineError, match="isn't installed"):
        environments.python("tiny")
    (locks / "tiny.lock").write_text("qs-tiny==1.0\n", encoding="utf-8")
    assert version_in(environments.add("tiny", **QUIET)) == "1.0"


def pips(folder: Path) -> list[int]:
    """Return the processes that run a Python of an environment under a folder."""
    import psutil

    prefix = str(folder / "home" / "envs" / "tiny" / "bin")
    return [
        p.pid
        for p in psutil.process_iter(["cmdline"])
        if "install" in (words := p.info["cmdline"] or []) and words[0].startswith(prefix)
    ]


def test_a_full_disk_is_one_sentence(locks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "small", 1000) as disk:
        monkeypatch.setenv(HOME_VARIABLE, str(disk))
        monkeypatch.setattr(environments, "make_venv", make_venv)
        with pytest.raises(NotEnoughError, match="full"):
            environments.add("tiny", **QUIET)
    (locks / "tiny.lock").write_text("# disk_mb: 90000000\n", encoding="utf-8")
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    with pytest.raises(NotEnoughError, match=r"Installing tiny needs 90,000,000 MB"):
        environments.add("tiny", **QUIET)


def test_a_native_build_takes_its_place_when_it_is_whole(locks: Path) -> None:
    def fails(build: NativeBuild) -> None:
        (build.work / "object.o").touch()
        (build.target / "server").touch()
        build.run([build.python, "-c", "import sys; sys.exit('error: no such intrinsic')"])

    with pytest.raises(EngineError, match="no such intrinsic; the log is"):
        environments.add("tiny", native=fails, **QUIET)
    assert environments.python("tiny")
    assert environments.native("tiny") is None

    def works(build: NativeBuild) -> None:
        assert (build.work / "object.o").exists()
        build.run([build.python, "-c", f"open({str(build.target / 'server')!r}, 'w').write('1')"])

    environments.add("tiny", native=works, **QUIET)
    folder = environments.native("tiny")
    assert folder is not None
    assert (folder / "server").read_text(encoding="utf-8") == "1"
    assert (
        environments.find()[0].native
        == environments.Marker(
            lock_sha256=environments.find()[0].marker.lock_sha256,  # type: ignore[union-attr]
            python=".".join(map(str, sys.version_info[:3])),
            instructions=instructions(),
        )
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["[  0%] Building a.o", "[ 25%] Building b.o", "[ 50%] Linking c"], ["25%", "50%"]),
        (["[1/206] CXX a.o", "[103/206] CXX b.o", "[103/206] CXX c.o", "[206/206] Linking"], ["50%", "50%", "100%"]),
        (["-- Found Git", "[x%] no", "[ 10%]", "/src/a.cpp: warning: [ 50%] of it"], []),
    ],
    ids=["make", "ninja", "neither"],
)
def test_a_native_build_says_how_far_it_is(
    locks: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], said: list[str]
) -> None:
    monkeypatch.setattr(environments, "SAY_BUILT_EVERY_S", 0.0)
    heard: list[str] = []

    def prints(build: NativeBuild) -> None:
        (build.target / "server").touch()
        build.run(
            [build.python, "-c", f"import time\nfor line in {lines!r}: print(line, flush=True); time.sleep(0.01)"]
        )

    environments.add("tiny", say=heard.append, native=prints)
    built = [text for text in heard if "is built" in text]
    assert [text.split()[0] for text in built] == said
    assert all(re.fullmatch(r"\d+% is built; about 1 min left\.", text) for text in built)


def test_a_native_build_of_another_cpu_is_not_used(locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environments.add("tiny", native=lambda build: (build.target / "server").touch(), **QUIET)
    monkeypatch.setattr(environments, "instructions", lambda: ("AVX2",))
    has_more = set(instructions()) > {"AVX2"}
    assert (environments.native("tiny") is None) == has_more
