"""What a plan looks like, to the letter."""

from __future__ import annotations

import io

import pytest
from compare import check
from plans import infeasible, nothing, searched
from rich.console import Console
from test_report_golden import Outline

from quicksilver.cli.plan import _show
from quicksilver.nouns.plan import Plan
from quicksilver.planner import report


@pytest.fixture(scope="module")
def found() -> Plan:
    return searched()


def terminal(plan: Plan) -> str:
    written = io.StringIO()
    _show(Console(width=200, file=written, markup=False, highlight=False), plan, every=False)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()) + "\n"


def outline(plan: Plan) -> str:
    reader = Outline()
    reader.feed(report.html(plan))
    return "\n".join(reader.lines) + "\n"


def test_terminal(found: Plan) -> None:
    check("plan.txt", terminal(found))


def test_page(found: Plan) -> None:
    check("plan.outline.txt", outline(found))


def test_an_slo_that_nothing_meets() -> None:
    check("plan-infeasible.txt", terminal(infeasible()))


def test_nothing_fits() -> None:
    check("plan-nothing.txt", terminal(nothing()))
