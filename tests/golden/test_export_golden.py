"""What exports of a benchmark look like, to the letter."""

from __future__ import annotations

import pytest
from compare import check
from loads import plain, searched
from test_report_golden import Outline

from quicksilver.bench import export
from quicksilver.bench.export import Format


@pytest.mark.parametrize(("form", "name"), [("json", "loads.json"), ("csv", "loads.csv"), ("md", "loads.md")])
def test_loads(form: Format, name: str) -> None:
    check(name, export.text(*plain(), form))


def test_aiperf() -> None:
    check("profile_export_aiperf.json", export.text(*plain(loads=(8,)), "aiperf"))


@pytest.mark.parametrize(("form", "name"), [("json", "search.json"), ("csv", "search.csv"), ("md", "search.md")])
def test_search(form: Format, name: str) -> None:
    check(name, export.text(*searched(), form))


@pytest.mark.parametrize(
    ("build", "name"),
    [(plain, "loads.outline.txt"), (searched, "search.outline.txt")],
    ids=["plain", "searched"],
)
def test_page(build: object, name: str) -> None:
    assert callable(build)
    outline = Outline()
    found, samples = build()
    outline.feed(export.text(found, samples, "html"))
    check(name, "\n".join(outline.lines) + "\n")
