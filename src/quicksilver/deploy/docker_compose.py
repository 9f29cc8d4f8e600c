"""Docker Compose: vLLM's own image for its artefacts; for every other engine an image that is built from a Dockerfile beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quicksilver.deploy import _image, _options
from quicksilver.deploy._deployment import HALF_LOCKED, PORT, Deployment, as_yaml, head
from quicksilver.deploy._target import Target
from quicksilver.deploy._weights import Weights
from quicksilver.nouns.artifact import Artifact

FILE = "compose.yaml"
MODELS = "/models"


class DockerCompose(Target):
    """A Compose project with one service (github.com/compose-spec/compose-spec)."""

    runs = "any engine"
    main = FILE
    places = frozenset({"folder", "hub", "s3", "gs"})
    own_places = frozenset({"folder"})
    takes_image = True

    def sees(self, place: Weights, artifact: Artifact) -> str:
        """Return the folder's place in the container; a hub id or a URI as it is."""
        return f"{MODELS}/{artifact.key}" if place.kind == "folder" else place.text

    def notes(self, deployment: Deployment) -> list[str]:
        notes = ["Only this machine reaches the port; a proxy in front of it brings TLS."]
        if deployment.vllm:
            notes.append(HALF_LOCKED)
        if not deployment.vllm and not deployment.image:
            notes += _image.notes(deployment)
        if deployment.weights.kind in ("s3", "gs"):
            notes.append("The container needs credentials for the bucket: add them to its environment.")
        return notes

    def files(self, deployment: Deployment, notes: Sequence[str]) -> dict[str, str]:
        service = _vllm(deployment) if deployment.vllm else _own(deployment)
        key = _key_variable(deployment)
        document = {"name": deployment.name, "services": {deployment.name: service}}
        if deployment.vllm:
            document["volumes"] = {"cache": {}}
        top = head(deployment, self.name(), notes, [f"{key}=… docker compose up --wait"])
        files = {FILE: top + as_yaml(document)}
        if not deployment.vllm and not deployment.image:
            files |= _image.files(deployment)
        return files


def _vllm(deployment: Deployment) -> dict[str, Any]:
    service: dict[str, Any] = {
        "image": _literal(deployment.vllm_image()),
        "entrypoint": ["vllm", "serve"],
        "command": [
            _literal(word)
            for word in (deployment.model, "--host=0.0.0.0", f"--port={PORT}", *_options.write(deployment.options))
        ],
        "environment": {name: _literal(value) for name, value in deployment.environment.items()},
        "volumes": [{"type": "volume", "source": "cache", "target": "/root/.cache"}],
    }
    if deployment.weights.kind == "hub":
        service["environment"]["HF_TOKEN"] = "${HF_TOKEN:-}"  # noqa: S105  the name of a variable
    if deployment.gpus:
        device = {"driver": "nvidia", "count": deployment.gpus, "capabilities": ["gpu"]}
        service |= {"ipc": "host", "deploy": {"resources": {"reservations": {"devices": [device]}}}}
    else:
        service["shm_size"] = "4gb"
    return _common(deployment, service, python="python3")


def _own(deployment: Deployment) -> dict[str, Any]:
    service: dict[str, Any] = {"image": _literal(deployment.image or _image.tag(deployment))}
    if not deployment.image:
        service["build"] = "."
    service |= {
        "command": [_literal(word) for word in _image.arguments(deployment.model, PORT)],
        "environment": {},
        "volumes": [],
        "stop_grace_period": "35s",
    }
    return _common(deployment, service, python="python")


def _common(deployment: Deployment, service: dict[str, Any], python: str) -> dict[str, Any]:
    """Add what both have: the port, the key, the weights, and when it is healthy."""
    key = _key_variable(deployment)
    service["environment"][key] = f"${{{key}:?is the API key that requests have to carry}}"
    if deployment.weights.kind == "folder":
        source = {
            "type": "bind",
            "source": _literal(deployment.weights.text),
            "target": deployment.model,
            "read_only": True,
            "bind": {"create_host_path": False},
        }
        service["volumes"] = [source, *service["volumes"]]
    probe = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{PORT}/health', timeout=5)"
    return service | {
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "healthcheck": {"test": ["CMD", python, "-c", probe], "interval": "10s", "start_period": "30m", "retries": 3},
        "restart": "unless-stopped",
    }


def _key_variable(deployment: Deployment) -> str:
    return "VLLM_API_KEY" if deployment.vllm else _image.KEY_VARIABLE


def _literal(text: str) -> str:
    """Write a text that Compose doesn't take for the name of a variable."""
    return text.replace("$", "$$")
