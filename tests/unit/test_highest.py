"""The highest load within an SLO on an endpoint: fresh prompts, samples that are kept, and servers that die."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from scripted_server import Exchange, serving, words

from quicksilver.bench import load
from quicksilver.bench.highest import Feed, TooFewPromptsError, find_highest
from quicksilver.bench.load import read_samples
from quicksilver.bench.price import price
from quicksilver.bench.slo_search import rates, streams
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Benchmark, Endpoint, Prompt, Slo, Workload

PRICE = price(1.0)
SLO = Slo.parse("ttft_p50<400ms")  # six requests judge a median


def workload(count: int) -> Workload:
    return Workload(
        name="w", evaluation=tuple(Prompt(id=f"p{n}", prompt=f"text {n}") for n in range(count)), max_tokens=4
    )


def test_prompts_are_handed_out_once() -> None:
    feed = Feed(workload(10).evaluation, repeat=False)
    assert [p.id for p in feed.take(7, "This")] == [f"p{n}" for n in range(7)]
    with pytest.raises(TooFewPromptsError, match="This takes 4 prompts that weren't sent before, and 3 of 10 are left"):
        feed.take(4, "This")
    assert len({p.id for p in feed.take(3, "This")}) == 3
    again = Feed(workload(3).evaluation, repeat=True)
    assert [p.id for p in again.take(7, "")] == ["p0", "p1", "p2", "p0", "p1", "p2", "p0"]


def test_a_server_that_refuses_a_third_stream(tmp_path: Path) -> None:
    """What it refuses is an HTTP status, so no time is judged: this doesn't depend on the machine's speed."""
    lock = threading.Lock()
    running = 0

    def script(exchange: Exchange) -> None:
        nonlocal running
        with lock:
            running += 1
            full = running > 2
        time.sleep(0.05)
        with lock:
            running -= 1
        if full:
            exchange.answer(429, {"error": {"message": "full"}})
        else:
            words(2, pause_s=0)(exchange)

    heard: list[tuple[str, int, int, float | None]] = []
    slo = Slo.parse("errors<5%,e2e_p50<60s")
    with serving(v1_completions=script) as server:
        found = find_highest(
            Endpoint(url=server.url, model="m"), workload(400), slo, price=PRICE, samples=tmp_path / "s.jsonl",
            target="http://x", command="quicksilver bench http://x", tools={"engine": "1"}, on_progress=lambda *x: heard.append(x),
        )  # fmt: skip
        sent = [body["prompt"] for _, body, _ in server.seen]
    assert found.search is not None
    assert (found.search.best, found.search.above) == (2, 3)
    assert found.search.verdict.startswith("2 streams meet errors<5%,e2e_p50<60000ms")
    assert [attempt.load for attempt in found.search.attempts] == [1, 2, 3, 4]
    assert [speed.concurrency for speed in found.speeds] == [1, 2, 3, 4]
    assert len(found.costs) == len(found.goodputs) == 4
    assert len(sent) == len(set(sent)), "each prompt is sent once"
    kept = read_samples(found.samples)
    assert len(kept) == len(sent)
    assert (found.command, found.target, found.tools["engine"], found.slo) == (
        "quicksilver bench http://x",
        "http://x",
        "1",
        slo,
    )
    assert found.settings["loads"] == [1, 2, 3, 4]
    assert Benchmark.model_validate_json(found.model_dump_json()) == found
    assert heard[-1][3] is not None
    assert heard[0][:2] == ("1 stream", 0)


def test_a_server_that_dies_in_the_middle_leaves_what_was_measured(tmp_path: Path) -> None:
    died = threading.Event()
    with ExitStack() as running:
        server = running.enter_context(serving(v1_completions=words(2)))
        endpoint = Endpoint(url=server.url, model="m")

        def watch(text: str, done: int, total: int, left_s: float | None) -> None:
            if text == "4 streams" and not died.is_set():
                died.set()
                running.close()

        found = find_highest(
            endpoint, workload(400), SLO, price=PRICE, samples=tmp_path / "s.jsonl", loads=streams(8), on_progress=watch
        )
    assert died.is_set()
    assert found.search is not None
    assert (found.search.best, [attempt.load for attempt in found.search.attempts]) == (2, [1, 2])
    assert found.search.ended.startswith("The server stopped answering at 4 streams, after ")
    assert any(s.concurrency == 4 for s in read_samples(found.samples)), "what was seen of the last load is kept too"


def test_too_few_prompts_say_so_and_leave_what_was_measured(tmp_path: Path) -> None:
    with serving(v1_completions=words(2)) as server:
        endpoint = Endpoint(url=server.url, model="m")
        found = find_highest(endpoint, workload(20), SLO, price=PRICE, samples=tmp_path / "s.jsonl")
        assert found.search is not None
        assert found.search.best == 2
        assert found.search.ended.startswith(
            "A look at 4 streams takes 12 prompts that weren't sent before, and 5 of 19 are left"
        )
        with pytest.raises(BadInputError, match="A look at 1 stream takes 6 prompts"):
            find_highest(endpoint, workload(5), SLO, price=PRICE, samples=tmp_path / "s.jsonl")
        over = find_highest(
            endpoint, workload(5), SLO, price=PRICE, samples=tmp_path / "s.jsonl", loads=streams(2), repeat_prompts=True
        )
    assert over.search is not None
    assert over.search.best == 2
    assert any("a prefix cache flatters these figures" in note for note in over.notes)


def test_the_highest_rate_is_looked_for_in_an_open_loop(tmp_path: Path) -> None:
    slo = Slo.parse("e2e_p50<60000ms")
    with serving(v1_completions=words(2)) as server:
        found = find_highest(
            Endpoint(url=server.url, model="m"), workload(400), slo, price=PRICE, samples=tmp_path / "s.jsonl",
            loads=rates(10, 20),
        )  # fmt: skip
    assert found.search is not None
    assert (found.search.best, found.search.unit) == (20, "requests/s")
    assert [(speed.load, speed.arrivals) for speed in found.speeds] == [("10/s", "poisson"), ("20/s", "poisson")]
    assert all(
        speed.requests == attempt.requests for speed, attempt in zip(found.speeds, found.search.attempts, strict=True)
    )
    samples = [s for s in read_samples(found.samples) if not s.warmup]
    assert all(s.sent >= s.scheduled for s in samples)
    assert len({s.scheduled for s in samples}) == len(samples)


def test_a_client_that_can_not_follow_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_most_in_flight", lambda _: 1)
    with (
        serving(v1_completions=words(2, pause_s=0.01)) as server,
        pytest.raises(EngineError, match="client was saturated at 500 requests/s"),
    ):
        find_highest(
            Endpoint(url=server.url, model="m"), workload(400), Slo.parse("e2e_p50<60000ms"), price=PRICE,
            samples=tmp_path / "s.jsonl", loads=rates(500, 500),
        )  # fmt: skip
