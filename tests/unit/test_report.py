from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from quicksilver.bench import charts, columns, findings, pages, report, tradeoffs
from quicksilver.errors import BadInputError, NotEnoughError
from quicksilver.nouns import Candidate, Figure, Latency, Result

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
import variants

ALL = (
    "golden",
    "one_concurrency",
    "no_quality",
    "all_failed",
    "nothing_at_all",
    "no_winner",
    "no_baseline",
    "old",
    "forty",
    "beaten",
    "evil",
    "predicted",
)


def printed(result: Result, width: int = 100, **settings: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **settings)
    console.print(report.table(result, width=width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@cache
def page(variant: str) -> str:
    return report.html(getattr(variants, variant)())


class Tags(HTMLParser):
    """Counts tags and collects what could load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (name in ("src", "href", "srcset", "action", "data") and tag != "path"):
                self.loads.append(f"{name}={value}")

    def handle_data(self, data: str) -> None:
        self.text += data


# Old documents


def test_a_result_from_before_presets_is_read_and_shown() -> None:
    result = variants.old()
    assert result.presets == () and result.interactions is None and result.cost_model_error is None
    assert "Which recipe for which use" not in page("old")
    assert "Which recipe for which use" in page("golden")
    assert result.model_copy(update=variants.BARE) == variants.golden().model_copy(update=variants.BARE)


# Trade-offs


def test_every_face_has_presets_interactions_and_where_recipes_overtake() -> None:
    result = variants.golden()
    for text in (printed(result, 140), report.markdown(result), Tags(page("golden")).text):
        for words in (
            "cost, latency",
            "prompt-lookup",
            "what the product would promise",
            "overtakes",
            "23 predictions",
        ):
            assert words in " ".join(text.split())
    together = tradeoffs.interactions(result)[1]
    assert [row[0] for row in together[-3:]] == ["what the product would promise", "all together, measured", "together over product"]  # fmt: skip
    assert together[-1][1:3] == ["-6 %", "-3 %"]  # of 2.46x and 1.59x


def test_a_technique_that_was_not_measured_says_so() -> None:
    result = variants.golden()
    assert result.interactions is not None
    parts = tuple(
        p.model_copy(update={"ratios": (None, None), "remark": "not measured: the budget was used up"})
        for p in result.interactions.parts
    )
    changed = result.interactions.model_copy(update={"parts": parts, "product": (None, None)})
    text = printed(result.model_copy(update={"interactions": changed}), 140)
    assert "not measured: the budget was used up" in text
    assert "not known at 1 stream" in text


# The words


def test_verdict_says_speed_quality_and_price() -> None:
    assert findings.verdict(variants.golden()) == (
        "int8 + prompt-lookup(tokens=4) serves this model 2.3x faster than as it comes (1.5x with 8 streams), "
        "at 0.9 % quality loss and 35 % lower price per token."
    )


def test_verdict_when_the_model_as_it_comes_is_best() -> None:
    result = variants.golden().model_copy(update={"best": "as-is"})
    assert findings.verdict(result) == "Nothing that was tried beats this model as it comes."


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("no_winner", "No recipe keeps to the limits"),
        ("all_failed", "Nothing could be measured; the reasons are below."),
        ("nothing_at_all", "Nothing could be measured."),
        ("no_baseline", "w8a8 serves 50.1 tokens/s with 1 stream, 122 tokens/s with 8 streams."),
        ("no_quality", "a quality loss that was not measured"),
    ],
)
def test_verdict_of_odd_results(variant: str, words: str) -> None:
    assert words in findings.verdict(getattr(variants, variant)())


def test_a_slower_winner_is_not_called_faster() -> None:
    base = variants.golden()
    best = findings.winner(base)
    assert best is not None
    speeds = tuple(s.model_copy(update={"ratio": Figure(value=0.8)}) for s in best.score.speed)
    slow = best.model_copy(update={"score": best.score.model_copy(update={"speed": speeds})})
    result = base.model_copy(update={"candidates": tuple(slow if c is best else c for c in base.candidates)})
    assert "at 0.80x the speed" in findings.verdict(result)
    assert "faster" not in findings.verdict(result)


def test_order_is_as_is_then_winner_then_goal_then_what_cannot_win() -> None:
    found = findings.measured(variants.golden())
    assert found[0].baseline
    assert found[1].label == "int8 + prompt-lookup(tokens=4)"
    assert [c.eligible for c in found] == sorted((c.eligible for c in found), reverse=True)
    costs = [c.score.cost.measured for c in found if c.eligible and not c.baseline and c.score.cost]
    assert costs == sorted(costs)


def test_ratio_is_the_paired_one_or_the_quotient_without_an_interval() -> None:
    result = variants.golden()
    int8 = result.candidate("int8")
    base = result.baseline
    assert int8 and base
    paired = findings.ratio(result, int8, 1)
    assert paired is not None and paired.low is not None
    speeds = tuple(s.model_copy(update={"ratio": None}) for s in int8.score.speed)
    unpaired = findings.ratio(
        result, int8.model_copy(update={"score": int8.score.model_copy(update={"speed": speeds})}), 1
    )
    assert unpaired is not None and unpaired.low is None
    at = int8.score.at(1), base.score.at(1)
    assert at[0] and at[1]
    assert unpaired.value == pytest.approx(at[0].tokens_per_s.value / at[1].tokens_per_s.value)


def test_reasons_are_folded_and_every_candidate_is_accounted_for() -> None:
    for name in ALL:
        result = getattr(variants, name)()
        groups = {group.title: group for group in findings.left_out(result)}
        out = sum(group.count for title, group in groups.items() if title != "Can't win")
        assert len(findings.measured(result)) + out == len(result.candidates)
    left = {group.title: group for group in findings.left_out(variants.golden())}["Left out"]
    assert [len(labels) for _, labels in left.reasons] == [2, 1]


def test_failed_requests_and_spread_are_said() -> None:
    text = " ".join(findings.cautions(variants.golden()))
    assert "w8a8 3 of 192 at 8 streams" in text
    assert "±6 %" in text


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_numbers_keep_their_size(value: float) -> None:
    text = findings.number(value)
    if not math.isfinite(value):
        assert text == findings.NOTHING
    else:
        assert float(text.replace(",", "")) == pytest.approx(value, rel=0.06, abs=1e-300)


# The table


@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("variant", ALL)
def test_table_fits_the_terminal_and_loses_nothing(variant: str, width: int) -> None:
    result = getattr(variants, variant)()
    text = printed(result, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text, "a figure or a label was cut off"
    flat = re.sub(r"\s", "", text)
    folded = {row.label for row in columns.rows(result, []) if row.folded}
    for candidate in result.candidates:
        assert candidate.label in folded or re.sub(r"\s", "", findings.plain(candidate.label)).split("+")[0] in flat


def test_of_many_recipes_those_that_cannot_win_are_folded_but_for_the_best() -> None:
    result = variants.beaten()
    rows = columns.rows(result, [])
    folded = [row for row in rows if row.folded]
    shown = [row for row in rows if not row.folded]
    assert {row.mark for row in folded} == {"over"}
    assert [row.mark for row in shown].count("over") == columns.FIRST + 1
    assert shown[-1].label == "vllm: as-is", "it is the only one of its engine"
    assert all(row.label != "vllm: as-is" for row in folded)

    text = " ".join(printed(result, 120).split())
    assert f"{len(folded)} more that can't win are in report.html." in text
    left = next(group for group in findings.left_out(result) if group.title == "Can't win")
    hidden = max(len(labels) for _, labels in left.reasons) - columns.MANY
    assert f"and {hidden} more" in text

    tags = Tags(page("beaten"))
    assert tags.text.count(f"{len(folded)} more that can't win") == 2  # of the recipes, and of their quality
    for row in rows:
        assert row.label in tags.text
        assert row.label in report.markdown(result)
    assert not any(row.folded for row in columns.rows(variants.golden(), []))


def test_table_has_no_escape_codes_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" in printed(variants.golden(), force_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(variants.golden(), force_terminal=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", text)
    assert "★" in text and "14.1!" in text and "✗" in text


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in printed(variants.evil())
    assert "[red]" in printed(variants.evil(), 200)


def test_many_concurrencies_leave_the_lowest_and_the_highest_and_say_so() -> None:
    base = variants.golden()

    def more(candidate: Candidate) -> Candidate:
        if not candidate.score.speed:
            return candidate
        first = candidate.score.speed[0]
        speeds = tuple(first.model_copy(update={"concurrency": 2**i}) for i in range(7))
        return candidate.model_copy(update={"score": candidate.score.model_copy(update={"speed": speeds})})

    result = base.model_copy(update={"candidates": tuple(map(more, base.candidates))})
    text = printed(result, 80)
    assert "at 1 " in text and "at 64" in text
    assert "Also measured at" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "Also measured" not in printed(result, 200)


def test_columns_nobody_has_a_figure_for_are_left_out() -> None:
    heads = [c.head for c in columns.columns(variants.no_quality(), [1])]
    assert "quality" not in heads and "$/1M" in heads


def test_no_gaps_between_tokens_shows_no_zero() -> None:
    result = variants.golden()
    none = Latency(p50=0, p90=0, p95=0, p99=0)
    one = result.candidates[1]
    speeds = tuple(s.model_copy(update={"itl_ms": none, "tpot_ms": none}) for s in one.score.speed)
    changed = one.model_copy(update={"score": one.score.model_copy(update={"speed": speeds})})
    result = result.model_copy(update={"candidates": (result.candidates[0], changed), "best": None})
    shown = columns.columns(result, [1])
    at = [c.head for c in shown].index("ITL p50")
    assert columns.rows(result, shown)[1].cells[at].main == findings.NOTHING


# Markdown and notebook


@pytest.mark.parametrize("variant", ALL)
def test_markdown_tables_are_square(variant: str) -> None:
    result = getattr(variants, variant)()
    blocks = [block.splitlines() for block in report.markdown(result).split("\n\n")]
    tables = [block for block in blocks if block and block[0].startswith("|")]
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    rows = len(findings.measured(result))
    assert [len(lines) for lines in tables[:1]] == ([rows + 2] if rows else [])
    assert len(tables) == bool(rows) + bool(result.presets) + bool(result.points) + (result.interactions is not None)


def test_markdown_escapes() -> None:
    text = report.markdown(variants.evil())
    outside = re.sub(r"(`+).*?\1", "", text)
    assert "<script" not in outside
    assert "\x1b" not in text


@pytest.mark.parametrize("variant", ALL)
def test_notebook_has_a_row_a_recipe_and_no_script(variant: str) -> None:
    result = getattr(variants, variant)()
    tags = Tags(report.notebook_html(result)).tags
    assert "script" not in tags
    rows = len(findings.measured(result))
    assert tags.count("tr") == (rows + 1 if rows else 0)


# The page


@pytest.mark.parametrize("variant", ALL)
def test_page_loads_nothing_and_escapes_everything(variant: str) -> None:
    result = getattr(variants, variant)()
    tags = Tags(page(variant))
    assert set(tags.loads) == {"href=data:,", "href=#recipes"}
    drawn = page(variant).count("data-chart=")
    assert bool(drawn) == bool(findings.measured(result))
    # One data block for each chart, and the page's own script; nothing that a label brought along.
    assert tags.tags.count("script") == (drawn + 1 if drawn else 0)
    assert "<script>alert" not in page(variant)
    assert "default-src 'none'" in page(variant)
    assert len(page(variant).encode()) < 1_500_000


def test_page_has_what_was_measured_how_and_what_to_do_next() -> None:
    result = variants.golden()
    text = " ".join(Tags(page("golden")).text.split())
    for words in (
        result.command, "quicksilver serve runs/" + result.id, "CC BY-SA 4.0", "Apache-2.0", "2026.4.1.0", "AMD EPYC 9R14",
        "502 to 998 tokens", "23 November 2026, 14:02 UTC", "Quality loss", "measured", "ran out of memory",
    ):  # fmt: skip
        assert words in text, words


def test_charts_cope_with_what_is_missing() -> None:
    assert [c.name for c in charts.draw(variants.golden())] == [
        "throughput", "quality", "request-1", "request-8", "price-measured", "price-blended",
    ]  # fmt: skip
    assert [c.name for c in charts.draw(variants.no_quality())] == [
        "throughput", "request-1", "request-8", "price-measured", "price-blended",
    ]  # fmt: skip
    assert "request-8" not in [c.name for c in charts.draw(variants.one_concurrency())]
    assert charts.draw(variants.all_failed()) == []


def test_chart_specifications_hold_every_recipe_and_a_drawing() -> None:
    for chart in charts.draw(variants.golden()):
        recipes = set(re.findall(r'"recipe": "(.*?)"', json.dumps(chart.spec)))
        assert recipes == {c.label for c in findings.measured(variants.golden())}
        assert chart.svg.startswith("<svg") and "var(--" in chart.svg
        assert "http" not in json.dumps(chart.spec)


def test_series_of_forty_recipes_share_a_look_beyond_eight() -> None:
    series = charts.legend(variants.forty())
    assert len(series) == 9
    assert series[-1].label == charts.OTHERS
    assert len({s.colour for s in series}) == 9
    assert len({s.shape for s in series}) == 8


def test_page_without_the_chart_libraries_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "find_spec", lambda name: None if name == "vl_convert" else object())
    bare = report.html(variants.golden())
    assert "The charts are missing: vl_convert was not installed" in bare
    assert "script" not in Tags(bare).tags


# Files


def test_save_and_load_are_inverse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "html", lambda *_: "drawn by other tests")
    for name in ALL:
        result = getattr(variants, name)()
        report.save(result, tmp_path / name)
        assert report.load_result(tmp_path / name) == result
        assert report.load_result(tmp_path / name / "result.json") == result
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == ["report.html", "result.json"]


def test_save_replaces_whole_files_and_keeps_the_data_if_drawing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.save(variants.golden(), tmp_path)
    before = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert before == page("golden")

    def broken(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(report, "html", broken)
    with pytest.raises(RuntimeError):
        report.save(variants.no_winner(), tmp_path)
    assert report.load_result(tmp_path) == variants.no_winner()
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before


def test_a_write_that_breaks_off_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.save(variants.golden(), tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotEnoughError, match="disk is full"):
        report.save(variants.no_winner(), tmp_path)
    assert report.load_result(tmp_path) == variants.golden()
    assert len(list(tmp_path.iterdir())) == 2


def test_save_to_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("", encoding="utf-8")
    with pytest.raises(BadInputError, match="can't be written"):
        report.save(variants.golden(), tmp_path / "runs" / "1")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no result at"),
        ("{", "is broken"),
        ("[]", "is not a result"),
        ("{}", "is not a result"),
        ('{"version": 0}', "format version 0"),
        ('{"version": 1, "id": "x"}', "is broken at created"),
        (b"\xff\xfe", "is broken"),
    ],
)
def test_load_says_what_is_wrong(tmp_path: Path, content: str | bytes | None, words: str) -> None:
    file = tmp_path / "result.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInputError, match=words) as caught:
        report.load_result(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_winner_is_called_lossless_only_by_its_certificate() -> None:
    bare, certified = variants.golden(), variants.certificate()
    asked = "quicksilver certify runs/20261123-140209-smollm2-hotpotqa"
    for face in (report.html, report.markdown, report.notebook_html):
        assert asked in face(bare).replace("\\", "")
        assert "ossless" not in face(bare)
        assert "Lossless up to near ties" in face(bare, certified)
        assert asked not in face(bare, certified)
    assert "ossless" not in printed(bare)
    assert asked not in report.html(variants.no_winner())


def test_a_certificate_stands_in_the_report_of_the_run_that_has_it(tmp_path: Path) -> None:
    report.save(variants.golden(), tmp_path)
    kept = report.keep(variants.certificate(), tmp_path)
    assert report.load_certificate(kept) == variants.certificate()
    assert "Lossless up to near ties" in (tmp_path / "report.html").read_text(encoding="utf-8")
    other = variants.certificate().model_copy(update={"label": "int8"})
    report.keep(other, tmp_path)  # of an artefact that isn't the winner
    assert "Lossless" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    kept.write_text("{", encoding="utf-8")
    report.save(variants.golden(), tmp_path)
    assert "Lossless" not in (tmp_path / "report.html").read_text(encoding="utf-8")
