"""Build: steps in workers, artefacts in the store, and every way in which that can end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from disks import read_only, small_disk

from quicksilver import techniques
from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.build import store
from quicksilver.build.store import keys
from quicksilver.errors import BadInputError, BuildError, IllegalRecipeError, NotEnoughError
from quicksilver.nouns import Artifact, Prompt, Recipe
from quicksilver.recipes import from_document
from quicksilver.sources import models
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.techniques import make
from quicksilver.testing.tiny import make_tiny_gguf, make_tiny_model

WAIT_S = 60
PLUGIN = '''
"""Misbehaves in a chosen way, as an installed package of somebody else's would bring it."""

import os, signal, subprocess, sys, tempfile, time

import numpy as np

from quicksilver.errors import BadInputError
from quicksilver.nouns.technique import Step, Technique


class Misbehave(Technique):
    """Misbehave."""

    needs = frozenset({"engine format"})
    builds = True

    how: str = "not"

    def build(self, step: Step) -> None:
        file = step.target / "made.txt"
        file.write_text("half")
        if self.how == "raise":
            raise RuntimeError("the wheel came off\\nat line 3")
        if self.how == "openvino":
            raise RuntimeError("Exception from src/core.cpp:90:\\nCheck 'x' failed at src/y.cpp:1:\\nthe graph has no output")
        if self.how == "bad input":
            raise BadInputError("The paper is the wrong way round.")
        if self.how == "memory":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        if self.how == "missing":
            open("/nowhere/at/all")
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "abort":
            os.write(2, b"memory allocation of 3 bytes failed\\n")
            os.abort()
        if self.how == "exit":
            print("one last word", file=sys.stderr, flush=True)
            os._exit(7)
        if self.how == "nothing":
            return file.unlink()
        if self.how == "chatter":
            for n in range(3000):
                print("{not json", n)
                os.write(1, b"raw bytes \\xff on stdout\\n")
            subprocess.run(["echo", "a child's words"])
            step.say("in between")
        if self.how == "large":
            np.ones(40_000_000).sum()
            (step.target / "large").write_bytes(b"1" * 300_000)
        if self.how == "slow":
            temporary = tempfile.mkdtemp()
            step.say(f"{os.getpid()} {temporary}")
            time.sleep(600)
        file.write_text("whole")
'''
ENGINE = '''
"""An engine of somebody else's, whose format any technique builds for itself."""

from quicksilver.nouns import Engine


class Plain(Engine):
    name = "plain"
    format = "plain"

    def version(self):
        return "1"

    def apply(self, technique, step):
        if technique.name() == "as-is":
            (step.target / "weights").write_text("weights")
        else:
            technique.build(step)

    def serve(self, artifact, settings, *, port=0, log=None):
        raise NotImplementedError
