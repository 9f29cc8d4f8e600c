"""A search for an SLO that was killed goes on: looks that were finished are kept, and no prompt is sent twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Exchange, serving, words

from quicksilver.bench import doubts
from quicksilver.bench.highest import find_highest
from quicksilver.bench.load import read_samples
from quicksilver.bench.looks import file_of
from quicksilver.bench.price import price
from quicksilver.bench.slo_search import Loads, rates, streams
from quicksilver.nouns import Benchmark, Endpoint, Prompt, Slo, Workload
from quicksilver.testing.engine_contract import until

PRICE = price(1.0)
SLO = Slo.parse("e2e_p50<60s")
LOAD = Workload(name="w", evaluation=tuple(Prompt(id=f"p{n}", prompt=f"text {n}") for n in range(400)), max_tokens=4)
Progress = Callable[[str, int, int, float | None], None]


class Killed(BaseException):
    """What ends a process without warning, for the code that it hits."""


def killed_at(where: str) -> Progress:
    def watch(text: str, done: int, _total: int, _left_s: float | None) -> None:
        if text == where and done >= 3:
            raise Killed

    return watch


def searched(
    url: str, samples: Path, *, loads: Loads | None = None, slo: Slo = SLO, watch: Progress = lambda *_: None
) -> Benchmark:
    endpoint = Endpoint(url=url, model="m")
    return find_highest(
        endpoint, LOAD, slo, price=PRICE, samples=samples, loads=loads or streams(4), target="it", on_progress=watch
    )


def sent(server: Any) -> list[str]:
    return [body["prompt"] for _, body, _ in server.seen if body["prompt"] != "text 0"]


@pytest.mark.parametrize("loads", [streams(4), rates(10, 40)])
def test_what_was_finished_is_kept_and_nothing_is_sent_twice(
    loads: Loads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubts, "BEHIND_MS", 1e6)  # a busy machine's client is late, which isn't what this is about
    file = tmp_path / "s.jsonl"
    third = "4 streams" if loads.unit == "streams" else "40 requests/s"
    with serving(v1_completions=words(2)) as server:
        with pytest.raises(Killed):
            searched(server.url, file, loads=loads, watch=killed_at(third))
        first = [s for s in read_samples(file) if not s.warmup]
        finished = [s for s in first if s.round < 2]
        assert {s.round for s in first} == {0, 1, 2}, "the third look was broken off"
        assert file_of(file).is_file()
        found = searched(server.url, file, loads=loads)
        assert len(sent(server)) == len(set(sent(server)))
        whole = searched(server.url, tmp_path / "whole.jsonl", loads=loads)
    kept = [s for s in read_samples(found.samples) if not s.warmup]
    assert kept[: len(finished)] == finished
    assert found.search is not None and whole.search is not None
    assert [a.load for a in found.search.attempts] == [a.load for a in whole.search.attempts]
    assert [(a.requests, a.runs) for a in found.search.attempts] == [
        (a.requests, a.runs) for a in whole.search.attempts
    ]
    assert len(kept) == sum(a.requests for a in found.search.attempts)
    assert found.search.best == whole.search.best
    assert any("went on from 2 looks that an earlier process had finished" in note for note in found.notes)
    assert not file_of(file).exists(), "it is done: the next search begins anew"


def test_killed_again_and_again_it_comes_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    with serving(v1_completions=words(2)) as server:
        for where in ("1 stream", "2 streams", "2 streams", "4 streams"):
            with pytest.raises(Killed):
                searched(server.url, file, watch=killed_at(where))
        found = searched(server.url, file)
        assert len(sent(server)) == len(set(sent(server)))
    assert found.search is not None
    assert found.search.best == 4


def test_a_server_that_died_is_asked_for_the_rest_once_it_is_there_again(tmp_path: Path) -> None:
    file, died = tmp_path / "s.jsonl", False
    with ExitStack() as running:
        server = running.enter_context(serving(v1_completions=words(2)))

        def watch(text: str, *_: Any) -> None:
            nonlocal died
            if text == "4 streams" and not died:
                died = True
                running.close()

        found = searched(server.url, file, watch=watch)
    assert found.search is not None
    assert found.search.ended
    with serving(v1_completions=words(2)) as server:
        again = searched(server.url, file)
        assert len(sent(server)) == again.speeds[-1].requests, "only the look that was missing"
    assert again.search is not None
    assert (again.search.best, again.search.ended) == (4, "")


def test_another_search_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    with serving(v1_completions=words(2)) as server:
        with pytest.raises(Killed):
            searched(server.url, file, watch=killed_at("4 streams"))
        before = len(server.seen)
        found = searched(server.url, file, slo=Slo.parse("e2e_p50<59s"))
        assert len(server.seen) - before == 1 + sum(speed.requests for speed in found.speeds)
    assert not any("earlier process" in note for note in found.notes)


@pytest.mark.parametrize("damage", ["half a line", "no samples", "fewer samples"])
def test_what_is_damaged_is_measured_again(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    with serving(v1_completions=words(2)) as server:
        with pytest.raises(Killed):
            searched(server.url, file, watch=killed_at("4 streams"))
        if damage == "half a line":
            text = file_of(file).read_text(encoding="utf-8")
            file_of(file).write_text(text.rstrip("\n")[:-5], encoding="utf-8")
        elif damage == "no samples":
            file.unlink()
        else:
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            file.write_text("".join(lines[:3]), encoding="utf-8")
        found = searched(server.url, file)
    assert found.search is not None
    assert found.search.best == 4
    kept = [s for s in read_samples(file) if not s.warmup]
    assert len(kept) == sum(a.requests for a in found.search.attempts)


def test_the_same_command_goes_on_after_kill_9(tmp_path: Path) -> None:
    workload = tmp_path / "w.jsonl"
    lines = [json.dumps({"prompt": f"text {n}", "max_tokens": 4}) for n in range(1, 120)]
    workload.write_text("\n".join(lines), encoding="utf-8")

    def models(exchange: Exchange) -> None:
        exchange.answer(200, {"data": [{"id": "m"}]})

    with serving(v1_models=models, v1_completions=words(2, pause_s=0.05)) as server:
        command = [
            sys.executable,
            "-m",
            "quicksilver",
            "bench",
            server.url,
            "--model",
            "m",
            "--workload",
            str(workload),
        ]
        command += ["--slo", "e2e_p50<60s", "--most-streams", "4", "--json"]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
        )

        def finished() -> int:
            (file,) = list((tmp_path / "runs" / "bench").glob("*.looks.jsonl")) or (None,)
            return file.read_text(encoding="utf-8").count('"over"') if file else 0

        until(lambda: finished() >= 1 or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert finished() >= 1
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    found = Benchmark.model_validate_json(done.stdout)
    assert found.search is not None
    assert found.search.best == 4
    assert any("earlier process" in note for note in found.notes)
