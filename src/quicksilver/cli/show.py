"""`quicksilver models | workloads | techniques`: what there is to choose from."""

from __future__ import annotations

import inspect
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from quicksilver.cli.frame import emit, json_option, note, pairs, table
from quicksilver.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from quicksilver.nouns import Prompt, Technique


@click.group(invoke_without_command=True, short_help="Models known by name; describe any model.")
@json_option
@click.pass_context
def models(context: click.Context) -> None:
    """List the models known by name; `show` describes one, and any of yours."""
    if context.invoked_subcommand is None:
        from quicksilver.sources import catalogue

        found = [_entry(entry) for entry in catalogue.ENTRIES]
        rows = [
            [m["name"], m["from"], m["licence"] + (" (to be accepted)" if m["needs_acceptance"] else "")] for m in found
        ]
        emit(found, lambda out: out.print(table(["name", "from", "licence"], rows)))


@models.command("show")
@click.argument("name")
@click.option("--fetch", is_flag=True, help="Download it if it isn't here, to describe its shape too.")
@click.option("--accept-licence", is_flag=True, help="Accept the model's licence, where it has to be.")
@json_option
def show_model(name: str, fetch: bool, accept_licence: bool) -> None:
    """Describe NAME: a catalogue name, a Hugging Face directory, a GGUF file, or with --fetch a hub id."""
    from quicksilver.sources import catalogue, models

    facts: dict[str, Any] = {}
    known = name.lower() in catalogue.names()
    if known:
        facts = _entry(catalogue.entry(name))
    if fetch or not known:
        if not fetch and "/" in name and not Path(name).expanduser().exists() and not name.startswith((".", "/", "~")):
            raise BadInputError(f"There is no model at {name}; if it is a hub id, give --fetch to download it.")
        model = models.resolve(name, accept_licence=accept_licence)
        facts |= model.model_dump(mode="json", exclude={"facts", "source"}) | model.facts.model_dump(mode="json")
    emit(facts, lambda out: out.print(pairs(facts)))
    if known and not fetch:
        note("--fetch downloads it and shows its shape.")


def _entry(entry: Any) -> dict[str, Any]:
    package = entry.package
    return {
        "name": entry.name,
        "from": f"hub: {entry.hub}" if entry.hub else f"package: {package.name} {package.version}",
        "licence": entry.licence,
        "needs_acceptance": entry.needs_acceptance,
        "remark": entry.remark,
    }


@click.group(invoke_without_command=True, short_help="Built-in workloads; describe any workload.")
@json_option
@click.pass_context
def workloads(context: click.Context) -> None:
    """List the built-in workloads; `show` describes one, a synthetic shape, or a JSON Lines file of yours."""
    if context.invoked_subcommand is None:
        from quicksilver.sources import workloads as known

        found = [{"name": name, "about": known.describe(name)} for name in known.names()]
        emit(found, lambda out: out.print(table(["name", "about"], [[w["name"], w["about"]] for w in found])))


@workloads.command("show")
@click.argument("spec")
@click.option("--prompts", type=click.IntRange(min=1), metavar="N", help="Prompts to take.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Count tokens with this model's or artefact's tokenizer.",
)
@json_option
def show_workload(spec: str, prompts: int | None, seed: int, tokenizer: Path | None) -> None:
    """Describe SPEC: how many prompts each split has, and how long they are."""
    from quicksilver.sources import workloads

    workload = workloads.load(spec, prompts=prompts, seed=seed)
    splits: dict[str, dict[str, Any]] = {}
    for name in ("calibration", "search", "evaluation"):
        chosen: Sequence[Prompt] = getattr(workload, name)
        splits[name] = {
            "prompts": len(chosen),
            "with_references": sum(bool(p.references) for p in chosen),
            "words": _spread([_words(p) for p in chosen]),
            **({"tokens": _spread(_tokens(chosen, tokenizer))} if tokenizer else {}),
        }
    answers = [p.max_tokens or workload.max_tokens for p in (*workload.search, *workload.evaluation)]
    document = {
        "name": workload.name,
        "hash": workload.hash,
        "task": workload.task,
        "answer_tokens_at_most": _spread(answers),
        "licence": workload.licence,
        "remark": workload.remark,
        "seed": workload.seed,
        "splits": splits,
    }

    def show(out: Console) -> None:
        out.print(pairs({k: _range(v) if isinstance(v, dict) else v for k, v in document.items() if k != "splits"}))
        heads = ["split", "prompts", "with reference", "words", *(["tokens"] if tokenizer else [])]
        out.print()
        rows = [
            [
                n,
                str(s["prompts"]),
                str(s["with_references"]),
                *(_range(s[unit]) for unit in ("words", "tokens") if unit in s),
            ]
            for n, s in splits.items()
        ]
        out.print(table(heads, rows, right=(1, 2)))

    emit(document, show)
    if tokenizer is None:
        note("Lengths are in words; --tokenizer DIR counts tokens.")


