"""KServe: an InferenceService whose predictor is a container, so that it needs no serving runtime of the cluster's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quicksilver.deploy import _image, _options
from quicksilver.deploy._deployment import HALF_LOCKED, Deployment, as_yaml, head
from quicksilver.deploy._target import Target
from quicksilver.deploy._weights import Weights
from quicksilver.errors import BadInputError
from quicksilver.nouns.artifact import Artifact

FILE = "inferenceservice.yaml"
PORT = 8080
MOUNT = "/mnt/models"
"""Where KServe's storage initializer lays what STORAGE_URI names."""
SHARED = "shared-memory"


class Kserve(Target):
    """`serving.kserve.io/v1beta1` (kserve.github.io, custom predictors and storage)."""

    runs = "any engine"
    main = FILE
    places = frozenset({"hub", "s3", "gs", "pvc"})
    own_places = places
    mounts = True
    takes_image = True

    def sees(self, place: Weights, artifact: Artifact) -> str:
        """Return where the storage initializer lays the weights."""
        return MOUNT

    def loading(self, place: Weights) -> dict[str, Any]:
        """Return nothing: the files are there before the server starts."""
        return {}

    def notes(self, deployment: Deployment) -> list[str]:
        notes = ["Memory and CPU are not requested: what the server took under your load is in `quicksilver bench`."]
        if deployment.vllm:
            notes.append(HALF_LOCKED)
        if deployment.weights.kind in ("s3", "gs", "hub"):
            notes.append("A place that needs credentials takes them from spec.predictor.serviceAccountName.")
        return notes

    def files(self, deployment: Deployment, notes: Sequence[str]) -> dict[str, str]:
        key = "VLLM_API_KEY" if deployment.vllm else _image.KEY_VARIABLE
        secret = f"{deployment.name}-key"
        predictor: dict[str, Any] = {"minReplicas": 1, "containers": [_container(deployment, key, secret)]}
        if deployment.vllm:
            predictor["volumes"] = [{"name": SHARED, "emptyDir": {"medium": "Memory"}}]
        document = {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": deployment.name},
            "spec": {"predictor": predictor},
        }
        use = [f"kubectl create secret generic {secret} --from-literal=api-key=…", f"kubectl apply -f {FILE}"]
        return {FILE: head(deployment, self.name(), notes, use) + as_yaml(document)}


def _container(deployment: Deployment, key: str, secret: str) -> dict[str, Any]:
    if deployment.vllm:
        words = ["--host=0.0.0.0", f"--port={PORT}", *_options.write(deployment.options)]
        program = {"image": deployment.vllm_image(), "command": ["vllm", "serve"]}
        arguments = [deployment.model, *words]
    elif deployment.image:
        program = {"image": deployment.image, "command": ["quicksilver", "serve"]}
        arguments = _image.arguments(deployment.model, PORT)
    else:
        raise BadInputError(
            f"No image of Quicksilver is published: build one (`quicksilver export {deployment.artifact.key} --to docker-compose "
            "--out DIR` writes its Dockerfile), push it where the cluster finds it, and name it with --image."
        )
    # KServe reads this one itself, and gives the container the folder instead.
    environment = [{"name": "STORAGE_URI", "value": deployment.weights.uri}]
    environment += [{"name": name, "value": _literal(value)} for name, value in deployment.environment.items()]
    secret_key = {"name": secret, "key": "api-key"}
    probe = {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10, "timeoutSeconds": 5}
    container: dict[str, Any] = {
        "name": "kserve-container",
        **program,
        "args": [_literal(word) for word in arguments],
        "env": [*environment, {"name": key, "valueFrom": {"secretKeyRef": secret_key}}],
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": {**probe, "failureThreshold": 180},
        "readinessProbe": probe,
    }
    if deployment.gpus:
        count = {"nvidia.com/gpu": str(deployment.gpus)}
        container["resources"] = {"limits": count, "requests": dict(count)}
    if deployment.vllm:
        container["volumeMounts"] = [{"name": SHARED, "mountPath": "/dev/shm"}]  # noqa: S108  a mount, not a file
    return container


def _literal(text: str) -> str:
    """Write a text in which Kubernetes replaces no variable: it reads $$ as a dollar sign."""
    return text.replace("$", "$$")
