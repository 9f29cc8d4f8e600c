"""The commands that work: build, store, optimize, bench and serve, on the fake engine and in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from quicksilver import api
from quicksilver.build import store
from quicksilver.cli import run
from quicksilver.nouns import Recipe, Result
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.techniques.prompt_lookup import PromptLookup
from quicksilver.testing.tiny import make_tiny_model

SUPPORT = str(Path(__file__).parents[2] / "examples" / "workloads" / "support.jsonl")
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("cli") / "tiny", "llama")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def recipe_file(folder: Path, tiny: Path, *techniques: str) -> str:
    path = folder / "recipe.toml"
    path.write_text(
        f'model = "{tiny}"\nengine = "fake"\ntechniques = {json.dumps(list(techniques))}\n', encoding="utf-8"
    )
    return str(path)


def output(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@contextmanager
def started(*args: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a process of its own, which is gone at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "quicksilver", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_build_shows_its_plan_first_and_is_there_the_second_time(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe_file(tmp_path, tiny, "prompt-lookup")
    assert run(["build", file, "--dry-run", "--json"]) == 0
    plan = output(capsys)
    assert [step["built"] for step in plan["steps"]] == [False]
    assert plan["steps"][0]["memory_mb"] > 0
    assert store.keys() == []

    assert run(["build", file]) == 0
    out, err = capsys.readouterr()
    assert out == f"{store.path(plan['key'])}\n"
    assert err.index("To build: 1 step, a time not yet known here") < err.index("Built prompt-lookup of tiny")
    assert f"quicksilver serve {plan['key']}" in err

    assert run(["build", file, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["key"] == plan["key"]
    assert "Everything is built." in err
    assert run(["build", file, "--dry-run", "--json"]) == 0
    again = output(capsys)
    assert again["key"] == plan["key"]
    assert again["steps"][0]["built"]
    assert again["steps"][0]["last_s"] > 0


def test_flags_build_the_same_as_a_file(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [str(tiny), "-t", "prompt-lookup", "-s", "prompt-lookup.tokens=5", "--engine", "fake"]
    assert run(["build", *flags, "--dry-run", "--json"]) == 0
    by_flags = output(capsys)["key"]
    assert run(["build", *flags, "--print-recipe"]) == 0
    (tmp_path / "printed.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert run(["build", "printed.toml", "--dry-run", "--json"]) == 0
    assert output(capsys)["key"] == by_flags
    assert by_flags == api.plan(Recipe(str(tiny), [PromptLookup(tokens=5)], engine="fake")).key


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["-t", "awq", "-t", "int8"], 2, "int8 can't be stacked on awq"),
        (["-t", "int8", "-t", "int8"], 2, "int8 stands twice"),
        (["-t", "awq", "-s", "awq.group_size=48"], 2, "48 doesn't divide its hidden size of 64"),
        (["-t", "awq", "-s", "awq.bits=5"], 2, "awq: bits: "),
        (["-t", "awq", "--workload", "nowhere.jsonl"], 2, "There is no file 'nowhere.jsonl'"),
    ],
)
def test_an_illegal_recipe_is_refused_before_anything_is_built(
    args: list[str], code: int, said: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = [] if "--workload" in args else ["--workload", SUPPORT]
    assert run(["build", str(tiny), "--engine", "fake", *workload, *args]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert store.keys() == []


def test_a_recipe_file_leaves_no_room_for_flags(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", recipe_file(tmp_path, tiny), "-t", "int8"]) == 2
    assert "A recipe file says all of it" in capsys.readouterr().err


def test_the_store_is_listed_checked_moved_and_emptied(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["build", recipe_file(tmp_path, tiny, "prompt-lookup"), "--json"]) == 0
    key = output(capsys)["key"]
    assert run(["store", "list", "--json"]) == 0
    listed = {entry["key"]: entry for entry in output(capsys)}
    assert {entry["kind"] for entry in listed.values()} == {"step", "artifact"}
    assert listed[key]["label"] == "prompt-lookup"
    assert run(["store"]) == 0
    assert "2 objects" in capsys.readouterr().out
    assert run(["store", "show", key[:6]]) == 0
    assert "recipe.json" in capsys.readouterr().out
    assert run(["store", "verify"]) == 0
    assert capsys.readouterr().out == "2 objects are sound.\n"
    assert run(["store", "export", key[:6], "kept.tar"]) == 0
    capsys.readouterr()

    assert run(["store", "prune", "--json"]) == 0
    pruned = output(capsys)
    assert pruned["removed"] == 1
    assert pruned["freed_bytes"] > 0
    assert store.keys() == [key]
    assert run(["store", "prune", "--older-than", "1", "--json"]) == 0
    assert output(capsys) == {"removed": 0, "swept": 0, "freed_bytes": 0}
    assert run(["store", "prune", "--all"]) == 0
    assert "Removed 1 object; " in capsys.readouterr().out
    assert store.keys() == []

    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "elsewhere"))
    assert run(["store", "import", "kept.tar"]) == 0
    assert capsys.readouterr().out == f"{key}\n"
    assert run(["store", "verify", key]) == 0
    assert run(["store", "prune", key]) == 0


def test_what_is_damaged_is_named_and_can_be_removed(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build", recipe_file(tmp_path, tiny), "--json"]) == 0
    key = output(capsys)["key"]
    victim = store.path(key) / "config.json"
    victim.chmod(0o644)
    victim.write_text("{}", encoding="utf-8")
    assert run(["store", "verify", key]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{key}: config.json has 2 bytes instead of " in err
    manifest = store.path(key) / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{", encoding="utf-8")
    assert run(["store", "list"]) == 0
    assert "damaged" in capsys.readouterr().out
    assert run(["store", "verify", "--json"]) == 1
    assert key in output(capsys)["error"]["message"]
    assert run(["store", "prune", key]) == 0
    assert not store.has(key)


def test_half_an_export_is_refused_and_nothing_of_it_stays(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build", recipe_file(tmp_path, tiny), "--json"]) == 0
    key = output(capsys)["key"]
    assert run(["store", "export", key, "whole.tar"]) == 0
    assert run(["store", "prune", "--all"]) == 0
    whole = Path("whole.tar").read_bytes()
    Path("half.tar").write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    assert run(["store", "import", "half.tar"]) == 2
    assert "half.tar is not an exported object" in capsys.readouterr().err
    assert store.keys() == []
    assert run(["store", "export", key, "nowhere/x.tar"]) == 2


def test_optimize_is_interrupted_and_goes_on(tmp_path: Path, tiny: Path) -> None:
    """Ctrl-C while the server of the as-is model runs: nothing stays behind, and the same command ends the run."""
    file = recipe_file(tmp_path, tiny, "prompt-lookup")
    command = ["optimize", str(tiny), "--engine", "fake", "--workload", SUPPORT, "--recipe", file]
    command += ["--streams", "1", "--budget", "0.3"]
    with started(*command) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("quality: as-is"):
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert out == ""
        assert err.splitlines()[-1].startswith("Interrupted; the same command again goes on from here")
        assert "Traceback" not in err
        psutil.wait_procs(children, timeout=30)
        assert not any(child.is_running() for child in children)
    assert not list((tmp_path / "home" / "store" / "work").glob("*"))

    done = subprocess.run(
        [sys.executable, "-m", "quicksilver", *command, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = Result.model_validate_json(done.stdout)
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == [result.id]
    assert (
        Result.model_validate_json((tmp_path / "runs" / result.id / "result.json").read_text(encoding="utf-8"))
        == result
    )
    assert result.command.startswith(f"quicksilver optimize {tiny} --engine fake")
    assert {candidate.label for candidate in result.candidates} == {"as-is", "prompt-lookup"}


def test_optimize_hands_its_options_on(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}

    class Seen(Exception):  # noqa: N818
        pass

    def optimize(model: str, **options: Any) -> None:
        given.update(options, model=model)
        raise Seen

    monkeypatch.setattr(api, "optimize", optimize)
    file = recipe_file(tmp_path, tiny, "int8")
    line = (
        f"m --workload w --goal latency --max-quality-loss 2 --ttft-p95 300 --itl-p95 20 --memory 2GB --engine fake --recipe {file} "
        "--streams 8,1 --budget 3 --trials 9 --quick --prompts 40 --price-per-hour 1.5 --instance i --discount 0.2 --input-output-ratio 4 "
        "--accept-licence --seed 7 --runs r --id name --max-task-loss 5 --metric f1 --judge http://j/v1 --judge-model jm --judge-key-env KEY"
    )
    with pytest.raises(Seen):
        run(["optimize", *line.split()])
    assert callable(given.pop("progress"))
    assert given.pop("recipes") == [Recipe(str(tiny), [*api_recipe(file).techniques], engine="fake")]
    assert given == {
        "model": "m", "workload": "w", "goal": "latency", "max_quality_loss": 2.0, "ttft_p95_ms": 300.0, "itl_p95_ms": 20.0,
        "memory_mb": 2000.0, "engine": "fake", "engines": None, "streams": (1, 8), "budget_minutes": 3.0,
        "trials": 9, "quick": True, "prompts": 40, "price_per_hour": 1.5,
        "instance": "i", "discount": 0.2, "input_output_ratio": 4.0, "accept_licence": True, "seed": 7, "runs": Path("r"),
        "run_id": "name", "command": f"quicksilver optimize {line}", "max_task_loss": 5.0, "metric": "f1", "judge": "http://j/v1",
        "judge_model": "jm", "judge_key_env": "KEY",
    }  # fmt: skip


def api_recipe(file: str) -> Recipe:
    from quicksilver.recipes import load_recipe

    return load_recipe(Path(file))


def test_bench_of_an_artefact_and_of_a_server_that_is_not_there(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build", recipe_file(tmp_path, tiny), "--json"]) == 0
    key = output(capsys)["key"]
    bench = ["bench", key[:8], "--workload", SUPPORT, "--streams", "1,2", "--out", "measured"]
    assert run([*bench, "--json"]) == 0
    found = output(capsys)
    assert [speed["concurrency"] for speed in found["speeds"]] == [1, 2]
    assert all(speed["errors"] == 0 and speed["tokens_per_s"]["value"] > 0 for speed in found["speeds"])
    assert Path(found["samples"]).parent == tmp_path / "measured"
    assert found["cold_start_s"] > 0
    assert run(bench) == 0
    out, err = capsys.readouterr()
    assert "tokens/s" in out
    assert "tokens/s" not in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert run(["bench", f"http://127.0.0.1:{port}", "--workload", SUPPORT]) == 5
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert run(["bench", "nowhere", "--workload", SUPPORT]) == 2


def test_serve_answers_until_ctrl_c(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", recipe_file(tmp_path, tiny), "--json"]) == 0
    key = output(capsys)["key"]
    for number in (signal.SIGINT, signal.SIGTERM):
        with started("serve", key, "--port", "0", "--json", "--record", "traffic.jsonl", "--record-prompts") as process:
            assert process.stdout is not None
            port = json.loads(process.stdout.readline())["port"]
            health = f"http://127.0.0.1:{port}/health"
            while True:
                try:
                    with LOCAL.open(health, timeout=60):
                        break
                except urllib.error.HTTPError as error:
                    assert error.code == 503
            with LOCAL.open(f"http://127.0.0.1:{port}/v1/models", timeout=60) as answer:
                assert json.load(answer)["data"][0]["id"] == "tiny"
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0
            assert out == ""
            assert "Loading as-is of tiny" in err
            assert "THIS SERVER RECORDS THE PROMPTS OF ALL REQUESTS" in err
            assert "Traceback" not in err


def test_serve_says_why_it_can_not(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", recipe_file(tmp_path, tiny), "--json"]) == 0
    key = output(capsys)["key"]
    (empty := tmp_path / "empty").write_text("\n \n", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for args, said in (
            (["serve", key, "--port", port], f"Port {port} on 127.0.0.1 can't be used: address already in use."),
            (["serve", key, "--host", "0.0.0.0", "--port", "0"], "add --insecure if that is meant"),
            (["serve", key, "--port", "0", "--api-key", ""], "An API key is empty"),
            (["serve", key, "--port", "0", "--api-key", "schlüssel"], "letters, digits and signs of ASCII"),
            (["serve", key, "--port", "0", "--api-key-file", str(tmp_path / "none")], "can't be read: No such file"),
            (["serve", key, "--port", "0", "--api-key-file", str(empty)], "empty has no API key"),
            (["serve", key, "--port", "0", "--request-timeout", "0"], "--request-timeout"),
            (["serve", key, "--port", "0", "--record-prompts"], "add --record FILE.jsonl"),
            (["serve", key, "--port", "0", "--record", str(tmp_path)], "can't be written: is a directory"),
            (["serve", key, "--port", "0", "--record", str(empty)], "something else than recorded traffic"),
            (["serve", key, "--port", "0", "--record", "a.jsonl", "--record-limit", "0"], "--record-limit"),
            (["serve", "./nowhere"], "There is no artefact at nowhere"),
            (["serve", "nowhere"], "There is no object 'nowhere' in the store"),
        ):
            with started(*args) as process:
                out, err = process.communicate(timeout=60)
            assert process.returncode == 2, err
            assert out == ""
            assert said in err
            assert "Traceback" not in err
            with started(*args, "--json") as process:
                out, _ = process.communicate(timeout=60)
            assert said in json.loads(out)["error"]["message"]


def test_a_build_that_is_ended_leaves_nothing(tmp_path: Path, tiny: Path) -> None:
    """SIGTERM, as a container's end sends it, unwinds as Ctrl-C does."""
    file = recipe_file(tmp_path, tiny)
    with started("build", file) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("build: step 1"):
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode in (128 + signal.SIGTERM, 0)
        psutil.wait_procs(children, timeout=30)
        assert not any(child.is_running() for child in children)
    assert not list((tmp_path / "home" / "store" / "work").glob("*"))
    assert os.environ[HOME_VARIABLE] == str(tmp_path / "home")