def _words(prompt: Prompt) -> int:
    if prompt.token_ids is not None:
        return len(prompt.token_ids)
    return len((prompt.prompt or " ".join(m.content for m in prompt.messages or ())).split())


def _tokens(prompts: Sequence[Prompt], folder: Path) -> list[int]:
    """The prompts' lengths in tokens, chat template included."""
    from quicksilver.sources.text import Tokenizer

    if not folder.is_dir():
        raise BadInputError(f"There is no directory {folder}.")
    tokenizer = Tokenizer(folder / "artifact" if (folder / "artifact").is_dir() else folder)
    return [_length(tokenizer, prompt) for prompt in prompts]


def _length(tokenizer: Any, prompt: Prompt) -> int:
    if prompt.token_ids is not None:
        return len(prompt.token_ids)
    if prompt.messages is not None:
        return len(tokenizer.encode(tokenizer.chat([m.model_dump() for m in prompt.messages]), special=False))
    return len(tokenizer.encode(prompt.prompt or ""))


def _spread(lengths: list[int]) -> dict[str, float]:
    return {"min": min(lengths), "p50": statistics.median(lengths), "max": max(lengths)}


def _range(spread: dict[str, float]) -> str:
    low, middle, high = (f"{spread[key]:,.0f}" for key in ("min", "p50", "max"))
    return low if low == high else f"{low} to {high}, median {middle}"


@click.group(invoke_without_command=True, short_help="Techniques and their fields.")
@json_option
@click.pass_context
def techniques(context: click.Context) -> None:
    """List the techniques that a recipe can stack; `show` describes one with its fields."""
    if context.invoked_subcommand is None:
        from quicksilver import techniques as known

        found = [_technique(known.find(name)) for name in known.names()]

        def show(out: Console) -> None:
            rows = [[t["name"], t["about"], ", ".join(f["name"] for f in t["fields"])] for t in found]
            out.print(table(["name", "what it does", "fields"], rows))

        emit(found, show)


@techniques.command("show")
@click.argument("name")
@json_option
def show_technique(name: str) -> None:
    """Describe the technique NAME: its fields, what a search tries, what it needs and gives."""
    from quicksilver import techniques as known

    found = _technique(known.find(name))

    def show(out: Console) -> None:
        out.print(f"{found['name']}: {found['about']}\n")
        rows = [
            [
                f["name"],
                f["type"],
                "(has to be given)" if f["required"] else _value(f["default"]),
                ", ".join(map(_value, f["tried"])),
                f["about"],
            ]
            for f in found["fields"]
        ]
        if rows:
            out.print(table(["field", "type", "default", "a search tries", "what it is"], rows))
            out.print()
        facts = {"needs": found["needs"], "uses up": found["takes"], "gives": found["gives"]}
        out.print(pairs({name: ", ".join(what) for name, what in facts.items() if what}))
        first = next((f for f in found["fields"]), None)
        setting = f" -s {found['name']}.{first['name']}=…" if first else ""
        out.print(f"\nquicksilver build MODEL -t {found['name']}{setting}", soft_wrap=True)

    emit(found, show)


def _technique(cls: type[Technique]) -> dict[str, Any]:
    tried = cls.space()
    return {
        "name": cls.name(),
        "about": (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " "),
        "builds": cls.builds,
        "calibrated": cls.calibrated,
        "needs": sorted(cls.needs),
        "takes": sorted(cls.takes),
        "gives": sorted(cls.gives),
        "fields": [
            {
                "name": name,
                "type": _type(info.annotation),
                "required": info.is_required(),
                "default": None if info.is_required() else info.get_default(call_default_factory=True),
                "tried": list(tried.get(name, ())),
                "about": info.description or "",
            }
            for name, info in cls.model_fields.items()
        ],
    }


def _value(value: Any) -> str:
    """Write a field's value as it is written in a recipe."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    plain = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path"}
    return plain.get(annotation) or str(annotation)
