"""Ray Serve: a config for `serve deploy`, whose application is Ray's own builder of OpenAI servers on vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quicksilver.deploy import _options
from quicksilver.deploy._deployment import Deployment, as_yaml, head
from quicksilver.deploy._target import Target
from quicksilver.deploy._weights import Weights

FILE = "serve.yaml"
ITS_OWN = frozenset({"served-model-name", "distributed-executor-backend"})
"""Ray sets these itself, and refuses them."""
UNPLACED = frozenset({"api-key", "api-server-count", "grpc", "headless", "host", "port", "shutdown-timeout", "uds"})
"""What Ray's server has no use for, or doesn't know: they are neither vLLM's engine's nor its routes'."""


class RayServe(Target):
    """`ray.serve.llm:build_openai_app` (docs.ray.io, Ray Serve LLM: configuration reference)."""

    main = FILE
    places = frozenset({"folder", "hub", "s3", "gs"})

    def loading(self, place: Weights) -> dict[str, Any]:
        """Return nothing: Ray downloads from object storage before vLLM starts."""
        return {}

    def notes(self, deployment: Deployment) -> list[str]:
        options = deployment.options
        notes = [
            f"Ray Serve has an HTTP server of its own: vLLM's --{name} has no place there."
            for name in options
            if name in UNPLACED and deployment.chose(name)
        ]
        if "distributed-executor-backend" in options:
            notes.append("Ray Serve chooses how vLLM's processes run: --distributed-executor-backend is left out.")
        if deployment.weights.kind == "folder":
            notes.append(f"Every node that runs a replica has to have the artefact's files at {deployment.model}.")
        notes.append("Ray Serve asks for no API key: let its port be reached from where it should be.")
        return notes

    def files(self, deployment: Deployment, notes: Sequence[str]) -> dict[str, str]:
        options = {name: value for name, value in deployment.options.items() if name not in ITS_OWN | UNPLACED}
        config: dict[str, Any] = {
            "model_loading_config": {"model_id": deployment.artifact.model, "model_source": deployment.model},
            "engine_kwargs": _options.underscored(options),
            "accelerator_config": {"kind": "gpu" if deployment.gpus else "cpu"},
            "deployment_config": {"num_replicas": 1},
        }
        if deployment.environment:
            config["runtime_env"] = {"env_vars": dict(deployment.environment)}
        application = {
            "name": deployment.name,
            "route_prefix": "/",
            "import_path": "ray.serve.llm:build_openai_app",
            "args": {"llm_configs": [config]},
        }
        top = head(deployment, self.name(), notes, [f"pip install 'ray[serve,llm]'; serve run {FILE}"])
        return {FILE: top + as_yaml({"applications": [application]})}
