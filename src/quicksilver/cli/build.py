"""`quicksilver build`: a recipe becomes an artefact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quicksilver.cli.frame import as_json, console, duration, emit, interruptible, json_option, table
from quicksilver.cli.progress import watched
from quicksilver.errors import BadInputError

if TYPE_CHECKING:
    from rich.console import Console

    from quicksilver.build.plan import Plan
    from quicksilver.nouns import Recipe


@click.command(short_help="Build a recipe: a file, or a model with techniques.")
@click.argument("target", metavar="RECIPE|MODEL")
@click.option(
    "-t", "--technique", "names", multiple=True, metavar="NAME", help="Add a technique to MODEL; may be repeated."
)
@click.option(
    "-s",
    "--set",
    "pairs",
    multiple=True,
    metavar="NAME.FIELD=VALUE",
    help="Set a technique's field (awq.group_size=64) or the engine's (settings.threads=2).",
)
@click.option("--engine", metavar="NAME", help="For MODEL; openvino if not given.")
@click.option(
    "--workload",
    default="hotpotqa",
    show_default=True,
    metavar="SPEC",
    help="Where calibrated techniques take their prompts.",
)
@click.option("--accept-licence", is_flag=True, help="Accept the model's licence, where it has to be.")
@click.option("--dry-run", is_flag=True, help="Print the plan and build nothing.")
@click.option("--print-recipe", is_flag=True, help="Print the recipe as TOML and build nothing.")
@json_option
def build(
    *,
    target: str,
    names: tuple[str, ...],
    pairs: tuple[str, ...],
    engine: str | None,
    workload: str,
    accept_licence: bool,
    dry_run: bool,
    print_recipe: bool,
) -> None:
    """Build a recipe: a TOML or YAML file, or MODEL with techniques.

    \b
    quicksilver build examples/recipes/int8.toml
    quicksilver build smollm2-135m-instruct -t awq -s awq.group_size=64 -t prompt-lookup

    What was built before isn't built again. See `quicksilver techniques` for the names and fields.
    """  # noqa: D301  click looks for the backspace itself
    from quicksilver import api
    from quicksilver.recipes import dump_text, to_document

    recipe = _recipe(target, names, pairs, engine)
    if print_recipe:
        text = dump_text(recipe)
        emit(to_document(recipe), lambda out: out.print(text, end="", soft_wrap=True))
        return
    go_on = "the same command again goes on from here: the steps that were built are kept."
    with interruptible(go_on), watched() as progress:
        plan = api.plan(recipe, workload, accept_licence=accept_licence)
        if not dry_run:
            _show_plan(plan, console(stderr=True))
            artifact = api.build(recipe, workload=workload, accept_licence=accept_licence, progress=progress)
    if dry_run:
        emit(_plan_document(plan), lambda out: _show_plan(plan, out))
        return
    document = artifact.model_dump(mode="json")
    emit(document, lambda out: out.print(str(artifact.path), soft_wrap=True))
    if not as_json():
        err = console(stderr=True)
        err.print(f"Built {artifact.label} of {artifact.model}, {artifact.disk_mb:,.0f} MB.", soft_wrap=True)
        err.print(f"Serve it: quicksilver serve {artifact.key}", soft_wrap=True)


def _recipe(target: str, names: tuple[str, ...], pairs: tuple[str, ...], engine: str | None) -> Recipe:
    from quicksilver.recipes import SUFFIXES, from_flags, load_recipe

    if Path(target).suffix.lower() not in SUFFIXES:
        return from_flags(target, names, pairs, engine or "openvino")
    if names or pairs or engine:
        raise BadInputError("A recipe file says all of it: give --technique, --set and --engine with a model instead.")
    return load_recipe(Path(target))


def _show_plan(plan: Plan, out: Console) -> None:
    from rich.console import Group

    rows = [
        [
            str(number),
            step.label,
            "built" if step.built else ("to build" if step in plan.missing else "not needed"),
            "" if step.last_s is None else duration(step.last_s),
            f"{step.memory_mb:,.0f} MB" if step in plan.missing else "",
            f"{step.disk_mb:,.0f} MB",
        ]
        for number, step in enumerate(plan.steps, 1)
    ]
    heads = ["", "step", "state", "last time", "memory", "disk"]
    out.print(
        Group(f"{plan.recipe.label} of {plan.model.name}", table(heads, rows, right=(0, 3, 4, 5)), _outlook(plan))
    )


def _outlook(plan: Plan) -> str:
    from quicksilver.build.plan import check_room
    from quicksilver.errors import NotEnoughError
    from quicksilver.sources.home import existing, home

    if not plan.missing:
        return "Everything is built."
    expected = "about " + duration(plan.expected_s) if plan.expected_s is not None else "a time not yet known here"
    memory_mb = max(step.memory_mb for step in plan.missing)
    disk_mb = sum(step.disk_mb for step in plan.missing)
    count = len(plan.missing)
    steps = "1 step" if count == 1 else f"{count} steps"
    outlook = f"To build: {steps}, {expected}, {memory_mb:,.0f} MB of memory and {disk_mb:,.0f} MB of disk."
    try:
        check_room(plan, existing(home()))
    except NotEnoughError as error:
        outlook += f"\n{error}"
    return outlook


def _plan_document(plan: Plan) -> dict[str, Any]:
    return {
        "recipe": plan.recipe.label,
        "model": plan.model.name,
        "key": plan.key,
        "built": plan.built,
        "expected_s": plan.expected_s,
        "steps": [
            {
                "label": step.label,
                "key": step.key,
                "built": step.built,
                "missing": step in plan.missing,
                "memory_mb": step.memory_mb,
                "disk_mb": step.disk_mb,
                "last_s": step.last_s,
            }
            for step in plan.steps
        ],
    }
