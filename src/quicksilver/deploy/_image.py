"""The image of Quicksilver's own server. None is published: what is written builds one."""

from __future__ import annotations

from quicksilver import engines, environments
from quicksilver.deploy._deployment import Deployment

DOCKERFILE, LOCK = "Dockerfile", "serve.lock"
KEY_VARIABLE = "QUICKSILVER_API_KEY"
BUILT = "built for this CPU"
"""What the version of an engine says that was built where it was measured."""


def tag(deployment: Deployment) -> str:
    """Return the name of the image that is built."""
    own = engines.find(deployment.artifact.engine).environment
    return f"quicksilver{'' if own == 'default' else f'-{own}'}:{deployment.versions['quicksilver']}"


def arguments(model: str, port: int) -> list[str]:
    """Return what the server is started with."""
    return [model, "--host", "0.0.0.0", "--port", str(port)]  # noqa: S104  a container's own address


def notes(deployment: Deployment) -> list[str]:
    """Say what the image needs from the user, and where it is another than what was measured."""
    version = deployment.versions["quicksilver"]
    wheel = f"quicksilver-{version}-py3-none-any.whl"
    made_by = "pip wheel --no-deps -w . PATH/TO/QUICKSILVER"
    said = [
        f"No image of Quicksilver is published: it is built here, from {wheel} beside the {DOCKERFILE} ({made_by})."
    ]
    if BUILT in deployment.artifact.target.get("engine", "") and not _native(deployment):
        said.append(
            f"It was measured with {deployment.artifact.engine} built for its CPU; the image has the prebuilt one."
        )
    return said


def files(deployment: Deployment) -> dict[str, str]:
    """Return the Dockerfile, and the lock file that it installs."""
    engine = engines.find(deployment.artifact.engine)
    native = _native(deployment)
    tools = (
        "RUN apt-get update && apt-get install -y --no-install-recommends cmake g++ && rm -rf /var/lib/apt/lists/*\n"
    )
    add = f"RUN quicksilver engine add {engine.environment}{' --native' if native else ''}\n"
    dockerfile = f"""\
# An image that serves Quicksilver artefacts with the engine {engine.name}. Its wheel has to lie beside this file:
# pip wheel --no-deps -w . PATH/TO/QUICKSILVER
FROM python:3.11-slim
{tools if native else ""}RUN useradd --create-home --uid 1000 quicksilver
COPY {LOCK} quicksilver-{deployment.versions["quicksilver"]}-*.whl /tmp/wheels/
RUN pip install --no-cache-dir --no-deps -r /tmp/wheels/{LOCK} /tmp/wheels/*.whl
USER 1000
ENV QUICKSILVER_HOME=/home/quicksilver/cache
{"" if engine.environment == "default" else add}EXPOSE 8000
ENTRYPOINT ["quicksilver", "serve"]
"""
    return {DOCKERFILE: dockerfile, LOCK: lock()}


def lock() -> str:
    """Return the versions that a server needs, as they are locked."""
    return (environments.folder_of_locks() / LOCK).read_text(encoding="utf-8")


def _native(deployment: Deployment) -> bool:
    """Whether the artefact's settings ask for an engine that is built where it runs."""
    return deployment.artifact.settings.properties.get("build") == "native"
