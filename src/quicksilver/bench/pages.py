"""Pages: the templates of this package, and what they can be filled with."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from quicksilver.errors import QuicksilverError

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def environment() -> Environment:
    """Return what renders the templates. Raises QuicksilverError without jinja2."""
    try:
        import jinja2
    except ImportError as error:
        raise QuicksilverError("A page needs jinja2: pip install 'quicksilver[optimize]'.") from error
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("quicksilver.bench"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters |= {"bound": bound, "breaks": breaks}
    return found


def charts_missing() -> list[str]:
    """Return the packages that charts lack; a page without them says so."""
    return [name for name in ("altair", "vl_convert") if find_spec(name) is None]


def bound(text: str) -> str:
    """Keep a number and its unit on one line."""
    return re.sub(r"(?<=\d) (?=(%|ms|MB|GB|s|streams?)\b|%)", "\N{NO-BREAK SPACE}", text)


def breaks(label: str) -> Markup:
    """Escape a label, and let a line break after an opening bracket or a comma."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[(,])", label))
