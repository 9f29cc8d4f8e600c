from __future__ import annotations

import io
from html.parser import HTMLParser

import pytest
from compare import check
from rich.console import Console
from variants import certificate, golden

from quicksilver.bench import report


def printed(width: int) -> str:
    """The table as a terminal without colour shows it."""
    console = Console(file=io.StringIO(), width=width, no_color=True, color_system=None, legacy_windows=False)
    console.print(report.table(golden(), certificate(), width=width))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


class Outline(HTMLParser):
    """Indented tags with the attributes that carry meaning, and the text; no script, style or drawing."""

    KEPT = (
        "aria-label",
        "aria-labelledby",
        "class",
        "href",
        "id",
        "role",
        "scope",
        "tabindex",
        "data-chart",
        "content",
    )
    VOID = ("meta", "link", "br", "wbr", "path")
    HIDDEN = ("script", "style", "svg")

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.depth = self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self.hidden and tag != "wbr":
            kept = [f"{k}={v!r}" for k, v in attrs if k in self.KEPT and "sha256" not in (v or "")]
            self.lines.append("  " * self.depth + " ".join([tag, *kept]))
        if tag in self.HIDDEN:
            self.hidden += 1
        if tag not in self.VOID:
            self.depth += 1

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            self.depth -= 1
        if tag in self.HIDDEN:
            self.hidden -= 1

    def handle_data(self, data: str) -> None:
        if data.strip() and not self.hidden:
            self.lines.append("  " * self.depth + "| " + " ".join(data.split()))


@pytest.mark.parametrize("width", [80, 100, 120])
def test_table(width: int) -> None:
    check(f"table-{width}.txt", printed(width))


def test_markdown() -> None:
    check("report.md", report.markdown(golden(), certificate()))


def test_notebook() -> None:
    check("notebook.html", report.notebook_html(golden(), certificate()) + "\n")


def test_page() -> None:
    outline = Outline()
    outline.feed(report.html(golden(), certificate()))
    check("report.outline.txt", "\n".join(outline.lines) + "\n")
