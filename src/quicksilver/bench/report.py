"""The report of a Result: a table for the terminal, Markdown, a page of its own, a notebook cell; and its files."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from quicksilver.bench import certified, findings, pages, tradeoffs
from quicksilver.bench import columns as table_columns
from quicksilver.bench.columns import Cell, Column, Row
from quicksilver.bench.findings import plain
from quicksilver.errors import BadInputError, NotEnoughError
from quicksilver.nouns.certificate import CERTIFICATE_VERSION, Certificate
from quicksilver.nouns.result import RESULT_VERSION, Result

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

CERTIFICATE = "certificate.json"
RESULT = "result.json"
REPORT = "report.html"
MARKS = {"winner": "★", "as-is": "", "over": "✗", "": ""}
SHORT_HEADS, TIGHT = 112, 92
"""Terminals narrower than this get shorter headers; than that, one space between columns instead of two."""


def table(result: Result, certificate: Certificate | None = None, *, width: int | None = None) -> Group:
    """Lay the result out for a terminal of that width (characters; the terminal's own by default).

    A `certificate`, here and below, is that of the winner.
    """
    from rich.console import Console, Group
    from rich.padding import Padding
    from rich.text import Text

    width = width or Console().width
    every = findings.concurrencies(result)
    shown = _fitting(every, width)
    columns = table_columns.columns(result, shown)
    machine = result.hardware
    parts: list[Any] = [
        Text.assemble(
            (plain(result.model), "bold"),
            f" on {plain(result.workload)}, {plain(machine.cpu)}, {machine.cores} cores, {machine.memory_gb:.0f} GB",
        )
    ]
    rows = table_columns.rows(result, columns)
    if rows:
        unfolded = [row for row in rows if not row.folded]
        more = len(rows) - len(unfolded)
        below = _legend(columns, rows, every, shown) + (f" {more} more that can't win are in {REPORT}." if more else "")
        parts += [_rich_table(columns, unfolded, width), Text(below, style="dim")]
    parts += [Text(plain(line), style="yellow") for line in findings.cautions(result)]
    parts.append(Text(plain(findings.price_words(result)), style="dim"))
    won = findings.winner(result) is not None
    outcome = f"\n{MARKS['winner'] + ' ' if won else ''}{plain(findings.verdict(result))}"
    parts.append(Text(outcome, "bold green" if won else "bold red" if findings.bound(result) or not rows else "bold"))
    if result.why:
        parts.append(Padding(Text(plain(result.why)), (0, 0, 0, 2), expand=False))
    if standing := certified.standing(result, certificate):
        parts.append(Padding(Text(plain(standing)), (0, 0, 0, 2), expand=False))
    for title, sentences in tradeoffs.summary(result):
        parts.append(Text(f"\n{title}", "bold"))
        parts += [Padding(Text(plain(line)), (0, 0, 0, 2), expand=False) for line in sentences]
    for group in findings.left_out(result):
        parts.append(Text.assemble(("\n" + group.title, "bold"), (f" ({group.count}): {group.meaning}", "dim")))
        for reason, labels in group.reasons:
            names = Text("; ".join(map(plain, labels[: table_columns.MANY])), "bold")
            if len(labels) > table_columns.MANY:
                names.append(f"; and {len(labels) - table_columns.MANY} more", "not bold")
            if len(labels) == 1:
                parts.append(Padding(Text.assemble(names, ": ", plain(reason)), (0, 0, 0, 2), expand=False))
            else:
                parts.append(Padding(Text(plain(reason)), (0, 0, 0, 2), expand=False))
                parts.append(Padding(names, (0, 0, 0, 4), expand=False))
    return Group(*parts)


def _fitting(every: Sequence[int], width: int) -> list[int]:
    """Choose concurrencies for which there is room: the lowest, the highest, then the lower ones in between."""
    fixed, each = (68, 7) if width < TIGHT else (78, 8) if width < SHORT_HEADS else (81, 11)
    room = max(2, (width - fixed) // each)
    return list(every) if len(every) <= room else [*every[: room - 1], every[-1]]


def _rich_table(columns: Sequence[Column], rows: Sequence[Row], width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Colour is only a second sign everywhere: the marks and "!" stay when NO_COLOR takes it away.
    gap = 1 if width < TIGHT else 2
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0), show_edge=False)
    found.add_column("", no_wrap=True)
    found.add_column("recipe", no_wrap=True)
    taken = 1 + gap
    for index, column in enumerate(columns):
        head, sub = column.short if width < SHORT_HEADS else (column.head, column.sub)
        found.add_column(Text.assemble(head, ("\n" + sub, "not bold dim")), justify="right", no_wrap=True)
        cells = [text for row in rows for text in (_main(row.cells[index]), row.cells[index].sub)]
        taken += gap + max(len(text) for text in (head, sub, *cells))
    styles = {"winner": "bold green", "as-is": "bold", "over": "dim", "": ""}
    for row in rows:
        style = styles[row.mark]
        label = Text(_wrapped(plain(row.label), max(width - taken, 14)), style=style)
        found.add_row(Text(MARKS[row.mark] or " ", style), label, *(_rich_cell(cell, style) for cell in row.cells))
    return found


def _wrapped(label: str, width: int) -> str:
    """Break a label between techniques, then inside the brackets of one that is too long, then anywhere."""
    lines = [""]
    for word in label.split(" "):
        if len(lines[-1]) + len(word) + 1 <= width and lines[-1]:
            lines[-1] += " " + word
            continue
        lines.append("")
        for piece in re.split(r"(?<=[(,=])", word):
            rest = piece
            if len(lines[-1]) + len(rest) > width:
                lines.append("")
            while len(rest) > width:
                lines[-1], rest = rest[:width], rest[width:]
                lines.append("")
            lines[-1] += rest
    return "\n".join(line for line in lines if line)


def _rich_cell(cell: Cell, style: str) -> Text:
    from rich.text import Text

    return Text.assemble((_main(cell), "red" if cell.over else style), ("\n" + cell.sub, "dim"), justify="right")


def _main(cell: Cell) -> str:
    return ("~" if cell.predicted else "") + cell.main + ("!" if cell.over else "")


def _legend(columns: Sequence[Column], rows: Sequence[Row], every: Sequence[int], shown: Sequence[int]) -> str:
    heads = {column.head for column in columns}
    second = [
        words
        for head, words in (
            ("tokens/s", "ratio to as-is"),
            ("TTFT p50", "p99"),
            ("quality", "95 % interval"),
            ("memory", "disk"),
            ("start", "load"),
            ("$/1M", "blended price (a formula)"),
        )
        if head in heads and (head != "tokens/s" or any(cell.sub.endswith("x") for row in rows for cell in row.cells))
    ]
    text = f"Second lines: {', '.join(second)}." if second else ""
    if "TTFT p50" in heads:
        text += f" TTFT and ITL at {findings.streams(every[0])}."
    if len(shown) < len(every):
        missing = [str(c) for c in every if c not in shown]
        text += f" Also measured at {', '.join(missing)} streams (see {REPORT})."
    marks = {row.mark for row in rows}
    text += " ★ wins." if "winner" in marks else ""
    text += " ✗ can't win." if "over" in marks else ""
    return text + (" ! is over a limit." if any(cell.over for row in rows for cell in row.cells) else "")


def markdown(result: Result, certificate: Certificate | None = None) -> str:
    """Write the same table, with all concurrencies, as GitHub-flavoured Markdown."""
    columns = table_columns.columns(result, findings.concurrencies(result))
    won = findings.winner(result)
    lines = [f"**{md(findings.verdict(result))}**"]
    for words in (result.why, certified.standing(result, certificate)):
        lines += ["", md(words)] if words else []
    rows = table_columns.rows(result, columns)
    if rows:
        lines += ["", "| " + " | ".join(["recipe", *(column.title for column in columns)]) + " |"]
        lines.append("|" + "|".join([" --- ", *(" ---: " for _ in columns)]) + "|")
        for row in rows:
            name = md_code(row.label)
            name = f"**{name}** (winner)" if row.mark == "winner" else name
            lines.append("| " + " | ".join([name, *(_md_cell(cell) for cell in row.cells)]) + " |")
        if any(cell.over for row in rows for cell in row.cells):
            lines += ["", "! is over a limit of the goal."]
    lines += ["", md(f"Goal: {findings.GOALS[result.goal.metric]}; {', '.join(findings.limits(result.goal))}.")]
    notes = (findings.price_words(result), *findings.cautions(result), *_remarks(result))
    lines += ["", *(f"- {md(line)}" for line in notes)]
    for title, (heads, cells) in (
        ("Presets", tradeoffs.presets(result)),
        ("Price, latency and quality", tradeoffs.front(result)),
        ("Alone and together", tradeoffs.interactions(result)),
    ):
        if cells:
            lines += ["", f"### {title}", "", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
            lines += ["| " + " | ".join(map(md, row)) + " |" for row in cells]
    if said := [*tradeoffs.crossovers(result), tradeoffs.prediction(result)]:
        lines += ["", *(f"- {md(line)}" for line in said if line)]
    for group in findings.left_out(result):
        lines += ["", f"### {group.title} ({group.count})", ""]
        lines += [f"- {', '.join(map(md_code, labels))}: {md(reason)}" for reason, labels in group.reasons]
    if won is not None:
        lines += ["", f"Serve it: {md_code(f'quicksilver serve runs/{result.id}')}"]
    return "\n".join(lines) + "\n"


def md(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", escape(plain(text), quote=False))


def md_code(text: str) -> str:
    """Text as a code span that is safe in a table; the fence is longer than any run of backticks inside."""
    text = plain(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    inner = f" {text} " if "`" in text else text
    return fence + inner.replace("|", "\\|") + fence


def _md_cell(cell: Cell) -> str:
    main = _main(cell)
    return f"{main} ({cell.sub})" if cell.sub.endswith("x") else f"{main} / {cell.sub}" if cell.sub else main


def _remarks(result: Result) -> list[str]:
    """What a reader of the figures has to know about model, workload and run."""
    named = [("Model", result.model_remark), ("Workload", result.workload_remark)]
    return [f"{what}: {text}" for what, text in named if text] + list(result.remarks)


def notebook_html(result: Result, certificate: Certificate | None = None) -> str:
    """Write a small table without scripts, for `_repr_html_`."""
    columns = table_columns.columns(result, findings.concurrencies(result))
    cell = 'style="text-align:right;padding:2px 8px;vertical-align:top"'
    name = 'style="text-align:left;padding:2px 8px;vertical-align:top"'
    head = "".join(f"<th scope='col' {cell}>{escape(c.head)}<br><small>{escape(c.sub)}</small></th>" for c in columns)
    body = ""
    for row in table_columns.rows(result, columns):
        label = escape(f"{MARKS[row.mark]} {row.label}".strip())
        body += f"<tr><th scope='row' {name}>{f'<b>{label}</b>' if row.mark == 'winner' else label}</th>"
        for one in row.cells:
            body += f"<td {cell}>{escape(_main(one))}<br><small>{escape(one.sub)}</small></td>"
        body += "</tr>"
    foot = [result.why, certified.standing(result, certificate), *findings.cautions(result)]
    foot += [f"{group.title}: {group.count}" for group in findings.left_out(result)]
    whole = f"<table><thead><tr><th scope='col' {name}>recipe</th>{head}</tr></thead><tbody>{body}</tbody></table>"
    notes = "<br>".join(escape(line) for line in foot if line)
    return f"<div><p><b>{escape(findings.verdict(result))}</b></p>{whole if body else ''}<p><small>{notes}</small></p></div>"


def html(result: Result, certificate: Certificate | None = None) -> str:
    """Write the report as one page that asks for nothing from outside; charts if altair and vl-convert are there."""
    from quicksilver.bench import charts, tradeoff_charts

    environment = pages.environment()
    missing = pages.charts_missing()
    drawn = [*charts.draw(result), *tradeoff_charts.draw(result)] if not missing else []
    script = charts.script(environment.get_template("report.js").render()) if drawn else ""
    best = findings.winner(result)
    columns = table_columns.columns(result, findings.concurrencies(result))
    return environment.get_template("report.html.jinja").render(
        result=result,
        best=best,
        findings=findings,
        columns=columns,
        rows=table_columns.rows(result, columns),
        quality=table_columns.quality_details(result),
        speculation=table_columns.speculation_details(result.speculation) if result.speculation else None,
        lowest=min(findings.concurrencies(result), default=None),
        marks=MARKS,
        charts=drawn,
        legend=charts.legend(result),
        charts_missing=missing,
        remarks=_remarks(result),
        certificate=certificate,
        certified=certified,
        tradeoffs=tradeoffs,
        standing=certified.standing(result, certificate),
        created=date(result.created),
        shown_recipe=findings.shown(result),
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        script=script,
        # The page may run this one script and load nothing: the browser holds it to that, whatever a label says.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def date(created: str) -> str:
    """Write an ISO 8601 time for people; what isn't one stays as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    moment = moment.astimezone(UTC) if moment.tzinfo else moment
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def save(result: Result, folder: Path) -> None:
    """Write result.json and report.html, each whole or not at all. Raises BadInputError, NotEnoughError."""
    # The data first: a report that can't be drawn must not cost the figures.
    write_whole(folder / RESULT, result.model_dump_json(indent=2) + "\n")
    write_whole(folder / REPORT, html(result, certificate_of(result, folder)))


def keep(certificate: Certificate, folder: Path) -> Path:
    """Write certificate.json into a run's folder, and its report again; return the path of the former. Raises as `save` does."""
    write_whole(folder / CERTIFICATE, certificate.model_dump_json(indent=2) + "\n")
    if (folder / RESULT).is_file():
        save(load_result(folder), folder)
    return folder / CERTIFICATE


def certificate_of(result: Result, folder: Path) -> Certificate | None:
    """The certificate of a run's winner, if its folder has one."""
    found = load_certificate(folder / CERTIFICATE)
    if found is None or result.best is None:
        return None
    best = result.candidate(result.best)
    # An artefact doesn't know that its search had several engines, which puts the engine's name before the label.
    engine = best.recipe.get("engine") if best is not None else None
    return found if found.label in (result.best, result.best.removeprefix(f"{engine}: ")) else None


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, and its folder if it isn't there. Raises BadInputError, NotEnoughError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, text)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NotEnoughError(f"The disk is full: {path.name} could not be written to {path.parent}.") from error
        raise BadInputError(f"{path.name} can't be written to {path.parent}: {error.strerror or error}.") from error


def _write(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_certificate(path: Path) -> Certificate | None:
    """Read a certificate.json; None if there is none that can be read: it is a part of a report, not its ground."""
    try:
        found = Certificate.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if found.version == CERTIFICATE_VERSION else None


def load_result(path: Path) -> Result:
    """Read a result.json, or the one in a run's folder. Raises BadInputError."""
    file = path / RESULT if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInputError(f"There is no result at {file}.") from error
    except OSError as error:
        raise BadInputError(f"The result {file} can't be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise BadInputError(f"{file} is broken: {error}.") from error
    if not isinstance(document, dict) or "version" not in document:
        raise BadInputError(f"{file} is not a result of quicksilver optimize.")
    if document["version"] != RESULT_VERSION:
        raise BadInputError(
            f"{file} has format version {document['version']}, this quicksilver reads {RESULT_VERSION}; run optimize again."
        )
    try:
        return Result.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInputError(f"{file} is broken at {where}: {first['msg']}.") from error
