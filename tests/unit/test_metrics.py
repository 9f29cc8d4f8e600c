"""Task metrics: code in the sandbox, functions of the user's, regular expressions; and what is said when they can't."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from quicksilver.bench import code_tests, metrics, sandbox, user_metric
from quicksilver.bench.metrics import Answer
from quicksilver.errors import BadInputError
from quicksilver.nouns import Prompt, Sample, Workload
from quicksilver.nouns.workload import CodeTest, Message


def answers(*texts: str, **fields: object) -> list[Answer]:
    return [Answer(Prompt(id=f"p{n}", prompt="Say it.", **fields), text) for n, text in enumerate(texts)]


# --- code, run in the sandbox ----------------------------------------------------------------------------------------

ADD = CodeTest(
    before='from typing import List\n\ndef add(a: int, b: int) -> int:\n    """Add."""\n',
    entry_point="add",
    test="def check(f):\n    assert f(2, 3) == 5\ncheck(add)",
)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("```python\ndef add(a: int, b: int) -> int:\n    return a + b\n```", 1.0),
        ("Sure!\n```py\nimport math\n```\nand\n```python\ndef add(a, b):\n    return a + b\n```\nDone.", 1.0),
        ("def add(a: List[int], b):\n    return a + b", 1.0),  # what the prompt imports is there
        ("    return a + b\n", 1.0),  # goes on with the body, as a completion does
        ("```python\ndef add(a, b):\n    return a + b", 1.0),  # cut off before the fence ends
        ("```python\ndef add(a, b):\n    return a - b\n```", 0.0),
        ("I don't know.", 0.0),
        ("import sys\nsys.exit(0)", 0.0),  # to end early isn't to pass
        ("import os\nos._exit(0)", 0.0),
        ("", 0.0),  # before alone defines a function that returns nothing
    ],
)
def test_code_passes_if_its_tests_run_to_their_end(text: str, score: float) -> None:
    assert code_tests.metric().score(answers(text, tests=ADD)) == [score]


def test_code_is_scored_only_where_there_are_tests() -> None:
    metric = code_tests.metric()
    assert not metric.scores(Prompt(id="p", prompt="x"))
    assert metric.scores(Prompt(id="p", prompt="x", tests=ADD))


def test_what_takes_too_long_or_too_much_is_ended() -> None:
    begun = time.monotonic()
    assert sandbox.run("while True: pass", timeout_s=1).outcome == "timeout"
    assert sandbox.run("import time\ntime.sleep(60)", timeout_s=0.5).outcome == "timeout"
    assert time.monotonic() - begun < 10
    ran = sandbox.run("x = bytearray(1 << 33)", memory_mb=256)
    assert (ran.outcome, ran.said[:11]) == ("failed", "MemoryError")
    assert sandbox.run("print('x' * (1 << 20))\nimport sys\nsys.stderr.write('y' * (1 << 20))").outcome == "passed"


@pytest.mark.parametrize(
    "program",
    [
        "open({path!r}, 'w').write('x')",
        "import os\nos.close(os.open({path!r}, os.O_WRONLY | os.O_CREAT))",
        "import os\nos.remove({there!r})",
        "import os\nos.rename({there!r}, {path!r})",
        "import os\nos.truncate({there!r}, 0)",
        "import pathlib\npathlib.Path({path!r}).mkdir()",
        "import socket\nsocket.create_connection(('127.0.0.1', 9))",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.fork()",
        "import os\nos.kill(os.getppid(), 15)",
        "import ctypes\nctypes.CDLL(None)",
    ],
)
def test_what_an_exercise_has_no_business_with_is_refused(program: str, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("kept", encoding="utf-8")
    ran = sandbox.run(program.format(path=str(tmp_path / "new"), there=str(there)))
    assert ran.outcome == "failed"
    assert ran.said
    assert there.read_text(encoding="utf-8") == "kept"
    assert list(tmp_path.iterdir()) == [there]


def test_even_what_gets_around_the_hook_writes_no_file(tmp_path: Path) -> None:
    """The limit on the size of files, and Landlock where there is one, don't depend on Python."""
    path = tmp_path / "new"
    program = f"import _io\nopened = _io.FileIO({str(path)!r}, 'w')\nopened.write(b'x')"
    assert sandbox.run(program).outcome == "failed"
    assert not path.exists() or path.stat().st_size == 0


def test_a_program_sees_neither_our_environment_nor_our_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s")
    program = f"import os\nassert 'SECRET' not in os.environ\nassert os.getcwd() != {str(Path.cwd())!r}\nassert os.listdir() == []"
    ran = sandbox.run(program)
    assert ran.outcome == "passed", ran.said
    assert "limits" in ran.holds


# --- the user's own --------------------------------------------------------------------------------------------------


def written(folder: Path, source: str) -> str:
    path = folder / "score.py"
    path.write_text(source, encoding="utf-8")
    return f"{path}:rate"


