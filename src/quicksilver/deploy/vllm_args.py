"""vLLM by hand: its command line, and the same as a YAML file for `vllm serve --config`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from quicksilver.deploy import _options
from quicksilver.deploy._deployment import Deployment, as_yaml, head
from quicksilver.deploy._target import Target

SCRIPT, CONFIG = "serve.sh", "vllm.yaml"


class VllmArgs(Target):
    """`vllm serve` with all its arguments (docs.vllm.ai, CLI reference and serve_args)."""

    main = SCRIPT
    places = frozenset({"folder", "hub", "s3", "gs"})
    takes_name = False

    def notes(self, deployment: Deployment) -> list[str]:
        kind, notes = deployment.weights.kind, []
        if kind in ("s3", "gs"):
            notes.append("vLLM reads object storage with a package of its own: pip install 'vllm[runai]'.")
        if deployment.environment:
            names = ", ".join(sorted(deployment.environment))
            notes.append(f"vllm serve --config {CONFIG} reads no environment: {SCRIPT} sets {names}.")
        return notes

    def files(self, deployment: Deployment, notes: Sequence[str]) -> dict[str, str]:
        top = head(deployment, self.name(), notes, [f"sh {SCRIPT}, or vllm serve --config {CONFIG}"])
        variables = "".join(
            f"export {name}={shlex.quote(value)}\n" for name, value in sorted(deployment.environment.items())
        )
        command = _options.command(["exec", "vllm", "serve", deployment.model], deployment.options)
        config = {"model": deployment.model, **deployment.options}
        return {SCRIPT: f"#!/bin/sh\n{top}{variables}{command}", CONFIG: top + as_yaml(config)}
