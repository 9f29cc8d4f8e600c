"""Deployment: an artefact, where its weights will be, and how it is served there; what every target writes from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from quicksilver.deploy import _vllm, _weights
from quicksilver.errors import BadInputError
from quicksilver.nouns.artifact import MANIFEST, Artifact
from quicksilver.nouns.settings import Settings

if TYPE_CHECKING:
    from quicksilver.deploy._target import Target
    from quicksilver.deploy._weights import Weights

_VERSION = re.compile(r"[0-9]+(\.[0-9]+)+((\.post|rc)[0-9]+)?|[0-9]+")
MAX_NAME = 50
"""Characters of a name: Kubernetes allows 63, and appends to it."""
PORT = 8000
NO_GATEWAY = (
    "Quicksilver's gateway is not in front of it, as it isn't under `quicksilver serve` for vLLM: its grammars, limits of waiting "
    "and time, access log and recording are not there."
)
ONLY_CPU = "It was built and tried with vLLM on a CPU; nothing of it was tried on a GPU."
# docs.vllm.ai, security: limits of API key authentication.
HALF_LOCKED = (
    "vLLM asks for the API key under /v1 only, and /invocations answers without one: let a proxy pass /v1 alone."
)


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is served, from where, and by what."""

    artifact: Artifact
    name: str
    """A name for services: lower-case letters, digits and dashes."""
    weights: Weights
    model: str
    """What the server is told to load: a path as it sees it, a hub id or a URI."""
    gpus: int
    image: str | None
    versions: dict[str, str] = field(default_factory=dict)
    """Of what built the artefact and serves it: `quicksilver` and `engine`."""
    options: dict[str, Any] = field(default_factory=dict)
    """vLLM's arguments but for the model; empty for other engines."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that vLLM's arguments don't say."""
    notes: tuple[str, ...] = ()
    """What holds for every target."""

    @property
    def vllm(self) -> bool:
        """Whether vLLM's own server serves it, and not Quicksilver's."""
        return self.artifact.engine == "vllm"

    def chose(self, option: str) -> bool:
        """Whether the recipe names an argument of vLLM's, which our engine sets else."""
        return option.replace("-", "_") in self.artifact.settings.properties

    def vllm_image(self) -> str:
        """The image of vLLM's project, of the version that the artefact was built with."""
        if self.image:
            return self.image
        return f"vllm/vllm-openai{'' if self.gpus else '-cpu'}:v{self.versions['engine']}"


def plan(
    artifact: Artifact,
    target: Target,
    *,
    weights: str | None = None,
    image: str | None = None,
    gpus: int | None = None,
    name: str | None = None,
) -> Deployment:
    """Settle where an artefact's weights will be and how it is served. Raises BadInputError for what doesn't go together."""
    place = _place(artifact, target, weights)
    if image is not None and not re.fullmatch(r"[a-z0-9][\w./:@-]*", image):
        raise BadInputError(f"{image!r} is not the name of an image, such as registry.example/quicksilver:1.")
    if image is not None and not target.takes_image:
        raise BadInputError(f"{target.name()} has no image to name; leave --image out.")
    if name is not None and not target.takes_name:
        raise BadInputError(f"{target.name()} has no service to name; leave --name out.")
    if gpus == 0 and target.needs_gpu:
        raise BadInputError(f"{target.name()} serves on GPUs only; leave --gpus 0 out.")
    settled = Deployment(
        artifact=artifact,
        name=_name(name, artifact.model),
        weights=place,
        model=target.sees(place, artifact),
        gpus=gpus or 0,
        image=image,
        versions=_versions(artifact),
    )
    if settled.vllm:
        return _with_vllm(settled, target, gpus)
    if gpus:
        raise BadInputError(f"The engine {artifact.engine} runs on the CPU; leave --gpus out.")
    return settled


