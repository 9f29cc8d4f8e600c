"""run_load: prompts go out as they should, and whatever happens to a server becomes Samples."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_server import DONE, Exchange, event, serving, usage, words

from quicksilver.bench import doubts, driver
from quicksilver.bench.doubts import ClientReport
from quicksilver.bench.driver import Driver
from quicksilver.bench.job import call
from quicksilver.bench.load import read_samples, run_load
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Arrivals, Endpoint, Message, Prompt, Sample


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", prompt=f"text {i}") for i in range(count)]


def test_each_form_of_prompt_goes_where_it_belongs() -> None:
    chat = call(Prompt(id="c", messages=(Message(role="user", content="hi"),)), 20)
    assert (chat.path, chat.body) == (
        "/chat/completions",
        {"max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]},
    )
    text = call(Prompt(id="t", prompt="once", max_tokens=5), 20)
    assert (text.path, text.body) == ("/completions", {"max_tokens": 5, "prompt": "once"})
    ids = call(Prompt(id="i", token_ids=(3, 1), ignore_eos=True), 20)
    assert (ids.path, ids.body) == ("/completions", {"max_tokens": 20, "prompt": [3, 1], "ignore_eos": True})


def test_samples_have_what_the_stream_had(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "new" / "samples.jsonl"
    with serving(v1_completions=words(4, pause_s=0.02), v1_chat_completions=words(3, chat=True)) as server:
        endpoint = Endpoint(url=server.url, model="tiny", api_key="secret-key")
        mixed = [*prompts(3), Prompt(id="chat", messages=(Message(role="user", content="hi"),))]
        samples = run_load(
            endpoint, mixed, concurrency=2, max_tokens=9, out=out, round=3, on_progress=lambda *x: seen.append(x)
        )
        asked = server.seen
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {s.prompt_id for s in samples} == {"p0", "p1", "p2", "chat"}
    for s in samples:
        expected = 3 if s.prompt_id == "chat" else 4
        assert s.error is None
        assert (len(s.arrivals), s.completion_tokens, s.prompt_tokens, s.finish) == (expected, expected, 7, "stop")
        assert s.text == "".join(f"w{i} " for i in range(expected))
        assert s.first == s.arrivals[0]
        assert s.scheduled <= s.sent < s.first <= s.arrivals[-1] <= s.end
        assert s.arrivals == sorted(s.arrivals)
        assert (s.concurrency, s.round, s.warmup) == (2, 3, False)
    for _, body, headers in asked:
        assert body["model"] == "tiny"
        assert (body["temperature"], body["stream"], body["stream_options"]) == (0, True, {"include_usage": True})
        assert headers["Authorization"] == "Bearer secret-key"
    assert "secret-key" not in out.read_text(encoding="utf-8")


def test_pieces_are_stamped_when_they_arrive(tmp_path: Path) -> None:
    other_done = threading.Event()

    def script(exchange: Exchange) -> None:
        if exchange.body["prompt"] == "text 1":
            words(2)(exchange)
            return
        exchange.open_stream()
        exchange.send(event("early"))
        assert other_done.wait(30)
        exchange.send(event("late", finish="stop"))
        exchange.close_stream()

    with serving(v1_completions=script) as server:
        samples = run_load(
            Endpoint(url=server.url, model="m"),
            prompts(2),
            concurrency=2,
            max_tokens=5,
            out=tmp_path / "s",
            on_progress=lambda *_: other_done.set(),
        )
    other, held = samples
    assert (other.prompt_id, held.prompt_id) == ("p1", "p0")
    assert other.end < held.arrivals[1]


def test_the_loop_is_closed(tmp_path: Path) -> None:
    lock = threading.Lock()
    running, most = 0, 0

    def script(exchange: Exchange) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.03)
        with lock:
            running -= 1
        words(2)(exchange)

    with serving(v1_completions=script) as server:
        samples = run_load(
            Endpoint(url=server.url, model="m"), prompts(12), concurrency=3, max_tokens=5, out=tmp_path / "s.jsonl"
        )
    assert most == 3
    assert len(samples) == 12
    for s in samples:
        under_way = [o for o in samples if o.sent < s.end and s.sent < o.end]
        assert s in under_way
    ends = sorted(s.end for s in samples)
    starts = sorted(s.sent for s in samples)
    assert all(start >= end for start, end in zip(starts[3:], ends, strict=False)), "a slot is freed before it is taken"


def test_a_server_that_dies_in_the_middle_gives_samples_with_errors(tmp_path: Path) -> None:
    count = 0

    def script(exchange: Exchange) -> None:
        nonlocal count
        count += 1
        if count <= 2:
            words(3)(exchange)
            return
        exchange.open_stream()
        exchange.send(event("half an ans"))
        exchange.close_connection = True
        exchange.connection.close()

    with serving(v1_completions=script) as server:
        samples = run_load(
            Endpoint(url=server.url, model="m"), prompts(4), concurrency=1, max_tokens=5, out=tmp_path / "s.jsonl"
        )
    assert [s.error for s in samples[:2]] == [None, None]
    for s in samples[2:]:
        assert s.error is not None
        assert s.error.startswith("disconnect: ")
        assert s.end >= s.sent
    dead = run_load(
        Endpoint(url=server.url, model="m"), prompts(3), concurrency=2, max_tokens=5, out=tmp_path / "d.jsonl"
    )
    assert len(dead) == 3
    for s in dead:
        assert (s.error or "").startswith("connect: ")
        assert (s.first, s.arrivals, s.completion_tokens) == (None, [], 0)


def plain(exchange: Exchange) -> None:
    exchange.answer(200, {"choices": [{"text": "whole"}]})


def busy(exchange: Exchange) -> None:
    exchange.answer(503, {"error": {"message": "overloaded"}})


def broken(exchange: Exchange) -> None:
    exchange.open_stream()
    exchange.send(b'data: {"error": {"message": "no memory"}}\n\n')
    exchange.close_stream()


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (plain, "protocol: the answer is application/json, not an event stream"),
        (busy, "http 503: overloaded"),
        (broken, "server: no memory"),
    ],
)
def test_a_bad_answer_is_an_error_by_kind(script: Callable[[Exchange], None], error: str, tmp_path: Path) -> None:
    with serving(v1_completions=script) as server:
        samples = run_load(
            Endpoint(url=server.url, model="m"), prompts(2), concurrency=1, max_tokens=5, out=tmp_path / "s"
        )
    assert [s.error for s in samples] == [error, error]


def test_a_silent_server_ends_the_load(tmp_path: Path) -> None:
    hold = threading.Event()

    def script(exchange: Exchange) -> None:
        hold.wait(60)

    with serving(v1_completions=script) as server:
        try:
            samples = run_load(
                Endpoint(url=server.url, model="m"),
                prompts(50),
                concurrency=2,
                max_tokens=5,
                out=tmp_path / "s",
                timeout_s=0.5,
            )
        finally:
            hold.set()
    kinds = [(s.error or "").partition(":")[0] for s in samples]
    assert kinds.count("timeout") == 2
    assert kinds.count("unsent") == 48


def test_a_server_that_counts_no_tokens_is_noted(tmp_path: Path) -> None:
    def script(exchange: Exchange) -> None:
        exchange.open_stream()
        exchange.send(event("a"))
        exchange.send(event("b") + DONE)
        exchange.close_stream()

    notes: list[str] = []
    with serving(v1_completions=script) as server:
        samples = run_load(
            Endpoint(url=server.url, model="m"),
            prompts(2),
            concurrency=1,
            max_tokens=5,
            out=tmp_path / "s",
            on_note=notes.append,
        )
    assert [s.completion_tokens for s in samples] == [2, 2]
    assert any("no token counts with 2 of 2 answers at 1 stream" in note for note in notes)


def test_a_busy_client_is_noted() -> None:
    eight = Arrivals.closed(8)
    assert doubts.sentences(ClientReport(cpu_share=0.03, late_p99_ms=1.0), eight, 100) == []
    busy = doubts.sentences(ClientReport(cpu_share=0.2), eight, 100)
    assert len(busy) == 1
    assert "20% of a core at 8 streams, more than 15%" in busy[0]
    full = doubts.sentences(ClientReport(cpu_share=0.9), eight, 100)
    assert "90% of a core" in full[0]
    assert "invalid" in full[0]
    assert "40 ms late" in doubts.sentences(ClientReport(cpu_share=0.1, late_p99_ms=40.0), eight, 100)[0]
    assert "stood still for 2.5 s" in doubts.sentences(ClientReport(cpu_share=0.1, stalled_s=2.5), eight, 100)[0]
    assert "slept for 60 s" in doubts.sentences(ClientReport(cpu_share=0.1, asleep_s=60.0), eight, 100)[0]
    assert doubts.sentences(ClientReport(cpu_share=0.1), eight, 4) == ["4 prompts can't keep 8 streams busy."]


def test_answers_are_appended_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    with serving(v1_completions=words(2)) as server:
        endpoint = Endpoint(url=server.url, model="m")
        first = run_load(endpoint, prompts(2), concurrency=1, max_tokens=5, out=out, warmup=True)
        with out.open("a") as file:
            file.write('{"prompt_id": "torn", "conc')
        assert len(read_samples(out)) == 2
        second = run_load(endpoint, prompts(3), concurrency=1, max_tokens=5, out=out, round=1)
    assert [(s.warmup, s.round) for s in first] == [(True, 0)] * 2
    assert [(s.warmup, s.round) for s in second] == [(False, 1)] * 3
    assert read_samples(out) == [*first, *second]


def test_samples_of_before_there_were_loads_are_read(tmp_path: Path) -> None:
    old = {
        "prompt_id": "p", "concurrency": 2, "scheduled": 1.0, "sent": 1.0, "first": 1.5, "arrivals": [1.5], "end": 1.5,
        "prompt_tokens": 3, "completion_tokens": 1, "finish": "stop", "error": None, "text": "x", "warmup": False, "round": 1,
    }  # fmt: skip
    out = tmp_path / "s.jsonl"
    out.write_text(json.dumps(old) + "\n", encoding="utf-8")
    (found,) = read_samples(out)
    assert isinstance(found, Sample)
    assert (found.load, found.accepted, found.drafted) == ("", None, None)


def test_a_line_that_is_no_sample_is_named(tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    out.write_text(json.dumps({"prompt_id": "x", "colour": 3}) + "\n", encoding="utf-8")
    with pytest.raises(BadInputError, match=r"Line 1 of .*s.jsonl is not a sample"):
        read_samples(out)
    with pytest.raises(BadInputError, match="can't be read"):
        read_samples(tmp_path / "none.jsonl")


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    endpoint = Endpoint(url="http://127.0.0.1:9/v1", model="m")
    with pytest.raises(BadInputError, match="no prompts"):
        run_load(endpoint, [], concurrency=1, max_tokens=5, out=tmp_path / "s")
    with pytest.raises(BadInputError, match="concurrency"):
        run_load(endpoint, prompts(1), concurrency=0, max_tokens=5, out=tmp_path / "s")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BadInputError, match="can't be written"):
        run_load(endpoint, prompts(1), concurrency=1, max_tokens=5, out=tmp_path / "file" / "s")


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false"])
def test_a_client_that_cannot_start_is_an_engine_error(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(EngineError, match=r"The load client (could not be started|failed)"):
        run_load(
            Endpoint(url="http://127.0.0.1:9/v1", model="m"),
            prompts(1),
            concurrency=1,
            max_tokens=5,
            out=tmp_path / "s",
        )


def test_an_interrupt_ends_the_client(tmp_path: Path) -> None:
    ended: list[int] = []
    original = driver._end

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def watched(process: subprocess.Popen[str]) -> None:
        original(process)
        ended.append(process.returncode)

    with pytest.MonkeyPatch.context() as patch, serving(v1_completions=words(2)) as server:
        patch.setattr(driver, "_end", watched)
        with pytest.raises(KeyboardInterrupt):
            run_load(
                Endpoint(url=server.url, model="m"),
                prompts(200),
                concurrency=1,
                max_tokens=5,
                out=tmp_path / "s",
                on_progress=interrupt,
            )
    assert ended == [130], "it was told to stop, and did so by itself"


def test_a_driver_keeps_its_process_for_the_next_load_and_ends_it(tmp_path: Path) -> None:
    with serving(v1_completions=words(2)) as server, Driver() as kept:
        endpoint = Endpoint(url=server.url, model="m")
        processes = []
        for number in range(2):
            found = run_load(
                endpoint, prompts(3), concurrency=2, max_tokens=5, out=tmp_path / "s", round=number, driver=kept
            )
            assert [s.round for s in found] == [number] * 3
            processes.append(kept._process)
        first, second = processes
        assert first is not None
        assert first is second
        assert first.poll() is None
    assert first.returncode is not None
    assert len(read_samples(tmp_path / "s")) == 6


def test_after_a_failure_a_driver_goes_on_with_another_process(tmp_path: Path) -> None:
    with serving(v1_completions=words(2)) as server, Driver() as kept:
        endpoint = Endpoint(url=server.url, model="m")

        def kill() -> None:
            assert kept._process is not None
            kept._process.kill()
            kept._process.wait()

        def load(on_progress: Callable[[int, int], None] | None = None) -> int:
            out = tmp_path / "s"
            found = run_load(
                endpoint, prompts(3), concurrency=1, max_tokens=5, out=out, driver=kept, on_progress=on_progress
            )
            return len(found)

        assert load() == 3
        kill()
        assert load() == 3, "nothing was lost between two loads"
        with pytest.raises(EngineError, match="The load client failed: it ended with code -9"):
            load(lambda done, _: kill() if done == 1 else None)
        assert load() == 3


def test_a_driver_whose_load_was_stopped_goes_on_with_another_process(tmp_path: Path) -> None:
    with serving(v1_completions=words(2)) as server, Driver() as kept:
        endpoint = Endpoint(url=server.url, model="m")

        def stop(done: int, _: int) -> None:
            if done == 1 and kept._process is not None:
                kept._process.terminate()

        with pytest.raises(EngineError, match="The load client was stopped after"):
            run_load(
                endpoint, prompts(200), concurrency=1, max_tokens=5, out=tmp_path / "s", driver=kept, on_progress=stop
            )
        assert len(run_load(endpoint, prompts(3), concurrency=1, max_tokens=5, out=tmp_path / "s", driver=kept)) == 3


def test_a_driver_with_another_key_is_not_used(tmp_path: Path) -> None:
    with serving(v1_completions=words(2)) as server, Driver("another") as kept:
        endpoint = Endpoint(url=server.url, model="m", api_key="its own")
        run_load(endpoint, prompts(1), concurrency=1, max_tokens=5, out=tmp_path / "s", driver=kept)
        assert kept._process is None


def test_usage_goes_before_the_count_of_pieces(tmp_path: Path) -> None:
    def script(exchange: Exchange) -> None:
        exchange.open_stream()
        exchange.send(event("several tokens at once", finish="length"))
        exchange.send(usage(11, 5) + DONE)
        exchange.close_stream()

    with serving(v1_completions=script) as server:
        (only,) = run_load(
            Endpoint(url=server.url, model="m"), prompts(1), concurrency=1, max_tokens=5, out=tmp_path / "s"
        )
    assert (only.prompt_tokens, only.completion_tokens, len(only.arrivals), only.finish) == (11, 5, 1, "length")
