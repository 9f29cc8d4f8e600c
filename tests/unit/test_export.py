"""Exports of a benchmark: what form a file gets, and that each one carries everything and harms nobody."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from quicksilver.bench import export
from quicksilver.bench.export import FORMATS, Format, format_of
from quicksilver.bench.export_html import headline
from quicksilver.bench.stats import figures
from quicksilver.errors import BadInputError, QuicksilverError
from quicksilver.nouns import Arrivals, Benchmark, Sample, Slo

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
import loads

Build = Callable[[], tuple[Benchmark, list[Sample]]]


def one_load() -> tuple[Benchmark, list[Sample]]:
    return loads.plain(loads=(8,), slo=loads.SLO)


@pytest.mark.parametrize(
    ("name", "wanted", "form"),
    [
        ("a.json", None, "json"),
        ("a.CSV", None, "csv"),
        ("a.md", None, "md"),
        ("a.htm", None, "html"),
        ("x/profile_export_aiperf.json", None, "aiperf"),
        ("a.txt", "aiperf", "aiperf"),
        ("profile_export_aiperf.json", "json", "json"),
    ],
)
def test_the_name_says_the_form_unless_it_is_told(name: str, wanted: str | None, form: str) -> None:
    assert format_of(Path(name), wanted) == form


def test_what_can_not_be_written_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"end it in \.json, \.csv, \.md or \.html, or say --format"):
        format_of(Path("a.xlsx"))
    with pytest.raises(BadInputError, match="no export format named 'cvs'; did you mean 'csv'"):
        format_of(Path("a"), "cvs")
    with pytest.raises(BadInputError, match="one load in a file, and 2 are asked for"):
        export.check(Path("profile_export_aiperf.json"), "aiperf", 2)
    with pytest.raises(BadInputError, match="is a folder; name a file in it"):
        export.check(tmp_path, "json", 1)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BadInputError, match="is not a folder"):
        export.check(tmp_path / "file" / "a.json", "json", 1)
    export.check(tmp_path / "new" / "a.json", "json", 2)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("build", [one_load, loads.searched], ids=lambda build: build.__name__)
def test_every_form_carries_version_machine_command_and_settings(build: Build, form: Format, tmp_path: Path) -> None:
    found, samples = build()
    path = tmp_path / "folder" / "file"
    export.write(found, samples, path, form)
    text = path.read_text(encoding="utf-8")
    for wanted in (
        "0.1.0",
        "Example CPU",
        "quicksilver bench http://127.0.0.1:8000",
        "questions.jsonl",
        "1999",
        "3.14.0",
    ):
        assert wanted in text, (form, wanted)


@pytest.mark.parametrize("form", [f for f in FORMATS if f != "aiperf"])
@pytest.mark.parametrize(
    "build", [loads.evil, loads.nothing_answered, loads.open_loop], ids=lambda build: build.__name__
)
def test_odd_benchmarks_can_be_written(build: Build, form: Format) -> None:
    found, samples = build()
    text = export.text(found, samples, form)
    assert "<script" not in text if form == "html" else True
    assert "\x1b" not in text
    assert "nan" not in text.lower().replace("nano", "")


def test_a_spreadsheet_runs_nothing() -> None:
    (row, *_) = csv.DictReader(io.StringIO(export.as_csv(loads.evil()[0])))
    assert row["workload"] == "'=1+1"


def test_csv_has_a_row_for_each_load_and_its_figures() -> None:
    found, _ = loads.plain(slo=loads.SLO)
    rows = list(csv.DictReader(io.StringIO(export.as_csv(found))))
    assert [row["concurrency"] for row in rows] == ["1", "8"]
    for row, speed, met in zip(rows, found.speeds, found.goodputs, strict=True):
        assert float(row["tokens_per_s"]) == speed.tokens_per_s.value
        assert float(row["ttft_ms_p95"]) == speed.ttft_ms.p95
        assert float(row["goodput_share"]) == met.share.value
        assert json.loads(row["settings"]) == found.settings
        assert json.loads(row["hardware"])["cpu"] == "Example CPU"


def test_json_is_the_document() -> None:
    found, samples = loads.searched()
    assert Benchmark.model_validate_json(export.text(found, samples, "json")) == found


def test_aiperf_takes_one_load_and_of_a_search_the_one_that_was_found() -> None:
    with pytest.raises(BadInputError, match="one load in a file, and 2 were measured"):
        export.text(*loads.plain(), "aiperf")
    found, samples = loads.searched()
    assert found.search is not None
    document = json.loads(export.text(found, samples, "aiperf"))
    assert document["input_config"]["phases"][0]["concurrency"] == found.search.best
    none, samples = loads.searched(slo=Slo.parse("ttft_p95<5ms"))
    assert json.loads(export.text(none, samples, "aiperf"))["input_config"]["phases"][0]["concurrency"] == 1


def test_an_open_loop_is_told_by_its_rate() -> None:
    found, samples = loads.open_loop()
    assert "2/s" in export.text(found, samples, "md")
    one = found.model_copy(update={"speeds": found.speeds[1:], "costs": (None,), "goodputs": found.goodputs[1:]})
    document = json.loads(export.text(one, samples, "aiperf"))
    assert document["input_config"]["phases"] == [{"name": "profiling", "requests": 80, "type": "poisson", "rate": 5.0}]
    assert document["request_count"]["avg"] == 80, "the other rate's requests aren't this one's"


def test_aiperf_has_its_own_definitions() -> None:
    found, samples = one_load()
    document = json.loads(export.text(found, samples, "aiperf"))
    good = [s for s in samples if s.error is None]
    seconds = max(s.end for s in samples) - min(s.sent for s in samples)
    itl = sorted((s.arrivals[-1] - s.arrivals[0]) * 1000 / (s.completion_tokens - 1) for s in good)
    chunks = [(b - a) * 1000 for s in good for a, b in pairwise(s.arrivals)]
    assert document["inter_token_latency"]["min"] == pytest.approx(itl[0])
    assert document["inter_token_latency"]["unit"] == "ms"
    assert document["inter_chunk_latency"]["count"] == len(chunks)
    assert document["inter_chunk_latency"]["avg"] == pytest.approx(sum(chunks) / len(chunks))
    assert document["request_count"] == {"unit": "requests", "avg": len(good)}
    assert document["error_request_count"]["avg"] == len(samples) - len(good) == 16
    assert document["request_throughput"] == {"unit": "requests/sec", "avg": pytest.approx(len(good) / seconds)}
    assert document["output_token_throughput"]["avg"] == pytest.approx(sum(s.completion_tokens for s in good) / seconds)
    assert document["error_summary"] == [
        {"error_details": {"message": "Too many requests.", "type": "http", "code": 429}, "count": 16}
    ]
    assert document["good_request_count"]["avg"] == found.goodputs[0].good
    ttft = document["time_to_first_token"]
    assert ttft["min"] <= ttft["p1"] <= ttft["p50"] <= ttft["p99"] <= ttft["max"]


def test_a_headline_says_what_was_found() -> None:
    assert headline(loads.searched()[0]).endswith(f"streams within {loads.SLO}")
    assert headline(loads.searched(slo=Slo.parse("ttft_p95<5ms"))[0]) == "No load surely meets ttft_p95<5ms"
    assert "tokens/s at 8 streams" in headline(loads.plain()[0])


def test_without_its_packages_a_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(QuicksilverError, match="needs jinja2"):
        export.text(*loads.plain(), "html")


def open_loads(*every: Arrivals) -> tuple[Benchmark, list[Sample]]:
    """The golden benchmark's requests as if they had come in an open loop."""
    found, samples = one_load()
    sent = [
        replace(s, load=load.load_name, concurrency=512, scheduled=s.sent + n / 7, round=0)
        for load in every
        for n, s in enumerate(samples)
    ]
    speeds = tuple(figures(sent, load) for load in every)
    costs = (found.costs[0],) * len(every)
    return found.model_copy(update={"speeds": speeds, "costs": costs, "goodputs": (), "slo": None}), sent