def test_a_function_of_the_users_scores(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'good'\n", encoding="utf-8")
    spec = written(
        tmp_path,
        "import beside\nprint('loaded')\ndef rate(answer, references):\n    print('noise')\n"
        "    return (beside.WORD in answer) * 0.5 + (answer in references) * 0.5\n",
    )
    metric = user_metric.function(spec)
    assert metric.name == "rate"
    assert metric.score(answers("good", "bad", "a good one", references=("good",))) == [1.0, 0.0, 0.5]


def test_a_function_may_take_the_prompt_or_the_answer_alone(tmp_path: Path) -> None:
    spec = written(tmp_path, "def rate(answer, references, prompt):\n    return prompt.count('Say')\n")
    assert user_metric.function(spec).score(answers("x")) == [1.0]
    spec = written(tmp_path, "def rate(answer):\n    return len(answer)\n")
    assert user_metric.function(spec).score(answers("", "four")) == [0.0, 4.0]
    assert (
        Prompt(id="c", messages=(Message(role="user", content="a"), Message(role="user", content="b"))).content
        == "a\n\nb"
    )


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            "def rate(a, r):\n    raise KeyError('boom')",
            r"failed for the answer to the prompt 'p0': KeyError: 'boom'\.",
        ),
        ("def rate(a, r):\n    while True: pass", r"didn't return within 0.5 s for the answer to the prompt 'p0'\."),
        (
            "import time\ntime.sleep(9)\ndef rate(a, r): return 1",
            r"didn't return within 0.5 s when its file was loaded\.",
        ),
        ("def rate(a, r):\n    import os; os._exit(3)", r"ended its process for the answer to the prompt 'p0'\."),
        ("def rate(a, r):\n    return 'high'", r"failed for .* could not convert string"),
        ("def rate(a, r):\n    return None", r"failed for .*TypeError"),
        ("def rate(a, r):\n    return float('nan')", r"gave nan for .*; a score is a number from 0 on\."),
        ("def rate(a, r):\n    return -1", r"gave -1.0 for .*; a score is a number from 0 on\."),
        ("def other(a, r):\n    return 1", r"failed when its file was loaded: AttributeError: .*'rate'"),
        ("def rate(a, r:\n", r"failed when its file was loaded: SyntaxError"),
        ("import no_such_module_at_all", r"failed when its file was loaded: ModuleNotFoundError"),
    ],
)
def test_a_function_that_throws_or_never_ends_is_one_sentence(source: str, sentence: str, tmp_path: Path) -> None:
    metric = user_metric.function(written(tmp_path, source), limit_s=0.5 if "0.5 s" in sentence else 10)
    begun = time.monotonic()
    with pytest.raises(BadInputError, match=sentence) as caught:
        metric.score(answers("x"))
    assert time.monotonic() - begun < 5
    assert "\n" not in str(caught.value)


def test_a_regular_expression_is_found_anywhere() -> None:
    metric = metrics.find(r"regex:^\d+ (cats|dogs)$")
    assert metric.score(answers("12 cats", "12 birds", "so 12 cats")) == [1.0, 0.0, 0.0]
    with pytest.raises(BadInputError, match="is no regular expression"):
        metrics.find("regex:(")
    slow = user_metric.regex(r"(a+)+$", limit_s=0.5)
    with pytest.raises(BadInputError, match=r"regex:\(a\+\)\+\$ didn't return within 0.5 s"):
        slow.score(answers("a" * 60 + "b"))


# --- which one -------------------------------------------------------------------------------------------------------


def workload(*, references: tuple[str, ...] = (), task: str = "none", tests: CodeTest | None = None) -> Workload:
    prompts = tuple(Prompt(id=f"p{n}", prompt=f"q{n}", references=references, tests=tests) for n in range(3))
    return Workload(name="mine.jsonl", evaluation=prompts, task=task)


def test_the_users_metric_comes_first_and_the_usual_ones_stay() -> None:
    names = [metric.name for metric in metrics.chosen("exact_match", workload(references=("a",), task="qa"))]
    assert names == ["exact_match", "contains", "f1", "rouge_l"]
    assert [metric.name for metric in metrics.chosen(None, workload(task="summary"))] == ["rouge_l", "f1"]
    assert [metric.name for metric in metrics.chosen(None, workload(task="code"))] == ["code_tests"]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("f1", "The workload mine.jsonl has no reference answers, which the metric f1 needs"),
        ("code_tests", "has no tests, which the metric code_tests needs"),
        ("f2", "no metric named 'f2'; did you mean 'f1'"),
        ("nowhere.py:rate", "There is no file nowhere.py"),
        ("nowhere.py", "names no function"),
        ("x.py:1st", "names no function"),
    ],
)
def test_a_metric_that_cannot_be_is_one_sentence(spec: str, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence) as caught:
        metrics.chosen(spec, workload())
    assert "\n" not in str(caught.value)


def test_a_limit_of_the_task_needs_a_task() -> None:
    with pytest.raises(BadInputError, match="no reference answers, so there is no task whose loss could have a limit"):
        metrics.chosen(None, workload(), needed=True)
    assert metrics.chosen(None, workload(references=("a",), task="qa"), needed=True)


def test_a_function_that_throws_is_found_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="boom"):
        metrics.chosen(written(tmp_path, "def rate(a, r): raise ValueError('boom')"), workload())


def test_scores_are_of_what_was_answered() -> None:
    load = workload(references=("Paris",))
    samples = [
        Sample("p0", 1, 0, 0, text="Paris"), Sample("p0", 1, 0, 0, text="later"), Sample("p1", 1, 0, 0, text="Rome"),
        Sample("p2", 1, 0, 0, text="Paris", error="gone"), Sample("p2", 1, 0, 0, text="Paris", warmup=True),
    ]  # fmt: skip
    found = metrics.score(metrics.texts(samples), load.evaluation, metrics.chosen("f1", load))
    assert found["f1"] == {"p0": 1.0, "p1": 0.0}
