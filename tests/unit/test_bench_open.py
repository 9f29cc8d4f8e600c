"""Open loops: requests leave when they are due, queues show, and a client that can't follow says so."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_server import DONE, Exchange, event, serving, usage, words

from quicksilver import api
from quicksilver.bench import client, doubts
from quicksilver.bench.doubts import ClientReport
from quicksilver.bench.job import Call, Job
from quicksilver.bench.load import read_samples, run_load
from quicksilver.bench.measure import measure, plan
from quicksilver.bench.price import price
from quicksilver.bench.schedule import streams_at
from quicksilver.bench.stats import figures
from quicksilver.cli import run
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Arrivals, Benchmark, Endpoint, Prompt, Sample, Workload
from quicksilver.sources.home import HOME_VARIABLE


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", prompt=f"text {i}") for i in range(count)]


def trace(*times: float) -> Arrivals:
    return Arrivals(kind="trace", times_s=times)


def one_at_a_time(seconds: float) -> Callable[[Exchange], None]:
    """A server with one stream: an answer takes so long, and the next one begins after it."""
    lock = threading.Lock()
    free = 0.0

    def script(exchange: Exchange) -> None:
        nonlocal free
        with lock:
            free = mine = max(free, time.monotonic()) + seconds
        time.sleep(max(0.0, mine - time.monotonic()))
        words(2, pause_s=0.0)(exchange)

    return script


def send(url: str, out: Path, load: Arrivals, count: int, **more: Any) -> tuple[list[Sample], ClientReport, list[str]]:
    reports: list[ClientReport] = []
    notes: list[str] = []
    samples = run_load(
        Endpoint(url=url, model="m"),
        prompts(count),
        arrivals=load,
        max_tokens=5,
        out=out,
        on_report=reports.append,
        on_note=notes.append,
        **more,
    )
    return samples, reports[0], notes


def test_an_open_loop_shows_the_queue_that_a_closed_one_hides(tmp_path: Path) -> None:
    load = Arrivals(kind="constant", rate_per_s=75)
    with serving(v1_completions=one_at_a_time(0.04)) as server:
        samples, report, _ = send(server.url, tmp_path / "open", load, 40)
        closed, _, _ = send(server.url, tmp_path / "closed", Arrivals.closed(1), 20)
    found = figures(samples, load)
    hidden = figures(closed, Arrivals.closed(1))
    # The server can't give answer i before 40 (i + 1) ms, and it was due at 13.3 i ms.
    waits = sorted(s.first - s.scheduled for s in samples if s.first is not None)
    assert waits[-1] >= 0.04 * 40 - 39 / 75
    assert found.ttft_ms.p50 > 2 * hidden.ttft_ms.p50
    assert found.keeps_up is False
    assert all(s.scheduled == s.sent for s in closed)
    assert report.held == 0
    assert found.in_flight_max > 5


def test_requests_are_due_when_the_schedule_says(tmp_path: Path) -> None:
    times = (0.0, 0.05, 0.05, 0.12, 0.3)
    with serving(v1_completions=words(2)) as server:
        samples, report, _ = send(server.url, tmp_path / "s", trace(*times), 5)
    due = sorted(samples, key=lambda s: s.prompt_id)
    assert [s.scheduled - due[0].scheduled for s in due] == pytest.approx(times)
    assert all(s.sent >= s.scheduled for s in due)
    assert {s.load for s in due} == {"trace"}
    assert report.behind_p99_ms is not None


def test_streams_of_a_ramp_rise_as_requests_are_sent(tmp_path: Path) -> None:
    load = Arrivals(streams=1, streams_to=4)
    with serving(v1_completions=words(2, pause_s=0.02)) as server:
        samples, _, _ = send(server.url, tmp_path / "s", load, 16)
    by_start = sorted(samples, key=lambda s: s.sent)
    limits = streams_at(load, 16)
    under_way = [sum(o.sent <= s.sent < o.end for o in samples) for s in by_start]
    assert all(number <= limit for number, limit in zip(under_way, limits, strict=True))
    assert (under_way[0], max(under_way)) == (1, 4)
    assert figures(samples, load).requests == 16


def test_a_client_that_may_not_send_is_saturated(tmp_path: Path) -> None:
    with serving(v1_completions=words(2, pause_s=0.05)) as server:
        samples, report, notes = send(server.url, tmp_path / "s", trace(*[0.0] * 8), 8, in_flight=2)
    assert len(samples) == 8
    assert report.held > 0
    assert f"{report.held} requests had to wait because 2 were under way" in report.saturated
    assert any("saturated under the trace" in note and "invalid" in note for note in notes)
    # From the moment they were due all the same: two at a time, four times 0.1 s.
    assert max(s.end - s.scheduled for s in samples) >= 0.4


def test_a_client_that_falls_behind_is_saturated() -> None:
    summary = {
        "cpu_share": 0.05,
        "late_p99_ms": 1.0,
        "held": 0,
        "uncounted": 0,
        "stalled_s": 0.0,
        "asleep_s": 0.0,
        "clock_step_s": 0.0,
    }
    load = Arrivals.poisson(2.0)
    calm = [Sample(prompt_id="p", concurrency=9, scheduled=float(i), sent=i + 0.001) for i in range(100)]
    late = [Sample(prompt_id="p", concurrency=9, scheduled=float(i), sent=i + 0.2) for i in range(100, 110)]
    assert not doubts.report(summary, calm, load, most=9).saturated
    behind = doubts.report(summary, calm + late, load, most=9)
    assert "200 ms after their moment" in behind.saturated
    assert "at 2/s" in doubts.sentences(behind, load, 110)[0]
    assert "of a core" in doubts.report(summary | {"cpu_share": 0.9}, calm, Arrivals.closed(2), most=2).saturated
    assert doubts.worst([doubts.report(summary, calm, load, most=9), behind]).saturated


def bench(url: str, load: Workload, samples: Path, *loads: Arrivals, **more: Any) -> Benchmark:
    endpoint = Endpoint(url=url, model="m")
    return measure(endpoint, load, price=price(1.0), samples=samples, arrivals=loads, **more)


def test_a_saturated_load_is_marked_in_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quicksilver.bench import load as loading

    monkeypatch.setattr(loading, "_most_in_flight", lambda _: 1)
    with serving(v1_completions=words(2, pause_s=0.05)) as server:
        load = Workload(name="w", evaluation=tuple(prompts(9)))
        found = bench(server.url, load, tmp_path / "s", trace(*[0.0] * 8))
    (speed,) = found.speeds
    assert not speed.valid
    assert "had to wait" in speed.saturated
    assert found.to_json()["speeds"][0]["valid"] is False
    assert any("invalid" in note for note in found.notes)
    assert Benchmark.model_validate_json(found.model_dump_json()) == found


def dies_after(count: int) -> Callable[[Exchange], None]:
    asked = 0

    def script(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        if asked <= count:
            words(3)(exchange)
            return
        exchange.open_stream()
        exchange.send(event("half an ans"))
        exchange.close_connection = True
        exchange.connection.close()

    return script


def test_a_server_that_dies_in_the_middle_leaves_what_was_measured(tmp_path: Path) -> None:
    load = Workload(name="w", evaluation=tuple(prompts(21)))
    with serving(v1_completions=dies_after(15)) as server:
        found = bench(server.url, load, tmp_path / "s", Arrivals.closed(1), Arrivals.closed(4))
    before, after = found.speeds
    # One prompt warmed up; of the others a third is for the single stream.
    assert (before.requests, before.errors, before.errors_by_kind) == (6, 0, {})
    assert before.ttft_ms.count == before.requests
    assert (after.requests, after.errors) == (13, 5)
    assert after.errors_by_kind == {"disconnect": 5}
    assert after.ttft_ms.count == after.requests - 5
    assert any(
        f"5 of {after.requests} requests failed at 4 streams (5 disconnect); the first: disconnect" in note
        for note in found.notes
    )
    assert len(read_samples(tmp_path / "s")) == 20
    assert found.answered == 14
    assert not found.server_gone, "it lists its models still"


def test_a_server_that_is_gone_at_the_end_is_told_and_ends_with_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    file = tmp_path / "w.jsonl"
    file.write_text("".join(json.dumps({"id": p.id, "prompt": p.prompt}) + "\n" for p in prompts(30)), encoding="utf-8")
    dying, asked = dies_after(15), 0

    def models(exchange: Exchange) -> None:
        if asked <= 15:
            exchange.answer(200, {"data": [{"id": "m"}]})
        else:
            exchange.close_connection = True

    def answers(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        dying(exchange)

    with serving(v1_models=models, v1_completions=answers) as server:
        code = run(["bench", server.url, "--workload", str(file), "--streams", "1,4", "--out", str(tmp_path), "--json"])
    out, err = capsys.readouterr()
    found = Benchmark.model_validate_json(out)
    assert code == 5, found.notes
    assert found.server_gone
    assert (found.speeds[0].errors, found.answered) == (0, 14)
    assert any(n.startswith("The server stopped answering at 4 streams, after ") for n in found.notes)
    assert "the server is gone" in err


def test_an_endpoint_that_answers_nothing_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "w.jsonl"
    file.write_text("".join(json.dumps({"id": p.id, "prompt": p.prompt}) + "\n" for p in prompts(30)), encoding="utf-8")

    def models(exchange: Exchange) -> None:
        exchange.answer(200, {"data": [{"id": "m"}]})

    def busy(exchange: Exchange) -> None:
        exchange.answer(503, {"error": {"message": "no"}})

    with (
        serving(v1_models=models, v1_completions=busy) as server,
        pytest.raises(EngineError, match=r"answered none of \d+ requests \(http 503\); see .*jsonl"),
    ):
        api.benchmark(server.url, file, rate=(200.0,), out=tmp_path / "out")


def test_what_can_not_be_planned_is_one_sentence() -> None:
    load = Workload(name="w", evaluation=tuple(prompts(4)))
    for loads, rounds, sentence in (
        ((), 1, "at least one load"),
        ((Arrivals.closed(2), Arrivals.closed(2)), 1, "each of them once"),
        ((Arrivals.closed(1), Arrivals.closed(8)), 3, "3 prompts are too few for 3 rounds at 2 loads"),
        ((Arrivals.closed(1),), 0, "at least one round"),
        ((Arrivals(kind="trace"),), 1, "doesn't say when it came"),
    ):
        with pytest.raises(BadInputError, match=sentence):
            plan(load, loads, rounds, repeat=False)


def test_all_rates_take_about_the_same_time() -> None:
    load = Workload(name="w", evaluation=tuple(prompts(141)))
    _, batches = plan(load, (Arrivals.poisson(1.0), Arrivals.poisson(2.0), Arrivals.poisson(4.0)), 1, repeat=False)
    assert [len(batch) for _, _, batch in batches] == [20, 40, 80]
    sent = [prompt.id for _, _, batch in batches for prompt in batch]
    assert len(set(sent)) == len(sent)


def drive(job: Job) -> dict[str, Any]:
    with job.out.open("ab") as out:
        return asyncio.run(client.drive(job, out))


def job(url: str, out: Path, due_s: tuple[float, ...], timeout_s: float = 30.0) -> Job:
    calls = tuple(Call(id=f"p{i}", path="/completions", body={"prompt": "x"}) for i in range(len(due_s)))
    return Job(url=url, model="m", calls=calls, concurrency=50, due_s=due_s, load="trace", out=out, timeout_s=timeout_s)


def test_a_clock_that_jumps_is_said_and_the_figures_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    monkeypatch.setattr(client, "wall_clock", lambda: time.time() + (7200 if time.monotonic() - begun > 0.15 else 0))
    with serving(v1_completions=words(2)) as server:
        summary = drive(job(server.url, tmp_path / "s", (0.0, 0.2, 0.5)))
    capsys.readouterr()
    samples = read_samples(tmp_path / "s")
    assert summary["clock_step_s"] == pytest.approx(7200, abs=5)
    assert [s.error for s in samples] == [None] * 3
    assert samples[-1].end - samples[0].scheduled < 60
    report = doubts.report(summary, samples, trace(0.0, 0.2, 0.5), most=50)
    assert any("The clock was set by 72" in sentence for sentence in doubts.sentences(report, trace(0.0), 3))


def test_a_pause_of_the_schedule_is_not_the_servers_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(v1_completions=words(2)) as server:
        drive(job(server.url, tmp_path / "s", (0.0, 3.0), timeout_s=2.5))
    capsys.readouterr()
    assert [s.error for s in read_samples(tmp_path / "s")] == [None, None]


def test_a_server_that_has_gone_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "GONE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    drive(job(f"http://127.0.0.1:{port}/v1", tmp_path / "s", (0.0, 0.1, 1.0, 1.1)))
    capsys.readouterr()
    kinds = [(s.error or "").partition(":")[0] for s in read_samples(tmp_path / "s")]
    assert kinds[0] == "connect"
    assert kinds[-2:] == ["unsent", "unsent"]


def test_guesses_are_counted_by_prompt_where_the_server_says(tmp_path: Path) -> None:
    def script(exchange: Exchange) -> None:
        exchange.open_stream()
        exchange.send(event("several tokens at once", finish="length"))
        counts = json.loads(usage(7, 10).removeprefix(b"data: "))
        right = 3 if exchange.body["prompt"] == "text 0" else 5
        counts["usage"]["completion_tokens_details"] = {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": right,
            "rejected_prediction_tokens": 1,
        }
        exchange.send(b"data: " + json.dumps(counts).encode() + b"\n\n" + DONE)
        exchange.close_stream()

    with serving(v1_completions=script) as server:
        samples, _, _ = send(server.url, tmp_path / "s", Arrivals.closed(1), 2)
    assert [(s.accepted, s.drafted) for s in samples] == [(3, 4), (5, 6)]
    speed = figures(samples, Arrivals.closed(1))
    assert speed.acceptance is not None
    assert (speed.acceptance.accepted, speed.acceptance.guessed, speed.acceptance.prompts) == (8, 10, 2)
    assert speed.acceptance.share.value == 0.8
    assert speed.tokens_per_piece == 10


def test_llama_cpp_says_in_its_timings_how_many_guesses_held() -> None:
    stream = client.Stream(Sample(prompt_id="p", concurrency=1, scheduled=0.0, sent=0.0))
    # As its server ends a stream (build 0c1e570, with a draft model), shortened.
    last = {
        "choices": [],
        "object": "chat.completion.chunk",
        "usage": {"completion_tokens": 40, "prompt_tokens": 38, "total_tokens": 78},
        "timings": {"prompt_n": 38, "predicted_n": 40, "predicted_ms": 655.4, "draft_n": 33, "draft_n_accepted": 30},
    }
    stream.feed(event("a") + b"data: " + json.dumps(last).encode() + b"\n\n" + DONE, 1.0)
    stream.close(1.0)
    assert (stream.sample.accepted, stream.sample.drafted) == (30, 33)


@pytest.mark.parametrize(
    "details",
    [
        None,
        {},
        {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
        {"accepted_prediction_tokens": None},
    ],
)
def test_without_guesses_there_is_no_acceptance(details: Any) -> None:
    stream = client.Stream(Sample(prompt_id="p", concurrency=1, scheduled=0.0, sent=0.0))
    counts = {"prompt_tokens": 1, "completion_tokens": 2, "completion_tokens_details": details}
    stream.feed(event("a") + b"data: " + json.dumps({"choices": [], "usage": counts}).encode() + b"\n\n" + DONE, 1.0)
    stream.close(1.0)
    assert (stream.sample.accepted, stream.sample.completion_tokens) == (None, 2)
    assert figures([stream.sample], Arrivals.closed(1)).acceptance is None
