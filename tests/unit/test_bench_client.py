"""The load client: what it makes of a stream's bytes, and how the process behaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import DONE, Exchange, event, serving, usage, words

from quicksilver.bench.client import LINE_LIMIT, AnswerError, Stream
from quicksilver.bench.job import Call, Job
from quicksilver.bench.load import read_samples
from quicksilver.nouns import Sample


def sample() -> Sample:
    return Sample(prompt_id="p", concurrency=1, scheduled=0.0, sent=0.0)


@given(
    texts=st.lists(st.text(min_size=1, max_size=8), max_size=6),
    chat=st.booleans(),
    ending=st.sampled_from([b"\n\n", b"\r\n\r\n"]),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_a_stream_reads_the_same_however_it_is_cut(
    texts: list[str], chat: bool, ending: bytes, cuts: list[int]
) -> None:
    role = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    parts = [
        b": ping\n\n",
        role,
        *(event(t, chat=chat) for t in texts),
        event(finish="stop"),
        usage(3, len(texts)),
        DONE,
    ]
    data = b"".join(parts).replace(b"\n\n", ending)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    stream = Stream(sample())
    for now, (start, stop) in enumerate(pairwise(places)):
        stream.feed(data[start:stop], float(now))
    stream.close(99.0)
    got = stream.sample
    assert got.text == "".join(texts)
    assert len(got.arrivals) == len(texts)
    assert got.arrivals == sorted(got.arrivals)
    assert got.first == (got.arrivals[0] if texts else None)
    assert (got.prompt_tokens, got.completion_tokens, got.finish) == (3, len(texts), "stop")


def test_several_tokens_in_one_piece_are_one_arrival() -> None:
    stream = Stream(sample())
    stream.feed(event("four tokens in one"), 1.0)
    stream.feed(usage(3, 4) + DONE, 2.0)
    stream.close(2.0)
    assert stream.sample.arrivals == [1.0]
    assert stream.sample.completion_tokens == 4


def test_without_usage_the_pieces_are_counted() -> None:
    stream = Stream(sample())
    stream.feed(event("a") + event("b") + DONE, 1.0)
    stream.close(2.0)
    assert (stream.sample.completion_tokens, stream.counted) == (2, False)


def test_reasoning_is_a_piece_but_no_answer() -> None:
    stream = Stream(sample())
    stream.feed(b'data: {"choices": [{"delta": {"reasoning_content": "hm"}}]}\n', 1.0)
    stream.feed(event("yes", chat=True, finish="stop"), 2.0)
    stream.close(3.0)
    assert (stream.sample.first, stream.sample.arrivals, stream.sample.text) == (1.0, [1.0, 2.0], "yes")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"data: {broken\n\n", "protocol"),
        (b"data: [1, 2]\n\n", "protocol"),
        (b'data: {"usage": {"tokens": 3}}\n\n', "protocol"),
        (b'data: {"error": {"message": "out of blocks"}}\n\n', "server: out of blocks"),
        (event("half"), "disconnect"),
        (b"", "disconnect"),
        (b"x" * (LINE_LIMIT + 1), "protocol"),
    ],
)
def test_a_bad_stream_is_an_error_of_its_kind(data: bytes, kind: str) -> None:
    stream = Stream(sample())
    with pytest.raises(AnswerError, match=kind):
        stream.feed(data, 1.0)
        stream.close(2.0)


def start(job: Job) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "quicksilver.bench.client"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(job.model_dump_json())
    process.stdin.close()
    process.stdin = None  # or communicate() would flush it
    return process


def job(url: str, out: Path, count: int, concurrency: int = 1) -> Job:
    calls = tuple(Call(id=f"p{i}", path="/completions", body={"prompt": f"{i}", "max_tokens": 9}) for i in range(count))
    return Job(url=url, model="m", calls=calls, concurrency=concurrency, out=out, timeout_s=30)


def test_stdout_is_json_lines_that_end_with_a_summary(tmp_path: Path) -> None:
    with serving(v1_completions=words(3)) as server:
        process = start(job(server.url, tmp_path / "s.jsonl", 4, concurrency=2))
        output, _ = process.communicate(timeout=60)
    lines = [json.loads(line) for line in output.splitlines()]
    assert process.returncode == 0
    assert lines[:-1] == [{"done": i, "total": 4} for i in (1, 2, 3, 4)]
    summary = lines[-1]["summary"]
    assert (summary["done"], summary["errors"], summary["uncounted"], summary["stopped"]) == (4, 0, 0, False)
    assert 0 < summary["cpu_s"] <= summary["wall_s"] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_what_was_written(tmp_path: Path, number: signal.Signals) -> None:
    hold = threading.Event()
    asked = threading.Event()

    def script(exchange: Exchange) -> None:
        if exchange.body["prompt"] == "2":
            exchange.open_stream()
            exchange.send(event("under way"))
            asked.set()
            hold.wait(30)
        else:
            words(2)(exchange)

    out = tmp_path / "s.jsonl"
    with serving(v1_completions=script) as server:
        process = start(job(server.url, out, 5))
        assert asked.wait(30)
        os.kill(process.pid, number)
        output, _ = process.communicate(timeout=30)
        hold.set()
    assert process.returncode == 130
    assert json.loads(output.splitlines()[-1])["summary"]["stopped"] is True
    assert [s.prompt_id for s in read_samples(out)] == ["p0", "p1"]


def test_it_ends_when_whoever_started_it_has_gone(tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    with serving(v1_completions=words(2)) as server:
        process = start(job(server.url, out, 500))
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 130
    assert 1 <= len(read_samples(out)) < 500


def test_a_job_that_is_not_valid_is_one_sentence() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "quicksilver.bench.client"],
        input='{"url": 3}',
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 2
    assert "The job on stdin is not valid at url" in json.loads(run.stdout)["failure"]
    assert run.stderr == ""


def run_job(job: Job) -> None:
    start(job).communicate(timeout=60)


def test_a_connection_that_the_server_closed_after_all_fails_no_request(tmp_path: Path) -> None:
    """llama.cpp's server offers to keep a connection and closes it after a stream."""

    def close_after(exchange: Exchange) -> None:
        exchange.open_stream()
        exchange.send(event("yes", finish="stop") + usage(1, 1) + DONE)
        exchange.close_stream()
        exchange.close_connection = True

    with serving(v1_completions=close_after) as server:
        calls = tuple(Call(id=str(n), path="/completions", body={"prompt": "x"}) for n in range(20))
        run_job(Job(url=server.url, model="m", calls=calls, concurrency=2, out=tmp_path / "s.jsonl"))
        asked = len(server.bodies("/v1/completions"))
    samples = read_samples(tmp_path / "s.jsonl")
    assert [s.error for s in samples] == [None] * 20
    assert asked == 20


def test_a_request_that_was_read_is_not_sent_again(tmp_path: Path) -> None:
    def drop_the_second(exchange: Exchange) -> None:
        if exchange.body["prompt"] == "1":
            time.sleep(0.4)
            exchange.close_connection = True
            return
        exchange.open_stream()
        exchange.send(event("yes", finish="stop") + usage(1, 1) + DONE)
        exchange.close_stream()

    with serving(v1_completions=drop_the_second) as server:
        calls = tuple(Call(id=str(n), path="/completions", body={"prompt": str(n)}) for n in range(3))
        run_job(Job(url=server.url, model="m", calls=calls, concurrency=1, out=tmp_path / "s.jsonl"))
        asked = len(server.bodies("/v1/completions"))
    errors = [s.error for s in read_samples(tmp_path / "s.jsonl")]
    assert [bool(error) for error in errors] == [False, True, False]
    assert (errors[1] or "").startswith("disconnect")
    assert asked == 3
