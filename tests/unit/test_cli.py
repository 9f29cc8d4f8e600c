"""The command line's frame: what goes to stdout and stderr, exit codes, --json, Ctrl-C, and what --help imports."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console

from quicksilver import __version__, api
from quicksilver.cli import cli, progress, run
from quicksilver.cli.frame import MemoryMb, Streams, duration, size
from quicksilver.errors import BuildError, EngineError, NotEnoughError
from quicksilver.search.events import Event
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.testing.tiny import make_tiny_gguf


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    monkeypatch.delenv("COLUMNS", raising=False)
    return folder


def quicksilver(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quicksilver", *args],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


COMMANDS = dict(every_command(cli))


def test_a_command_line_leaves_the_process_s_log_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    root, ours = logging.getLogger(), logging.getLogger("quicksilver")
    before = list(root.handlers), ours.level
    assert run(["--version"]) == 0
    assert run(["no-such-command"]) == 2
    assert (list(root.handlers), ours.level) == before


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['quicksilver', '--help']\n"
        "from quicksilver.cli import main\n"
        "assert main() == 0\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stderr.split())
    heavy = {"torch", "transformers", "openvino", "openvino_genai", "nncf", "optimum", "altair", "tokenizers", "gguf"}
    slow = {"pydantic", "rich", "numpy", "yaml", "aiohttp", "starlette", "uvicorn"}
    assert "click" in imported
    assert not imported & (heavy | slow)
    assert "optimize" in done.stdout


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_each_command_explains_itself_and_takes_json(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    options = {name for parameter in command.params for name in parameter.opts}
    assert "--json" in options
    assert command.help
    assert run([*path, "--help"]) == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"quicksilver {__version__}\n"
    assert run(["--version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": __version__}


def test_no_command_is_a_call_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["optimise", "m"], "no command 'optimise'; did you mean 'optimize'?"),
        (["optimize"], "Missing argument 'MODEL'."),
        (["optimize", "m", "--gaol", "cost"], "--goal"),
        (["optimize", "m", "--goal", "speed"], "'speed' is not one of"),
        (["optimize", "m", "--memory", "4XB"], "write it as 4GB or 500MB"),
        (["optimize", "m", "--streams", "0,8"], "write it as 1,8"),
        (["optimize", "m", "--itl-p95", "nan"], "nan is not a finite number"),
        (["optimize", "m", "--max-quality-loss", "-1"], "-1"),
        (["optimize", "m", "--discount", "1"], "0<=x<1"),
        (["optimize", "m", "--budget", "0"], "x>0"),
        (["bench", "u", "--rounds", "0"], "x>=1"),
        (["serve", "a", "--port", "65536"], "65536"),
        (["store", "shwo"], "shwo"),
        (["models", "show"], "Missing argument 'NAME'."),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert run([*args, "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["kind"] == "usage"
    assert said in json.loads(out)["error"]["message"]
    assert err == ""


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (NotEnoughError("No memory."), 3, "not-enough"),
        (BuildError("It failed."), 4, "build"),
        (EngineError("It died."), 5, "engine"),
        (PermissionError(13, "Permission denied", "runs"), 1, "system"),
    ],
)
def test_an_error_of_the_project_ends_with_its_code(
    error: Exception, code: int, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(api, "optimize", fail, raising=False)
    assert run(["optimize", "m"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert run(["optimize", "m", "--json"]) == code
    found = json.loads(capsys.readouterr().out)["error"]
    assert found["kind"] == kind
    assert f"error: {found['message']}\n" == err


@pytest.mark.parametrize(
    ("args", "how"),
    [
        (["optimize", "m"], "what was built and measured is kept"),
        (["bench", "http://127.0.0.1:1"], "nothing is left running"),
        (["build", "m"], "the steps that were built are kept"),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    args: list[str], how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("optimize", "benchmark", "plan"):
        monkeypatch.setattr(api, name, interrupt, raising=False)
    assert run(args) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Interrupted; ")
    assert how in err
    assert run([*args, "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "interrupted"


def test_ctrl_c_elsewhere_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quicksilver.machine.kept", interrupt)
    assert run(["hardware"]) == 130
    assert capsys.readouterr().err.strip() == "Interrupted."


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(api, "optimize", fault, raising=False)
    with pytest.raises(ZeroDivisionError):
        run(["optimize", "m"])


@pytest.mark.parametrize(
    "args",
    [
        ["models"],
        ["models", "show", "smollm2-135m-instruct"],
        ["workloads"],
        ["workloads", "show", "synthetic:20x5", "--prompts", "6"],
        ["techniques"],
        ["techniques", "show", "kv-cache"],
        ["engines"],
        ["hardware"],
        ["store"],
        ["store", "prune"],
        ["store", "verify"],
        ["build", "m", "-t", "int8", "--print-recipe"],
    ],
    ids=" ".join,
)
def test_json_is_one_document_and_all_of_stdout(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*args, "--json"]) == 0
    json.loads(capsys.readouterr().out)
    assert run(args) == 0
    out = capsys.readouterr().out
    assert out.strip()
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["models", "show", "smollm2-135m"], "did you mean 'smollm2-135m-instruct'?"),
        (["models", "show", "./nowhere"], "There is no model at ./nowhere."),
        (["models", "show", "someone/something"], "give --fetch"),
        (["workloads", "show", "nowhere.jsonl"], "no file 'nowhere.jsonl'"),
        (["workloads", "show", "hotpotqu"], "did you mean 'hotpotqa'?"),
        (["workloads", "show", "synthetic:20x5", "--prompts", "6", "--tokenizer", "nowhere"], "no directory nowhere"),
        (["techniques", "show", "awqq"], "did you mean 'awq'?"),
        (["build", "int8.toml"], "There is no recipe at int8.toml"),
        (["build", "m", "-t", "awqq"], "did you mean 'awq'?"),
        (["build", "m", "--engine", "openvinno"], "did you mean 'openvino'?"),
        (["optimize", "m", "--recipe", "nowhere.toml"], "There is no recipe at nowhere.toml"),
        (["store", "show", "abc"], "'abc'"),
        (["store", "import", "nowhere.tar"], "There is no file at nowhere.tar."),
        (["store", "prune", "abc", "--all"], "Choose one of KEY, --older-than and --all."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(
    args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert run([*args, "--json"]) == 2
    assert said in json.loads(capsys.readouterr().out)["error"]["message"]
    assert not [path for path in tmp_path.iterdir() if path.name != "home"]


def test_an_empty_workload_and_half_a_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert run(["workloads", "show", str(empty)]) == 2
    assert "is empty" in capsys.readouterr().err
    whole = make_tiny_gguf(tmp_path / "whole.gguf")
    half = tmp_path / "half.gguf"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert run(["models", "show", str(half)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert str(half) in err
    assert err.count("\n") == 1
    assert run(["models", "show", str(whole), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 2


def test_stdout_holds_nothing_else_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = quicksilver("workloads", "show", "synthetic:20x5", "--prompts", "6", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["splits"]["evaluation"]["prompts"] > 0
    assert "--tokenizer" in done.stderr
    done = quicksilver("techniques", "show", "awqq", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "bad-input"
    assert done.stderr == ""
    done = quicksilver("techniques", "show", "awqq")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "quicksilver", "techniques", "--json"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == ""


def test_no_color_is_respected() -> None:
    coloured = quicksilver("hardware", FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="")
    assert "\x1b[" in coloured.stdout
    lines = "\x1b[3", "\x1b[9", "\x1b[4"
    plain = quicksilver("hardware", FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1")
    assert not any(code in plain.stdout for code in lines)


@pytest.mark.parametrize(
    ("text", "mb"), [("4GB", 4000), ("500MB", 500), ("500", 500), ("0.5 gb", 500), ("1GiB", 1073.741824), ("2G", 2000)]
)
def test_amounts_of_memory(text: str, mb: float) -> None:
    assert MemoryMb().convert(text, None, None) == pytest.approx(mb)


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1e3", "4 G B", "nan", "4PB"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(click.BadParameter):
        MemoryMb().convert(text, None, None)


def test_lists_of_streams() -> None:
    assert Streams().convert("8, 1,8", None, None) == (1, 8)
    for text in ("", "1,", "a", "-1", "1.5", "0"):
        with pytest.raises(click.BadParameter):
            Streams().convert(text, None, None)


def test_sizes_and_times_for_people() -> None:
    assert [size(n) for n in (0, 999, 1000, 98_362_432, 5_400_000_000)] == ["0 B", "999 B", "1 kB", "98 MB", "5.4 GB"]
    assert [duration(s) for s in (0.4, 59.4, 60, 200, 3600, 3900)] == [
        "0 s", "59 s", "1 min", "3 min 20 s", "1 h", "1 h 5 min",
    ]  # fmt: skip


EVENTS = (
    Event("build", "step 1 of 2: as-is", 0, 10, 120),
    Event("build", "step 1 of 2: as-is", 5, 10, 60),
    Event("quality", "int8 [bold]", None, None, None),
)


def test_progress_in_a_log_is_a_line_for_each_new_thing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.watched() as watch:
        for event in EVENTS:
            watch(event)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["build: step 1 of 2: as-is (2 min left)", "quality: int8 [bold]"]


def test_progress_in_a_terminal_is_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    now = 1000.0
    monkeypatch.setattr(progress, "console", lambda **_: Console(file=screen, force_terminal=True, width=100))
    monkeypatch.setattr(progress, "clock", lambda: now)
    with progress.watched() as watch:
        watch(Event("build", "as-is", 10, 10, 120))
        now += 75
        watch(Event("quality", "int8 [bold]", None, None, 45))
        now += 25
    shown = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert "build: 1 min 15 s\n" in shown
    last = shown.rpartition("quality")[2]
    assert "0:01:40 45 s left int8 [bold]" in last
    assert last.endswith("\x1b[1A\x1b[2K")


def test_progress_goes_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", lambda **_: Console(file=screen, force_terminal=True, width=100))
    with pytest.raises(BuildError), progress.watched() as watch:
        watch(EVENTS[0])
        raise BuildError("It failed.")
    assert screen.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")
