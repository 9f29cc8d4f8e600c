"""Export a Benchmark: JSON, CSV, Markdown, a page of its own, and AIPerf's form. Each carries all that it was measured with."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from quicksilver.bench import export_aiperf
from quicksilver.bench.load_table import Table, attempts_table, facts, loads_table
from quicksilver.bench.report import md, md_code, write_whole
from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.benchmark import Benchmark
from quicksilver.nouns.sample import Sample

Format = Literal["json", "csv", "md", "html", "aiperf"]
CONTROL = {number: "?" for number in (*range(32), 127) if chr(number) not in "\n\t"}
"""Control characters of a name would steer a terminal that shows the file."""
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[str, Format] = {
    ".json": "json",
    ".csv": "csv",
    ".md": "md",
    ".markdown": "md",
    ".html": "html",
    ".htm": "html",
}


def format_of(path: Path, wanted: str | None = None) -> Format:
    """Return the form that a file gets: the one that is wanted, or by its name. Raises BadInputError."""
    if wanted is not None:
        found = next((known for known in FORMATS if known == wanted), None)
        if found is None:
            raise unknown("export format", wanted, FORMATS)
        return found
    if path.name == export_aiperf.FILE_NAME:
        return "aiperf"
    known_suffix = SUFFIXES.get(path.suffix.lower())
    if known_suffix is None:
        raise BadInputError(
            f"What form {path} should have can't be told from its name; end it in .json, .csv, .md or .html, or say --format."
        )
    return known_suffix


def check(path: Path, form: Format, loads: int) -> None:
    """Refuse before anything is measured what could not be written after. Raises BadInputError."""
    if form == "aiperf" and loads != 1:
        raise BadInputError(
            f"AIPerf's form has one load in a file, and {loads} are asked for; choose one, such as --streams 8."
        )
    if path.is_dir():
        raise BadInputError(f"{path} is a folder; name a file in it.")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise BadInputError(f"{path} can't be written: {parent} is not a folder.")


def write(found: Benchmark, samples: Sequence[Sample], path: Path, form: Format) -> None:
    """Write a Benchmark, whole or not at all. `samples` are its own. Raises BadInputError, NotEnoughError."""
    write_whole(path, text(found, samples, form))


def text(found: Benchmark, samples: Sequence[Sample], form: Format) -> str:
    """Return a Benchmark in a form. Raises BadInputError."""
    match form:
        case "json":
            return json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n"
        case "csv":
            return as_csv(found).translate(CONTROL)
        case "md":
            return markdown(found).translate(CONTROL)
        case "aiperf":
            return export_aiperf.aiperf(_one_load(found), samples)
    from quicksilver.bench.export_html import html

    return html(found, samples).translate(CONTROL)


def _one_load(found: Benchmark) -> Benchmark:
    """Of a search, what it found; of one that found nothing, the load that comes nearest."""
    if found.search is None or not found.speeds:
        return found
    loads = [attempt.load for attempt in found.search.attempts]
    place = loads.index(found.search.best) if found.search.best is not None else 0
    one = slice(place, place + 1)
    return found.model_copy(
        update={"speeds": found.speeds[one], "costs": found.costs[one], "goodputs": found.goodputs[one]}
    )


def as_csv(found: Benchmark) -> str:
    """A row for each load; the last columns, the same in each row, say what it was measured with."""
    envelope = {
        "created": found.created,
        "model": found.model,
        "workload": found.workload,
        "target": found.target,
        "command": found.command,
        "quicksilver": found.tools.get("quicksilver", ""),
        "document_version": found.version,
        "hardware": found.hardware.model_dump(mode="json"),
        "tools": found.tools,
        "settings": found.settings,
        "slo": str(found.slo) if found.slo else "",
        "notes": list(found.notes),
    }
    rows = []
    for place, speed in enumerate(found.speeds):
        row = _flat(speed.model_dump(mode="json"))
        if place < len(found.costs) and (cost := found.costs[place]) is not None:
            row |= _flat(cost.model_dump(mode="json"), "usd")
        if found.goodputs:
            row |= _flat(found.goodputs[place].model_dump(mode="json"), "goodput")
        rows.append(row | {key: _cell(value) for key, value in envelope.items()})
    heads = list(dict.fromkeys(key for row in rows for key in row if key not in envelope)) + list(envelope)
    out = io.StringIO()
    writer = csv.DictWriter(out, heads, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures as columns: `ttft_ms.p50` becomes `ttft_ms_p50`, a Figure's value has its own name; lists become JSON."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{prefix}_{key}" if prefix else key
        if isinstance(value, dict) and "value" in value and "source" in value:
            flat[name] = value["value"]
            flat |= {f"{name}_{end}": _cell(value[end]) for end in ("low", "high")}
        elif key.endswith("_ci"):
            flat |= dict(zip((f"{name[:-3]}_low", f"{name[:-3]}_high"), value or ("", ""), strict=True))
        elif (
            isinstance(value, dict)
            and key != "errors_by_kind"
            and value
            and all(not isinstance(v, str) for v in value.values())
        ):
            flat |= _flat(value, name)
        else:
            flat[name] = _cell(value)
    return flat


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    # A spreadsheet would run a text that begins like a formula.
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def markdown(found: Benchmark) -> str:
    """Tables of the loads, what the search for an SLO found, and what it was measured with, as GitHub-flavoured Markdown."""
    lines = [f"# {md(found.model)} on {md(found.workload)}", ""]
    if found.search is not None:
        lines += [f"**{md(found.search.verdict)}**", ""]
        lines += [f"It ended early: {md(found.search.ended)}", ""] if found.search.ended else []
        lines += ["## Loads that were tried", "", *_md_table(attempts_table(found.search)), ""]
    lines += ["## Figures", "", *_md_table(loads_table(found)), ""]
    lines += ["## How it was measured", "", f"    {found.command}", ""]
    lines += [f"- {md(name)}: {md_code(value) if value else ''}" for name, value in facts(found).items()]
    lines += [f"- Note: {md(note)}" for note in found.notes]
    return "\n".join(lines) + "\n"


def _md_table(table: Table) -> list[str]:
    lines = ["| " + " | ".join(md(head) for head in table.heads) + " |"]
    lines.append("|" + "|".join(" --- " if n in table.words else " ---: " for n in range(len(table.heads))) + "|")
    return lines + ["| " + " | ".join(md(cell) for cell in row) + " |" for row in table.rows]
