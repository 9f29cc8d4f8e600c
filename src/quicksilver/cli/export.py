"""`quicksilver export`: the files that other systems read to serve an artefact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from quicksilver.cli.frame import as_json, emit, json_option, note

if TYPE_CHECKING:
    from rich.console import Console


@click.command(short_help="Write what vLLM, LMI, Compose, KServe or Ray Serve read.")
@click.argument("target", metavar="ARTEFACT")
@click.option("--to", required=True, metavar="TARGET", help="vllm-args, lmi, docker-compose, kserve or ray-serve.")
@click.option(
    "--model-uri",
    metavar="URI",
    help="Where the artefact's files will be: a folder, a hub id, s3://…, gs://… or pvc://…; where they are, if not given.",
)
@click.option("--image", metavar="NAME", help="The container's image, for docker-compose and kserve.")
@click.option(
    "--gpus", type=click.IntRange(0), metavar="N", help="For each replica of a vLLM artefact; 0 serves on the CPU."
)
@click.option("--name", metavar="NAME", help="Of the service; by default the model's.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Write all files there; it has to be empty."
)
@json_option
def export(
    *,
    target: str,
    to: str,
    model_uri: str | None,
    image: str | None,
    gpus: int | None,
    name: str | None,
    out: Path | None,
) -> None:
    """Write what another system reads to serve ARTEFACT: an artefact, runs/ID or a key of the store.

    \b
    quicksilver export runs/ID --to docker-compose --out deploy
    quicksilver export runs/ID --to kserve --model-uri pvc://models/mine | kubectl apply -f -

    Without --out the main file is printed. What the target can't say is listed in the file, and on stderr.
    """  # noqa: D301  click looks for the backspace itself
    from quicksilver import api

    made = api.export(target, to, model_uri=model_uri, image=image, gpus=gpus, name=name, out=out)
    written = [str(out / file) for file in made.files] if out is not None else []

    def show(console: Console) -> None:
        if out is None:
            click.echo(made.text, nl=False)
        else:
            console.print("\n".join(written), soft_wrap=True)

    emit({**made.model_dump(mode="json"), "written": written}, show)
    if as_json():
        return
    for line in made.notes:
        note(f"- {line}")
    if out is None and (others := [file for file in made.files if file != made.main]):
        note(f"--out DIR writes {made.main}, {' and '.join(others)}.")
