# ruff: noqa: F811, fixtures are named like the arguments that ask for them
"""The report in a real browser: it draws, it asks for nothing, it says nothing on the console."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, chromium, page  # noqa: F401, the fixtures

from quicksilver.bench import charts, findings, report, tradeoff_charts

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
import variants

pytestmark = pytest.mark.browser
DRAWN = "document.querySelectorAll('[data-chart]').length === document.querySelectorAll('[data-drawn]').length"
MARKS = "[...document.querySelectorAll('[data-chart]')].map(c => c.querySelectorAll('.role-mark path, .role-mark text').length)"
ROWS = "document.querySelectorAll('table[data-sortable] tbody tr').length"
FITS = "document.documentElement.scrollWidth <= window.innerWidth"


@cache
def html(variant: str) -> str:
    return report.html(getattr(variants, variant)())


def write(variant: str, folder: Path) -> Path:
    file = folder / report.REPORT
    file.write_text(html(variant), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("variant", "look"),
    [
        ("golden", {}),
        ("golden", {"dark": True}),
        ("golden", {"width": 400}),
        ("golden", {"media": "print", "width": 740}),
        ("evil", {"width": 400}),
        ("forty", {}),
        ("beaten", {}),
        ("one_concurrency", {}),
        ("no_quality", {}),
        ("no_winner", {"dark": True}),
        ("no_baseline", {}),
        ("old", {}),
    ],
    ids=str,
)
def test_charts_are_drawn_and_nothing_is_loaded(page: Page, tmp_path: Path, variant: str, look: dict[str, Any]) -> None:
    result = getattr(variants, variant)()
    file = write(variant, tmp_path)
    page.look(**look)
    page.open(file)
    page.until(DRAWN)
    marks = page.eval(MARKS)
    assert len(marks) == len(charts.draw(result)) + len(tradeoff_charts.draw(result))
    assert all(count > 0 for count in marks), marks
    assert page.eval(ROWS) == len(findings.measured(result))
    assert page.eval(FITS), "the page scrolls sideways"
    assert [url for url in page.requests if not url.startswith("data:")] == [file.as_uri()]
    assert page.problems == []
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


@pytest.mark.parametrize("variant", ["all_failed", "nothing_at_all"])
def test_page_without_charts(page: Page, tmp_path: Path, variant: str) -> None:
    file = write(variant, tmp_path)
    page.look()
    page.open(file)
    assert page.eval("document.querySelectorAll('[data-chart], table').length") == 0
    assert page.requests == [file.as_uri()]
    assert page.problems == []


def test_presets_and_interactions_are_there_on_a_telephone(page: Page, tmp_path: Path) -> None:
    page.look(width=390, dark=True)
    page.open(write("golden", tmp_path))
    page.until(DRAWN)
    assert page.eval("document.querySelectorAll('[data-chart=front-spec] .mark-symbol.role-mark path').length") == 4
    assert page.eval("document.querySelectorAll('[data-chart=presets-spec] .mark-symbol.role-mark path').length") == 8
    for label, rows in (("presets", 8), ("the front", 4), ("interactions", 5)):
        assert page.eval(f"document.querySelectorAll('[aria-label=\"Table of {label}\"] tbody tr').length") == rows
    assert page.eval("document.querySelector('#load + section li').textContent.includes('is ahead of')")
    assert page.eval(FITS), "the page scrolls sideways"


def test_colours_follow_the_scheme(page: Page, tmp_path: Path) -> None:
    file = write("golden", tmp_path)
    shades = []
    for dark in (False, True):
        page.look(dark=dark)
        page.open(file)
        page.until(DRAWN)
        text = "getComputedStyle(document.querySelector('[data-chart] .role-axis-label text')).fill"
        shades.append((page.eval("getComputedStyle(document.body).backgroundColor"), page.eval(text)))
    assert shades[0][0] != shades[1][0]
    assert shades[0][1] != shades[1][1]
    page.look(dark=True, media="print")
    assert page.eval("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_drawings_stay_where_scripts_are_off(page: Page, tmp_path: Path) -> None:
    file = write("golden", tmp_path)
    page.look(scripts=False)
    page.open(file)
    page.look()
    assert page.eval("document.querySelectorAll('[data-chart] .still svg path').length") > 20
    assert page.eval("document.querySelectorAll('[data-drawn]').length") == 0


def test_hovering_a_point_names_its_recipe_as_text(page: Page, tmp_path: Path) -> None:
    file = write("evil", tmp_path)
    page.look()
    page.open(file)
    page.until(DRAWN)
    points = "[...document.querySelectorAll('[data-chart=throughput-spec] .mark-symbol.role-mark path')]"
    page.eval(f"{points}[0].scrollIntoView({{block: 'center'}})")
    # The winner is drawn above most others; one of its points is surely on top.
    spots = page.eval(
        f"{points}.map(p => {{const r = p.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]}})"
    )
    seen = []
    for x, y in spots:
        page.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        page.until("document.querySelector('#vg-tooltip-element.visible')")
        seen.append(page.eval("document.querySelector('#vg-tooltip-element').textContent"))
    assert any("<script>alert" in text and "tokens/s" in text for text in seen)
    assert page.eval("document.querySelectorAll('#vg-tooltip-element script').length") == 0
    assert page.problems == []


def test_a_script_that_is_not_ours_cannot_run(page: Page, tmp_path: Path) -> None:
    file = write("golden", tmp_path)
    file.write_text(file.read_text(encoding="utf-8").replace("<main>", "<main><script>window.stranger = 1</script><img src='https://example.invalid/x.png'>"), encoding="utf-8")  # fmt: skip
    page.look()
    page.open(file)
    page.until(DRAWN)
    assert page.eval("typeof window.stranger") == "undefined"
    assert len(page.problems) == 2, page.problems
    assert all("Content Security Policy" in text for text in page.problems)


def test_table_sorts_by_a_column_from_the_keyboard(page: Page, tmp_path: Path) -> None:
    file = write("golden", tmp_path)
    page.look()
    page.open(file)
    page.eval("document.querySelectorAll('table[data-sortable] th button')[1].focus()")
    first = "[...document.querySelectorAll('table[data-sortable] tbody tr')].map(r => Number(r.cells[1].dataset.value))"
    for _ in range(2):
        for kind in ("keyDown", "keyUp"):
            page.send("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r" if kind == "keyDown" else "")  # fmt: skip
        values = page.eval(first)
        order = page.eval("document.querySelector('th[aria-sort]').getAttribute('aria-sort')")
        assert values == sorted(values, reverse=order == "descending")
    assert order == "descending"
