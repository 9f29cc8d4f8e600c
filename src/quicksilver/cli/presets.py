"""`quicksilver presets`: what searches found for a model on this machine, by way of use."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from quicksilver.cli.frame import emit, json_option, note, pairs, table
from quicksilver.errors import BadInputError

if TYPE_CHECKING:
    from rich.console import Console

    from quicksilver.nouns import Preset

NAMES = "cost, balanced or latency"


@click.group(invoke_without_command=True, short_help="Recipes for a model by way of use: list, read, choose.")
@json_option
@click.pass_context
def presets(context: click.Context) -> None:
    """List, read and choose the recipes that searches found for a model: cost, balanced and latency."""
    if context.invoked_subcommand is None:
        context.invoke(list_)


@presets.command("list")
@click.option("--model", metavar="MODEL", help="Of this model only.")
@click.option("--workload", metavar="NAME", help="Found for this workload only.")
@click.option("--all", "everywhere", is_flag=True, help="Those that were measured on other machines, too.")
@json_option
def list_(model: str | None = None, workload: str | None = None, everywhere: bool = False) -> None:
    """List the presets known for this machine, and what they were measured to give."""
    from quicksilver import api
    from quicksilver.bench import tradeoffs
    from quicksilver.search import presets as kept

    found = api.presets(model, workload=workload, everywhere=everywhere)

    def show(out: Console) -> None:
        if not found:
            out.print("There are no presets for this machine yet; `quicksilver optimize MODEL` finds some.")
            return
        heads, rows = tradeoffs.presets_listed(found, [kept.here(p) for p in found])
        out.print(table(heads, rows, right=range(4, len(heads) - 1)))

    emit([_document(p) for p in found], show)
    if found:
        note("`quicksilver presets show NAME --model MODEL` shows one in full.")
    elif not everywhere and (others := len(api.presets(model, workload=workload, everywhere=True))):
        note(f"{others} were measured on other machines; --all lists them.")


@presets.command()
@click.argument("name")
@click.option("--model", metavar="MODEL", help="Needed where there are presets of several models.")
@click.option("--workload", metavar="NAME", help="Found for this workload; else the last one.")
@json_option
def show(name: str, model: str | None, workload: str | None) -> None:
    """Show the preset NAME (cost, balanced or latency): its settings, benchmark, quality, and where the figures come from."""
    from quicksilver.bench import tradeoffs
    from quicksilver.search import presets as kept

    found = kept.find(name, model or _only_model(), workload=workload, any_machine=True)
    mine = kept.here(found)

    def write(out: Console) -> None:
        if not mine:
            out.print("Measured on another machine: here another recipe may be the best.", style="yellow")
        out.print(pairs(tradeoffs.preset_facts(found)))
        heads, rows = tradeoffs.benchmark(found)
        out.print()
        out.print(table(heads, rows, right=range(len(heads))))
        out.print()
        out.print(pairs(tradeoffs.provenance(found)))
        out.print(f"\nServe it: {_serve(found, mine)}", soft_wrap=True)

    emit(_document(found), write)


@presets.command()
@click.argument("name")
@click.option("--model", metavar="MODEL", help="Needed where there are presets of several models.")
@click.option("--workload", metavar="NAME", help="Found for this workload; else the last one.")
@click.option("--any-machine", is_flag=True, help="Take one that was measured on another machine.")
@json_option
def use(name: str, model: str | None, workload: str | None, any_machine: bool) -> None:
    """Choose the preset NAME (cost, balanced or latency): `quicksilver serve MODEL` serves it from now on.

    Its artefact is built again if it is no longer in the store.
    """
    from quicksilver import api
    from quicksilver.cli.progress import watched

    wanted = model or _only_model()
    with watched() as progress:
        found = api.use_preset(name, wanted, workload=workload, any_machine=any_machine, progress=progress)
    document = {"preset": name, "model": found.model, "artifact": found.key, "path": str(found.path)}

    def write(out: Console) -> None:
        out.print(f"{found.model}: {name} is {found.label}, at {found.path}", soft_wrap=True)
        out.print(f"Serve it: quicksilver serve {shlex.quote(wanted)}", soft_wrap=True)

    emit(document, write)


@presets.command("configs")
@click.argument("model")
@click.option("--instance", metavar="NAME", help="Of this instance only; local for what was measured here.")
@click.option("--set", "chosen", metavar="CONFIG", help=f"Choose one for --instance: {NAMES}.")
@json_option
def configs(model: str, instance: str | None, chosen: str | None) -> None:
    """List MODEL's configurations by instance with their benchmark: predicted for machines that aren't here, measured on this one."""
    from quicksilver import deployments
    from quicksilver.planner.deployments import vllm_arguments

    if chosen is not None:
        if instance is None:
            raise BadInputError("A configuration is chosen for an instance: add --instance.")
        found = [deployments.set_deployment_config(model, chosen, instance)]
    else:
        found = deployments.list_deployment_configs(model, instance)

    def write(out: Console) -> None:
        rows = deployments.benchmark_metrics(found)
        out.print(table(list(deployments.COLUMNS), rows, right=range(2, 6)))
        for one in found if chosen is not None or instance is not None else ():
            out.print(f"\n{one.config_name}: {one.label}. {one.why[0].upper()}{one.why[1:]}.", soft_wrap=True)
            out.print(f"From {one.origin}, for {one.workload}.", soft_wrap=True)
            for remark in one.remarks:
                out.print(f"- {remark}", soft_wrap=True)
            if one.layout is not None:
                out.print(f"vLLM takes: {shlex.join(vllm_arguments(one.layout, model))}", soft_wrap=True)

    emit([json.loads(one.model_dump_json()) for one in found], write)
    if instance is None and any(one.source == "predicted" for one in found):
        note(
            "Predicted figures say of what in the last column; --instance NAME shows their recipes, remarks and source."
        )


def _only_model() -> str:
    """Return the model if there are presets of one alone. Raises BadInputError."""
    from quicksilver import api

    names = list(dict.fromkeys(p.model for p in api.presets(everywhere=True)))
    if len(names) == 1:
        return names[0]
    if names:
        raise BadInputError(f"There are presets of {len(names)} models; add --model, one of {', '.join(names)}.")
    raise BadInputError("There are no presets yet; `quicksilver optimize MODEL` finds some.")


def _document(preset: Preset) -> dict[str, Any]:
    from quicksilver.search import presets as kept

    document: dict[str, Any] = json.loads(preset.model_dump_json())
    return document | {"machine": preset.machine, "this_machine": kept.here(preset)}


def _serve(preset: Preset, mine: bool) -> str:
    other = "" if mine else " --any-machine"
    return f"quicksilver serve {shlex.quote(preset.source)} --preset {preset.name}{other}"
