# ruff: noqa: F811, fixtures are named like the arguments that ask for them
"""The page of a benchmark in a real browser: it shows its drawings, fits a telephone, follows the scheme, asks for nothing."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, chromium, page  # noqa: F401, the fixtures

from quicksilver.bench import export

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
import loads

pytestmark = pytest.mark.browser
FITS = "document.documentElement.scrollWidth <= window.innerWidth"
SEEN = "[...document.querySelectorAll('figure svg')].map(s => { const r = s.getBoundingClientRect(); return [r.width, r.height]; })"


@cache
def html(variant: str) -> str:
    found, samples = getattr(loads, variant)()
    return export.text(found, samples, "html")


def write(variant: str, folder: Path) -> Path:
    file = folder / "bench.html"
    file.write_text(html(variant), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("variant", "look", "drawings"),
    [
        ("searched", {}, 4),
        ("searched", {"dark": True, "width": 400}, 4),
        ("searched", {"media": "print", "width": 740}, 4),
        ("plain", {"width": 400}, 3),
        ("evil", {"width": 400}, 3),
        ("open_loop", {}, 3),
        ("nothing_answered", {}, 0),
    ],
    ids=str,
)
def test_the_page_shows_its_drawings_and_asks_for_nothing(
    page: Page, tmp_path: Path, variant: str, look: dict[str, Any], drawings: int
) -> None:
    file = write(variant, tmp_path)
    page.look(**look)
    page.open(file)
    sizes = page.eval(SEEN)
    assert len(sizes) == drawings
    assert all(width > 250 and height > 100 for width, height in sizes), sizes
    assert page.eval("document.querySelectorAll('table tbody tr').length") > 0
    assert page.eval("document.querySelectorAll('script').length") == 0
    assert page.eval(FITS), "the page scrolls sideways"
    assert [url for url in page.requests if not url.startswith("data:")] == [file.as_uri()]
    assert page.problems == []
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_drawings_follow_the_scheme(page: Page, tmp_path: Path) -> None:
    file = write("searched", tmp_path)
    shades = []
    for dark in (False, True):
        page.look(dark=dark)
        page.open(file)
        text = "getComputedStyle(document.querySelector('figure .role-axis-label text')).fill"
        shades.append((page.eval("getComputedStyle(document.body).backgroundColor"), page.eval(text)))
    assert shades[0][0] != shades[1][0]
    assert shades[0][1] != shades[1][1]
