"""`quicksilver serve`: an OpenAI-compatible endpoint in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from quicksilver.cli.frame import json_option, note
from quicksilver.errors import BadInputError

KEY_VARIABLE = "QUICKSILVER_API_KEY"


@click.command(short_help="Serve an artefact or a run behind the OpenAI API.")
@click.argument("target")
@click.option(
    "--engine", metavar="NAME", help="Serve the model TARGET as it is by this engine; see `quicksilver engines`."
)
@click.option(
    "--preset", metavar="NAME", help="Of the model TARGET: cost, balanced or latency; see `quicksilver presets`."
)
@click.option("--workload", metavar="NAME", help="The workload that the preset was found for; else the last one.")
@click.option("--any-machine", is_flag=True, help="Take a preset that was measured on another machine.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--replace",
    is_flag=True,
    help="Take the port over from the server that is there, once this one is ready; no request fails.",
)
@click.option("--insecure", is_flag=True, help="Allow a host that other machines can reach, without an API key.")
@click.option(
    "--api-key",
    "keys",
    multiple=True,
    envvar=KEY_VARIABLE,
    help=f"A key that requests have to carry; several are allowed. Better from {KEY_VARIABLE} or a file: others see a command.",
)
@click.option("--api-key-file", type=click.Path(path_type=Path), help="A file with a key a line.")
@click.option(
    "--max-waiting",
    type=click.IntRange(0),
    default=256,
    show_default=True,
    help="Answers that may wait for their turn; more are told to come again (429).",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(0, min_open=True),
    default=600,
    show_default=True,
    help="Seconds that an answer may take, its wait included.",
)
@click.option(
    "--log-format",
    type=click.Choice(["json", "text", "none"]),
    default="json",
    show_default=True,
    help="Of the log on stderr: a line a request, without prompts and answers; none leaves warnings and failures.",
)
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help="Append when requests come and how long they and their answers are: a workload. No text of theirs.",
)
@click.option(
    "--record-prompts", is_flag=True, help="Record what they say, too. Whoever asks has to know, and to consent."
)
@click.option("--record-answers", is_flag=True, help="And what is answered, as a reference.")
@click.option(
    "--record-limit",
    type=click.FloatRange(0, min_open=True),
    metavar="MB",
    help="The size at which recording stops, 100 by default.",
)
@json_option
def serve(
    target: str,
    *,
    engine: str | None,
    preset: str | None,
    workload: str | None,
    any_machine: bool,
    host: str,
    port: int,
    replace: bool,
    insecure: bool,
    keys: tuple[str, ...],
    api_key_file: Path | None,
    max_waiting: int,
    request_timeout: float,
    log_format: Literal["json", "text", "none"],
    record: Path | None,
    record_prompts: bool,
    record_answers: bool,
    record_limit: float | None,
) -> int:
    """Serve TARGET until Ctrl-C: an artefact, runs/ID, a key of the store, or a model by one of its presets.

    The first line of stdout is {"port": N}, once the port is taken; the endpoint answers when the model is loaded.
    """
    from quicksilver import api

    known = [*keys, *_read_keys(api_key_file)]
    if any(not key.strip() for key in known):
        raise BadInputError("An API key is empty.")
    if not all(key.isascii() and key.isprintable() for key in known):
        raise BadInputError("An API key may only have letters, digits and signs of ASCII: headers carry nothing else.")
    if replace and not port:
        raise BadInputError("--replace needs the --port of the server that is to be replaced.")
    if preset is None and (workload is not None or any_machine):
        raise BadInputError("--workload and --any-machine choose among presets: add --preset NAME.")
    return api.serve(
        target,
        engine=engine,
        preset=preset,
        workload=workload,
        any_machine=any_machine,
        host=host,
        port=port,
        replace=replace,
        insecure=insecure,
        api_keys=known,
        max_waiting=max_waiting,
        request_timeout_s=request_timeout,
        say=note,
        log_format=log_format,
        record=record,
        record_prompts=record_prompts,
        record_answers=record_answers,
        record_limit_mb=record_limit,
    )


def _read_keys(path: Path | None) -> list[str]:
    """Return the keys in a file, a line each. Raises BadInputError if there is none."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(
            f"The keys in {path} can't be read: {getattr(error, 'strerror', None) or error}."
        ) from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise BadInputError(f"{path} has no API key.")
    return keys