@pytest.mark.parametrize("form", ["json", "csv", "md", "html"])
def test_open_loads_are_exported_by_their_names(form: Format) -> None:
    found, samples = open_loads(Arrivals.poisson(2.0), Arrivals(kind="constant", rate_per_s=4.0))
    assert all(speed.requests > 0 for speed in found.speeds)
    text = export.text(found, samples, form)
    assert "4/s, constant" in text
    assert "requests/s" in text or form in ("json", "csv")


@pytest.mark.parametrize(
    ("load", "phase"),
    [
        (Arrivals.poisson(2.0), {"type": "poisson", "rate": 2.0}),
        (Arrivals(kind="constant", rate_per_s=4.0), {"type": "constant", "rate": 4.0}),
        (Arrivals(kind="trace"), {"type": "fixed_schedule"}),
        (Arrivals(streams=1, streams_to=4), {"type": "concurrency", "concurrency": 4}),
    ],
)
def test_aiperfs_form_has_open_loads_in_its_words(load: Arrivals, phase: dict[str, object]) -> None:
    found, samples = open_loads(load)
    document = json.loads(export.text(found, samples, "aiperf"))
    assert document["input_config"]["phases"][0] == {"name": "profiling", **phase, "requests": found.speeds[0].requests}
    assert document["request_count"]["avg"] == found.speeds[0].requests - found.speeds[0].errors