'''


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("build") / "tiny")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a package with a technique and an engine, for this process and those that it starts."""
    folder = tmp_path / "site"
    information = folder / "plugin-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / "misbehave.py").write_text(PLUGIN, encoding="utf-8")
    (folder / "plain.py").write_text(ENGINE, encoding="utf-8")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n", encoding="utf-8")
    (information / "entry_points.txt").write_text(
        "[quicksilver.techniques]\nmisbehave = misbehave\n[quicksilver.engines]\nplain = plain\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    techniques.names.cache_clear()
    techniques.find.cache_clear()
    yield folder
    techniques.names.cache_clear()
    techniques.find.cache_clear()
    for name in ("misbehave", "plain"):
        sys.modules.pop(name, None)


def plan(path: Path, *stack: Any, engine: str = "fake", calibration: tuple[Prompt, ...] = ()) -> planning.Plan:
    recipe = Recipe(str(path), [make(t) for t in stack], engine=engine)
    return planning.make(recipe, models.resolve(str(path)), calibration)


def misbehaving(path: Path, how: str) -> planning.Plan:
    return plan(path, {"name": "misbehave", "how": how}, engine="plain")


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def leavings(home: Path) -> list[Path]:
    return list((home / "store" / "work").iterdir()) if (home / "store" / "work").is_dir() else []


# What is built


def test_a_recipe_becomes_an_artefact(tiny: Path) -> None:
    said: list[str] = []
    made = plan(tiny, "int8", "prompt-lookup")
    assert not made.built
    assert len(made.missing) == 2
    artifact = building.build(made, say=said.append)
    assert artifact == Artifact.open(store.path(made.key))
    assert (artifact.label, artifact.model, artifact.engine) == ("int8 + prompt-lookup", "tiny", "fake")
    assert artifact.settings.speculation is not None
    assert artifact.settings.speculation.kind == "prompt_lookup"
    assert said == ["step 1 of 2: as-is", "step 2 of 2: int8"]
    assert [t["name"] for t in json.loads((artifact.path / "fake.json").read_text(encoding="utf-8"))["techniques"]] == [
        "as-is",
        "int8",
    ]
    for key in keys():
        assert store.verify(key) == []


def test_the_artefacts_manifest_says_what_it_is_and_nothing_of_this_machine(tiny: Path, tmp_path: Path) -> None:
    draft = make_tiny_model(tmp_path / "draft", layers=1)
    made = plan(tiny, "int8", {"name": "draft", "model": str(draft)})
    artifact = building.build(made)
    manifest = store.manifest(made.key)
    assert manifest.keys() == {
        "key", "kind", "created", "label", "model", "fingerprint", "licence", "tools", "target", "steps", "files",
    }  # fmt: skip
    assert manifest["kind"] == "artifact"
    assert manifest["fingerprint"] == made.model.fingerprint
    assert manifest["steps"] == [step.key for step in made.steps]
    assert manifest["target"].keys() == {"engine", "isa"}
    assert "quicksilver" in manifest["tools"]
    for key in keys():
        for file in store.path(key).rglob("*.json"):
            for place in (tmp_path, tiny.parent):
                assert str(place) not in file.read_text(encoding="utf-8")
    recipe = from_document(json.loads((artifact.path / "recipe.json").read_text(encoding="utf-8"))["recipe"])
    assert [t.name() for t in recipe.techniques] == ["int8", "draft"]
    assert (artifact.path / "recipe.json").stat().st_mode & 0o222 == 0


def test_a_second_run_builds_nothing_and_needs_no_steps(tiny: Path, home: Path) -> None:
    building.build(plan(tiny, "int8"))
    before = {key: store.manifest(key)["created"] for key in keys()}
    again = plan(tiny, "int8")
    assert again.built
    assert again.missing == ()
    assert again.expected_s == 0
    said: list[str] = []
    building.build(again, say=said.append)
    assert said == []
    assert {key: store.manifest(key)["created"] for key in keys()} == before
    store.prune()
    with read_only(home):
        artifact = building.build(plan(tiny, "int8"))
    assert keys() == [artifact.key]


def test_only_what_is_missing_is_built(tiny: Path) -> None:
    building.build(plan(tiny, "int8"))
    said: list[str] = []
    building.build(plan(tiny, "int8", "prompt-lookup"), say=said.append)
    assert said == []
    building.build(plan(tiny, {"name": "int8", "mode": "symmetric"}), say=said.append)
    assert [line.split(",")[0] for line in said] == ["step 2 of 2: int8(mode=symmetric)"]


def test_a_step_whose_source_was_pruned_serves_on(tiny: Path) -> None:
    first = plan(tiny, "int8")
    building.build(first)
    store.prune([first.steps[0].key])
    again = plan(tiny, "int8", "kv-cache")
    assert again.missing == ()
    said: list[str] = []
    building.build(again, say=said.append)
    assert said == []


def test_the_second_build_is_told_how_long_the_first_took(tiny: Path) -> None:
    first = plan(tiny, "int8")
    building.build(first)
    store.prune([first.key, *(step.key for step in first.steps)])
    again = plan(tiny, "int8")
    assert [step.built for step in again.steps] == [False, False]
    assert again.expected_s is not None
    assert again.expected_s > 0
    assert all(10 < step.memory_mb < 4000 for step in again.steps)


def test_a_gguf_is_converted_first(tmp_path: Path) -> None:
    made = plan(make_tiny_gguf(tmp_path / "tiny.gguf", weights="Q4_1"), "gguf-grid")
    building.build(made)
    assert [step.label for step in made.steps] == ["convert GGUF", "as-is", "gguf-grid"]
    converted = store.manifest(made.steps[0].key)["files"]
    assert {"config.json", "tokenizer.json", "model.safetensors", "gguf_grid.safetensors"} <= converted.keys()
    assert "gguf_grid.safetensors" not in store.manifest(made.key)["files"]


def test_a_users_files_stay_the_users(tmp_path: Path) -> None:
    mine = make_tiny_model(tmp_path / "mine")
    artifact = building.build(plan(mine))
    config = mine / "config.json"
    assert config.stat().st_mode & 0o200
    assert config.stat().st_nlink == 1
    config.write_text("{}", encoding="utf-8")
    assert store.verify(artifact.key) == []


def test_a_calibrated_technique_reads_the_workloads_prompts(tiny: Path, plugin: Path) -> None:
    (plugin / "misbehave.py").write_text(
        PLUGIN.replace('how: str = "not"', 'how: str = "not"\n    calibrated = True').replace(
            'file.write_text("whole")', "file.write_text(repr(step.calibration))"
        ),
        encoding="utf-8",
    )  # fmt: skip
    engine = plugin / "plain.py"
    copies = 'import shutil\n            shutil.copy(step.source / "tokenizer.json", step.target)\n            '
    engine.write_text(ENGINE.replace("(step.target", f"{copies}(step.target", 1), encoding="utf-8")
    with pytest.raises(IllegalRecipeError, match="misbehave is calibrated on a workload's prompts, and there are none"):
        building.build(misbehaving(tiny, "not"))
    made = plan(
        tiny,
        "misbehave",
        engine="plain",
        calibration=(Prompt(id="a", prompt="The river"), Prompt(id="b", token_ids=(5, 6, 7))),
    )
    artifact = building.build(made)
    first, second = json.loads((artifact.path / "made.txt").read_text(encoding="utf-8"))
    assert len(first) > 0
    assert second == [5, 6, 7]


def test_the_fake_engine_is_built_for_without_the_heavy_stack(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traps = tmp_path / "traps"
    traps.mkdir()
    for name in ("torch", "transformers", "openvino", "openvino_genai", "openvino_tokenizers", "nncf", "optimum"):
        (traps / f"{name}.py").write_text("raise SystemExit('a heavy library was imported')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(traps), prepend=os.pathsep)
    script = (
        "import sys\nfrom quicksilver.build import build, plan\nfrom quicksilver.nouns import Recipe\n"
        "from quicksilver.sources import models\nfrom quicksilver.techniques import make\n"
        "r = Recipe(sys.argv[1], [make('int8')], engine='fake')\n"
        "print(build.build(plan.make(r, models.resolve(sys.argv[1]))).label)"
    )
    shown = subprocess.run([sys.executable, "-c", script, str(tiny)], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "int8"


# How steps fail


@pytest.mark.parametrize(
    ("how", "kind", "sentence"),
    [
        ("raise", BuildError, r"The step misbehave\(how=raise\) failed: RuntimeError: the wheel came off\."),
        ("openvino", BuildError, r"The step .* failed: RuntimeError: the graph has no output\."),
        ("bad input", BadInputError, r"The paper is the wrong way round\."),
        ("memory", NotEnoughError, r"The step misbehave\(how=memory\) ran out of memory\."),
        ("missing", BuildError, r"The step .* couldn't read or write /nowhere/at/all: no such file or directory\."),
        ("killed", NotEnoughError, r"The step .* was killed \(SIGKILL\), most likely because memory ran out\."),
        ("crash", BuildError, r"The step misbehave\(how=crash\) crashed \(SIGSEGV\)\."),
        ("abort", NotEnoughError, r"The step misbehave\(how=abort\) ran out of memory\."),
        ("exit", BuildError, r"The step misbehave\(how=exit\) failed: one last word\."),
        ("nothing", BuildError, r"The step misbehave\(how=nothing\) left no files\."),
    ],
)
@pytest.mark.usefixtures("plugin")
def test_a_step_that_fails_is_one_sentence_and_leaves_nothing(
    how: str, kind: type[Exception], sentence: str, tiny: Path, home: Path
) -> None:
    made = misbehaving(tiny, how)
    with pytest.raises(kind, match=f"^{sentence}$"):
        building.build(made)
    assert [step.built for step in misbehaving(tiny, how).steps] == [True, False]
    assert not store.has(made.key)
    assert leavings(home) == []


def test_what_libraries_print_does_not_get_in_the_way(tiny: Path, plugin: Path, tmp_path: Path) -> None:
    said: list[str] = []
    log = tmp_path / "logs" / "build.log"
    building.build(misbehaving(tiny, "chatter"), say=said.append, log=log)
    assert said[-1] == "misbehave(how=chatter): in between"
    written = log.read_bytes()
    assert written.count(b"{not json") == written.count(b"raw bytes \xff on stdout") == 3000
    assert b"a child's words" in written


def test_a_log_is_named_and_only_its_own_part_is_quoted(tiny: Path, plugin: Path, tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    log.write_text("words of another run\n", encoding="utf-8")
    with pytest.raises(BuildError, match=rf"failed: one last word; the log is {log}\.$"):
        building.build(misbehaving(tiny, "exit"), log=log)
    quiet = PLUGIN.replace('print("one last word"', 'str("nothing"').replace("file=sys.stderr, flush=True", "")
    (plugin / "misbehave.py").write_text(quiet, encoding="utf-8")
    with pytest.raises(BuildError, match="failed: exit code 7; the log"):
        building.build(misbehaving(tiny, "exit"), log=log)
    with pytest.raises(BadInputError, match=r"The log .* can't be written: "):
        building.build(misbehaving(tiny, "exit"), log=log / "below a file")


def test_a_file_beside_the_user_does_not_stand_in_for_a_library(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pydantic.py").write_text("raise SystemExit('not pydantic')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert building.build(plan(tiny)).label == "as-is"


def test_no_memory_stops_it_before_anything_starts(tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quicksilver.build.plan.available_memory", lambda: 1)
    with pytest.raises(NotEnoughError, match=r"needs about .* MB of memory and 0 MB are free"):
        building.build(plan(tiny))
    assert keys() == []
    assert leavings(home) == []


def test_a_read_only_home_is_one_sentence(tiny: Path, home: Path) -> None:
    home.mkdir()
    made = plan(tiny)
    with read_only(home), pytest.raises(BadInputError, match="can't be written to"):
        building.build(made)


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing(
    tiny: Path, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "small", 200) as disk:
        monkeypatch.setenv(HOME_VARIABLE, str(disk / "home"))
        monkeypatch.setattr("quicksilver.build.plan.check_room", lambda *_: None)
        with pytest.raises(
            NotEnoughError, match=r"^The step misbehave\(how=large\) couldn't write all of its files: the disk"
        ):
            building.build(misbehaving(tiny, "large"))
        assert leavings(disk / "home") == []
        assert len(keys()) == 1


def test_memory_is_the_steps_own(tiny: Path, plugin: Path) -> None:
    """Of the process that builds, a worker inherits the figure that getrusage starts with."""
    ballast = b"1" * 600_000_000
    building.build(misbehaving(tiny, "not"))
    del ballast
    building.build(misbehaving(tiny, "large"))
    small, large = misbehaving(tiny, "not").steps[1], misbehaving(tiny, "large").steps[1]
    assert small.memory_mb < 300 < large.memory_mb < 600


# Killed, at once


SCRIPT = textwrap.dedent("""
    import sys
    from quicksilver.build import build, plan
    from quicksilver.errors import QuicksilverError
    from quicksilver.nouns import Recipe
    from quicksilver.sources import models
    from quicksilver.techniques import make
    recipe = Recipe(sys.argv[1], [make({"name": "misbehave", "how": sys.argv[2]})], engine="plain")
    made = plan.make(recipe, models.resolve(sys.argv[1]))
    try:
        print(build.build(made, say=lambda text: print(text, flush=True)).key)
    except QuicksilverError as error:
        print("error", error)
""")


def building_process(tiny: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(tiny), how], stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str], beginning: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return line.removeprefix(beginning).strip()
    raise AssertionError(f"no line begins with {beginning!r}")


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_killed_build_takes_its_worker_along_and_the_next_run_builds(tiny: Path, plugin: Path, home: Path) -> None:
    with building_process(tiny, "slow") as process:
        worker, temporary = line_of(process, "misbehave(how=slow): ").split()
        assert is_alive(int(worker))
        assert Path(temporary).is_relative_to(home)
        process.send_signal(signal.SIGKILL)
    until(lambda: not is_alive(int(worker)))
    assert leavings(home) != []
    assert len(keys()) == 1
    assert not store.has(misbehaving(tiny, "slow").key)
    (plugin / "misbehave.py").write_text(PLUGIN.replace("time.sleep(600)", "time.sleep(0)"), encoding="utf-8")
    artifact = building.build(misbehaving(tiny, "slow"))
    assert leavings(home) == []
    assert store.verify(artifact.key) == []
    assert (artifact.path / "made.txt").read_text(encoding="utf-8") == "whole"


def test_a_killed_worker_is_told_from_a_failed_one(tiny: Path, plugin: Path) -> None:
    with building_process(tiny, "slow") as process:
        worker, _ = line_of(process, "misbehave(how=slow): ").split()
        os.kill(int(worker), signal.SIGKILL)
        assert "was killed (SIGKILL)" in line_of(process, "error")


def test_an_interrupted_build_leaves_nothing(tiny: Path, plugin: Path, home: Path) -> None:
    with building_process(tiny, "slow") as process:
        worker, _ = line_of(process, "misbehave(how=slow): ").split()
        process.send_signal(signal.SIGINT)
    until(lambda: not is_alive(int(worker)))
    assert leavings(home) == []


def test_two_builds_at_once_build_each_step_once(tiny: Path, plugin: Path) -> None:
    with building_process(tiny, "not") as first, building_process(tiny, "not") as second:
        outputs = [process.communicate(timeout=WAIT_S)[0].splitlines() for process in (first, second)]
    assert outputs[0][-1] == outputs[1][-1] == misbehaving(tiny, "not").key
    started = [line for lines in outputs for line in lines if line.startswith("step ")]
    assert sorted(line.split(",")[0] for line in started) == ["step 1 of 2: as-is", "step 2 of 2: misbehave"]
    for key in keys():
        assert store.verify(key) == []
