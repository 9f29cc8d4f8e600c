"""The doctor: each check finds its fault and says how to mend it, and nothing where there is none."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from locks import copy_venvs, make_home, make_locks, make_wheel

from quicksilver import doctor, engines, environments, hardware
from quicksilver.cli import run
from quicksilver.environments import MARKER, Marker, NativeBuild
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Endpoint, Engine, Settings
from quicksilver.nouns.engine import Abilities


class Tiny(Engine):
    """An engine of an environment of its own.

    For the tests.
    """

    name: ClassVar[str] = "tiny"
    format: ClassVar[str] = "tiny-weights"
    environment: ClassVar[str] = "tiny"
    modules: ClassVar[tuple[str, ...]] = ("qs_tiny",)
    abilities: ClassVar[Abilities] = Abilities(native=True)

    def version(self) -> str:
        return f"Tiny {environments.version(self.environment, 'qs-tiny')}"

    def build_native(self, build: NativeBuild) -> None:
        (build.target / "server").touch()

    @contextmanager
    def serve(
        self, artifact: Path, settings: Settings, *, port: int = 0, log: Path | None = None
    ) -> Iterator[Endpoint]:
        raise EngineError("It serves nothing.")
        yield


@pytest.fixture(autouse=True)
def home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_venvs(tmp_path_factory, monkeypatch)
    return make_home(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    find = engines.find
    monkeypatch.setattr(engines, "find", lambda name: Tiny() if name == "tiny" else find(name))
    monkeypatch.setattr(engines, "names", lambda: ["fake", "tiny"])
    return make_locks(tmp_path, monkeypatch)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with a compiler and cmake, and nothing else."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("c++", "cmake"):
        (folder / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def add() -> Path:
    return environments.add("tiny", say=lambda _: None)


def only(findings: list[doctor.Finding], check: str) -> doctor.Finding:
    (found,) = findings
    assert found.check == check
    assert found.problem.endswith(".")
    assert "\n" not in found.problem
    return found


def test_a_sound_engine_has_no_findings(tools: Path) -> None:
    add()
    assert doctor.examine("tiny") == []
    assert doctor.examine("fake") == []


def test_one_that_is_not_installed_says_the_one_command(tools: Path) -> None:
    found = only(doctor.examine("tiny"), "installed")
    assert found.kind == "missing"
    assert found.mend == "quicksilver engine add tiny"


def test_one_that_is_half_made_is_missing(home: Path, tools: Path) -> None:
    add()
    (home / "envs" / "tiny" / MARKER).unlink()
    assert "half made" in only(doctor.examine("tiny"), "installed").problem


def test_another_python_is_examined_instead(
    tmp_path: Path, locks: Path, monkeypatch: pytest.MonkeyPatch, tools: Path
) -> None:
    monkeypatch.setattr(Tiny, "python_variable", "TINY_PYTHON")
    monkeypatch.setenv("TINY_PYTHON", str(tmp_path / "none"))
    assert "TINY_PYTHON names" in only(doctor.examine("tiny"), "installed").problem
    monkeypatch.setenv("TINY_PYTHON", sys.executable)
    assert "qs_tiny can't be imported" in only(doctor.examine("tiny"), "imports").problem


def test_another_lock(locks: Path) -> None:
    add()
    assert doctor.other_lock(Tiny()) == []
    (locks / "tiny.lock").write_text("qs-tiny==2.0\n", encoding="utf-8")
    assert only(doctor.other_lock(Tiny()), "lock").mend == "quicksilver engine add tiny"


def test_no_lock_file(locks: Path) -> None:
    (locks / "tiny.lock").unlink()
    assert "no tiny.lock" in only(doctor.examine("tiny"), "lock").problem


def test_a_module_that_is_not_there_or_fails(home: Path) -> None:
    python = add()
    (folder,) = environments.packages(python)
    assert doctor.imports(Tiny()) == []
    (folder / "qs_tiny.py").write_text("raise RuntimeError('it lacks\\n a library')", encoding="utf-8")
    assert "a library" in only(doctor.imports(Tiny()), "imports").problem
    (folder / "qs_tiny.py").unlink()
    found = only(doctor.imports(Tiny()), "imports")
    assert "No module named 'qs_tiny'" in found.problem
    assert found.mend == "quicksilver engine remove tiny && quicksilver engine add tiny"


def test_a_module_that_kills_the_interpreter() -> None:
    (folder,) = environments.packages(add())
    (folder / "qs_tiny.py").write_text("import os; os.kill(os.getpid(), 4)", encoding="utf-8")
    assert "signal 4, as by an instruction" in only(doctor.imports(Tiny()), "imports").problem


def test_a_torchvision_of_another_torch(tmp_path: Path, locks: Path) -> None:
    clash = "raise RuntimeError('operator torchvision::nms does not exist')"
    make_wheel(tmp_path / "wheels", "torchvision", "0.28.0", clash)
    (locks / "tiny.lock").write_text("qs-tiny==1.0\ntorchvision==0.28.0\n", encoding="utf-8")
    python = add()
    found = only(doctor.torchvision(Tiny()), "torchvision")
    assert "operator torchvision::nms does not exist" in found.problem
    assert found.mend == f"{python} -m pip uninstall --yes torchvision"
    (environments.packages(python)[0] / "torchvision.py").write_text("", encoding="utf-8")
    assert doctor.torchvision(Tiny()) == []


@pytest.mark.parametrize("native", [True, False])
def test_packages_for_another_cpu(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(hardware, "instructions", lambda: ("AVX2",))
    monkeypatch.setattr(Tiny, "abilities", Abilities(native=native))
    monkeypatch.setattr(Tiny, "isa", ("AVX2",))
    assert doctor.processor(Tiny()) == []
    monkeypatch.setattr(Tiny, "isa", ("AVX2", "AVX-512"))
    found = only(doctor.processor(Tiny()), "processor")
    assert "AVX-512, which" in found.problem
    assert ("--native" in found.mend) == native
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert doctor.processor(Tiny()) == []


def test_a_native_build_of_another_cpu(home: Path) -> None:
    environments.add("tiny", say=lambda _: None, native=Tiny().build_native)
    assert doctor.native_build(Tiny()) == []
    file = home / "envs" / "tiny" / "native" / MARKER
    marker = Marker.model_validate_json(file.read_bytes())
    file.write_text(marker.model_copy(update={"instructions": ("AVX-9000",)}).model_dump_json(), encoding="utf-8")
    found = only(doctor.native_build(Tiny()), "native")
    assert "AVX-9000" in found.problem
    assert found.mend == "quicksilver engine add tiny --native"
    assert environments.native("tiny") is None
    file.write_text(marker.model_copy(update={"lock_sha256": "0"}).model_dump_json(), encoding="utf-8")
    assert "another version" in only(doctor.native_build(Tiny()), "native").problem
    assert environments.native("tiny") is None


@pytest.mark.parametrize(
    ("gone", "said"), [(["c++"], "no C++ compiler here"), (["c++", "cmake"], "compiler and no cmake")]
)
def test_no_compiler(tools: Path, gone: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.compiler(Tiny()) == []
    for name in gone:
        (tools / name).unlink()
    found = only(doctor.compiler(Tiny()), "compiler")
    assert said in found.problem
    assert found.kind == "limit"
    monkeypatch.setattr(Tiny, "abilities", Abilities())
    assert doctor.compiler(Tiny()) == []


def test_no_room_on_the_disk_or_in_memory(locks: Path, tools: Path) -> None:
    assert doctor.disk(Tiny()) == doctor.memory(Tiny()) == []
    (locks / "tiny.lock").write_text("# disk_mb: 90000000\n# memory_mb: 80000000\n", encoding="utf-8")
    assert "90,000,000 MB" in only(doctor.disk(Tiny()), "disk").problem
    assert "80,000,000 MB" in only(doctor.memory(Tiny()), "memory").problem
    assert [finding.check for finding in doctor.examine("tiny")] == ["installed", "memory", "disk"]


def test_the_default_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines.find("openvino")

    def version() -> str:
        raise EngineError("The engine openvino isn't installed; pip install 'quicksilver[serve]' adds it.")

    monkeypatch.setattr(engine, "version", version)
    found = only(doctor.missing(engine), "installed")
    assert (found.problem, found.mend) == ("The engine openvino isn't installed.", "pip install 'quicksilver[serve]'")


def test_an_engine_whose_file_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> Engine:
        raise EngineError(f"The engine {name!r} can't be imported: no module x.")

    monkeypatch.setattr(engines, "find", find)
    assert "no module x" in only(doctor.examine("tiny"), "import").problem


def test_installed_says_the_command_before_anything_else(locks: Path) -> None:
    with pytest.raises(EngineError, match="quicksilver engine add tiny"):
        engines.installed("tiny")
    add()
    assert engines.installed("tiny").version() == "Tiny 1.0"
    with pytest.raises(EngineError, match="has no other-package"):
        environments.version("tiny", "other-package")


# The command line


def said(args: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    assert run([*args, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_from_not_installed_to_removed(capsys: pytest.CaptureFixture[str], tools: Path) -> None:
    def row() -> dict[str, Any]:
        (found,) = [entry for entry in said(["engine", "list"], capsys) if entry["name"] == "tiny"]
        return dict(found)

    before = row()
    assert not before["installed"]
    assert before["add"] == "quicksilver engine add tiny"
    assert run(["engine"]) == 0
    assert "quicksilver engine add tiny adds tiny." in capsys.readouterr().out
    (tiny,) = [entry for entry in said(["engine", "doctor"], capsys) if entry["engine"] == "tiny"]
    assert [finding["check"] for finding in tiny["findings"]] == ["installed"]
    assert not said(["engine", "doctor", "tiny"], capsys, 1)[0]["sound"]

    added = said(["engine", "add", "tiny", "--native"], capsys)
    assert added["version"] == "Tiny 1.0"
    assert added["native"]
    assert Path(added["python"]).exists()
    after = row()
    assert (after["installed"], after["version"], after["format"]) == (True, "Tiny 1.0", "tiny-weights")
    assert after["bytes"] == added["bytes"] > 1000
    assert run(["engine"]) == 0
    assert "quicksilver engine add tiny adds tiny." not in capsys.readouterr().out
    assert said(["engine", "doctor", "tiny"], capsys) == [{"engine": "tiny", "sound": True, "findings": []}]

    assert said(["engine", "remove", "tiny"], capsys)["removed"] == "tiny"
    assert not row()["installed"]


def test_a_broken_engine_ends_the_doctor_with_exit_code_1(capsys: pytest.CaptureFixture[str], locks: Path) -> None:
    add()
    (locks / "tiny.lock").write_text("qs-tiny==2.0\n", encoding="utf-8")
    assert run(["engine", "doctor"]) == 1
    out = capsys.readouterr().out
    assert "tiny: broken\n" in out
    assert "mend: quicksilver engine add tiny" in out
    assert "fake: sound" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["add", "tinny"], "did you mean 'tiny'?"),
        (["remove", "tinny"], "did you mean 'tiny'?"),
        (["doctor", "tinny"], "did you mean 'tiny'?"),
        (["add", "fake"], "needs no environment of its own"),
        (["remove", "fake"], "no environment of its own"),
        (["remove", "tiny"], "nothing to remove"),
        (["add", "fake", "--native"], "needs no environment"),
    ],
)
def test_bad_input_is_one_sentence(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["engine", *args]) == BadInputError.exit_code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_an_environment_without_an_engine_is_listed_and_added(
    capsys: pytest.CaptureFixture[str], locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (locks / "builder.lock").write_text("qs-tiny==1.0\n", encoding="utf-8")
    (entry,) = [e for e in said(["engine", "list"], capsys) if e["name"] == "builder"]
    assert (entry["kind"], entry["installed"], entry["add"]) == ("environment", False, "quicksilver engine add builder")
    assert said(["engine", "add", "builder"], capsys)["version"] is None
    assert environments.python("builder").parent.parent.name == "builder"
    assert sys.executable != str(environments.python("builder"))
    assert run(["engine", "add", "builder", "--native"]) == BadInputError.exit_code
    assert doctor.examine("builder") == []
    environments.remove("builder")
    found = only(doctor.examine("builder"), "installed")
    assert (found.problem, found.mend) == ("builder isn't installed.", "quicksilver engine add builder")