def _with_vllm(settled: Deployment, target: Target, gpus: int | None) -> Deployment:
    artifact, place = settled.artifact, settled.weights
    needed = _count(artifact.settings, "tensor_parallel_size") * _count(artifact.settings, "pipeline_parallel_size")
    if gpus is not None and gpus < needed and (gpus or needed > 1):
        raise BadInputError(f"The weights are split over {needed} GPUs: --gpus {gpus} is too few.")
    guessing = artifact.settings.speculation
    if guessing is not None and guessing.draft and not target.mounts and place.kind != "folder":
        raise BadInputError(
            f"The draft lies in the artefact's folder {guessing.draft}/, which vLLM can't find below {place.uri}; "
            f"give {target.name()} a folder."
        )

    def made(settings: Settings) -> _vllm.Server:
        offline = target.mounts or place.kind == "folder"
        return _vllm.server(artifact.path, settings, gpu=gpus != 0, model=settled.model, offline=offline)

    server = made(artifact.settings)
    untried = gpus != 0 and "(CPU)" in artifact.target.get("engine", "")
    revision = {"revision": place.revision} if place.revision and not target.mounts else {}
    return replace(
        settled,
        gpus=needed if gpus is None else gpus,
        options={**server.options, **revision, **target.loading(place)},
        environment=dict(server.environment),
        notes=(*_vllm.unsaid(artifact.settings, made), NO_GATEWAY, *([ONLY_CPU] if untried else [])),
    )


def _count(settings: Settings, name: str) -> int:
    value = settings.properties.get(name, 1)
    if not re.fullmatch(r"[1-9][0-9]*", str(value)):
        raise BadInputError(f"The property {name} is a number of GPUs, not {value!r}.")
    return int(value)


def _place(artifact: Artifact, target: Target, weights: str | None) -> Weights:
    places = target.places if artifact.engine == "vllm" else target.own_places
    words = ", ".join(_weights.WORDS[kind] for kind in _weights.WORDS if kind in places)
    if weights is None:
        if "folder" in places:
            return target.default_place(artifact)
        raise BadInputError(f"{target.name()} has to know where the weights will be: add --model-uri with {words}.")
    found = _weights.parse(weights)
    if found.kind not in places:
        raise BadInputError(
            f"{target.name()} can't serve {artifact.engine} weights from {found.uri}: --model-uri may be {words}."
        )
    return found


def _name(given: str | None, model: str) -> str:
    if given is not None:
        if not re.fullmatch(rf"[a-z]([a-z0-9-]{{0,{MAX_NAME - 2}}}[a-z0-9])?", given):
            raise BadInputError(
                f"{given!r} can't be a service's name: it begins with a letter, has lower-case letters, digits and dashes, "
                f"{MAX_NAME} at most."
            )
        return given
    plain = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"model-{plain}")[:MAX_NAME].rstrip("-")


def _versions(artifact: Artifact) -> dict[str, str]:
    """Return the versions that built an artefact, without what else their names say. Raises BadInputError if there are none."""
    try:
        tools = json.loads((artifact.path / MANIFEST).read_text(encoding="utf-8"))["tools"]
        return {name: _VERSION.search(str(tools[name]))[0] for name in ("quicksilver", "engine")}  # type: ignore[index]
    except (KeyError, TypeError) as error:
        raise BadInputError(
            f"{artifact.path / MANIFEST} doesn't say what built the artefact; build it again."
        ) from error


def head(deployment: Deployment, target: str, notes: Sequence[str], use: Sequence[str]) -> str:
    """Return the comments at a file's top: what it is, how it is used, and the notes."""
    artifact = deployment.artifact
    what = f"{artifact.label} of {artifact.model}, artefact {artifact.key} for {artifact.engine}: quicksilver export --to {target}"
    lines = [
        what,
        *use,
        *(["", "Not carried over, or left to you:", *(f"- {note}" for note in notes)] if notes else []),
    ]
    # A value that was noted may have line breaks, and what follows one is no comment.
    return "".join(f"# {' '.join(line.split())}".rstrip() + "\n" for line in lines)


def as_yaml(document: Any) -> str:
    """Write a document as YAML: in its own order, without broken lines, and each part written out where it stands."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return str(yaml.dump(document, Dumper=Plain, sort_keys=False, allow_unicode=True, width=10_000))
