# ruff: noqa: F811, fixtures are named like the arguments that ask for them
"""The page of a plan in a real browser: it draws its charts, sorts its table, fits a telephone, asks for nothing."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, chromium, page  # noqa: F401, the fixtures

from quicksilver.planner import report

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
import plans

pytestmark = pytest.mark.browser
FITS = "document.documentElement.scrollWidth <= window.innerWidth"
SEEN = "[...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().width > 0).length"
DRAWN = "document.querySelectorAll('[data-drawn]').length"


@cache
def html(variant: str) -> str:
    return report.html(getattr(plans, variant)())


def write(variant: str, folder: Path) -> Path:
    file = folder / "plan.html"
    file.write_text(html(variant), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("variant", "look", "drawings"),
    [
        ("searched", {}, 4),
        ("searched", {"dark": True, "width": 400}, 4),
        ("searched", {"scripts": False}, 4),
        ("infeasible", {"width": 400}, 2),
        ("evil", {}, 2),
        ("nothing", {}, 0),
    ],
    ids=str,
)
def test_the_page_draws_its_charts_and_asks_for_nothing(
    page: Page, tmp_path: Path, variant: str, look: dict[str, Any], drawings: int
) -> None:
    file = write(variant, tmp_path)
    page.look(**look)
    page.open(file)
    if look.get("scripts", True):
        page.until(f"{DRAWN} === {drawings}")
    assert page.eval(SEEN) == drawings
    assert page.eval(FITS), "the page scrolls sideways"
    assert [url for url in page.requests if not url.startswith("data:")] == [file.as_uri()]
    assert page.problems == []


def test_the_table_sorts_by_a_column(page: Page, tmp_path: Path) -> None:
    page.open(write("searched", tmp_path))
    page.until(f"{DRAWN} === 4")
    page.eval("document.querySelectorAll('table[data-sortable] th button')[2].click()")
    values = page.eval(
        "[...document.querySelector('table[data-sortable]').tBodies[0].rows].map(r => Number(r.cells[2].dataset.value))"
    )
    assert values == sorted(values)
    assert len(values) > 10
