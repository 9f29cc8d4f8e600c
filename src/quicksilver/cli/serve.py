"""`quicksilver serve`: an OpenAI-compatible endpoint in the foreground."""

from __future__ import annotations

import click

from quicksilver.cli.frame import json_option, note


@click.command(short_help="Serve an artefact or a run behind the OpenAI API.")
@click.argument("target")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--insecure", is_flag=True, help="Allow a host that other machines can reach; there is no password.")
@json_option
def serve(target: str, host: str, port: int, insecure: bool) -> int:
    """Serve TARGET, an artefact, runs/ID or a key of the store, until Ctrl-C.

    The first line of stdout is {"port": N}, once the port is taken; the endpoint answers when the model is loaded.
    """
    from quicksilver import api

    artifact = api.find_artifact(target)
    where = f"[{host}]" if ":" in host else host
    place = f"http://{where}:{port}/v1" if port else f"a free port of {where}"
    note(
        f"Loading {artifact.label} of {artifact.model}; it will answer at {place} (GET /health says when). Ctrl-C ends it."
    )
    return api.serve(target, host=host, port=port, insecure=insecure)
