"""DJL Serving's Large Model Inference container (LMI), which SageMaker runs: serving.properties, or the same as environment variables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from quicksilver.deploy import _options
from quicksilver.deploy._deployment import Deployment, head
from quicksilver.deploy._target import Target
from quicksilver.deploy._weights import Weights
from quicksilver.errors import BadInputError
from quicksilver.nouns.artifact import Artifact

PROPERTIES, ENVIRONMENT = "serving.properties", "lmi.env"
FOLDER = "/opt/ml/model"
"""Where SageMaker lays a model's files, and where the container looks for them."""
OWN_NAMES = {"tensor-parallel-size": "tensor_parallel_degree", "max-num-seqs": "max_rolling_batch_size"}
"""LMI has defaults of its own for these (all GPUs; 32), and refuses vLLM's names beside them."""
TAKEN = frozenset(
    {"chat-template", "chat-template-content-format", "enable-auto-tool-choice", "tool-call-parser", "reasoning-parser"}
)
"""What LMI reads though it isn't vLLM's engine's."""


class Lmi(Target):
    """The container's `option.*` (docs.djl.ai, LMI: vLLM user guide), from LMI 17 on, whose vLLM runs in async mode."""

    main = PROPERTIES
    places = frozenset({"folder", "hub", "s3"})
    takes_name = False
    needs_gpu = True

    def default_place(self, artifact: Artifact) -> Weights:
        """Return the container's own folder: the files go beside serving.properties."""
        return Weights("folder", FOLDER)

    def loading(self, place: Weights) -> dict[str, Any]:
        """Return nothing: the container downloads from S3 before vLLM starts."""
        return {}

    def notes(self, deployment: Deployment) -> list[str]:
        notes = [
            f"LMI has an HTTP server of its own: vLLM's --{name} has no place there."
            for name in deployment.options
            if _unplaced(name) and deployment.chose(name)
        ]
        if int(deployment.options.get("pipeline-parallel-size", 1)) > 1:
            raise BadInputError("LMI's vLLM can't split layers over GPUs (pipeline parallelism); leave it to one.")
        if deployment.weights.text == FOLDER:
            notes.append(f"The artefact's files go into {FOLDER}, beside {PROPERTIES}.")
        if deployment.environment:
            names = ", ".join(sorted(deployment.environment))
            notes.append(f"{PROPERTIES} has no place for environment variables: set {names} as in {ENVIRONMENT}.")
        return notes

    def files(self, deployment: Deployment, notes: Sequence[str]) -> dict[str, str]:
        settings = _settings(deployment)
        top = head(deployment, self.name(), notes, [f"{PROPERTIES} or {ENVIRONMENT}, not both: they say the same"])
        properties = "".join(f"{_key(f'option.{name}')}={_escaped(value)}\n" for name, value in settings.items())
        variables = {f"OPTION_{name.upper()}": value for name, value in settings.items()} | deployment.environment
        return {
            PROPERTIES: f"{top}engine=Python\n{properties}",
            ENVIRONMENT: top + "OPTION_ENGINE=Python\n" + "".join(f"{k}={_line(k, v)}\n" for k, v in variables.items()),
        }


def _unplaced(name: str) -> bool:
    return (name in _options.FRONTEND and name not in TAKEN) or name == "enable-log-requests"


def _settings(deployment: Deployment) -> Mapping[str, str]:
    """Return LMI's options as texts, without their prefix."""
    place, found = deployment.weights, {}
    if place.text != FOLDER:
        found["model_id"] = place.text
    found["tensor_parallel_degree"] = "1"
    for name, value in deployment.options.items():
        if _unplaced(name) or (name == "pipeline-parallel-size" and value == 1):
            continue
        if isinstance(value, list):
            raise BadInputError(f"LMI's options are single texts: --{name} has several values.")
        text = json.dumps(value) if isinstance(value, dict | bool) else str(value)
        found[OWN_NAMES.get(name, name.replace("-", "_"))] = text
    return found


def _key(text: str) -> str:
    return re.sub(r"([\\ :=#!])", r"\\\1", text)


def _escaped(text: str) -> str:
    """Write a value as java.util.Properties reads it: ISO 8859-1, with backslash escapes."""
    marks = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f"}
    plain = "".join(marks.get(sign, sign) for sign in text)
    if plain[:1] == " ":
        plain = "\\" + plain
    units = plain.encode("utf-16-be")
    codes = [int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2)]
    return "".join(chr(code) if 0x20 <= code < 0x7F else f"\\u{code:04x}" for code in codes)


def _line(name: str, text: str) -> str:
    """Return a value for an env file, which takes a line as it is. Raises BadInputError for more than a line."""
    if "\n" in text or "\r" in text:
        raise BadInputError(f"{name} has a line break, which an env file can't hold.")
    return text
