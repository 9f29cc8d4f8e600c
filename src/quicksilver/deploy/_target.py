"""Target: a system that serves artefacts from files of its own format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from quicksilver.deploy._deployment import Deployment
    from quicksilver.deploy._weights import Kind, Weights
    from quicksilver.nouns.artifact import Artifact


class Target(ABC):
    """Writes an artefact's settings in another system's words."""

    runs: ClassVar[str] = "vllm"
    """The one engine that it runs; `any engine` for one that runs containers."""
    main: ClassVar[str]
    """The file that is printed where no folder is given."""
    places: ClassVar[frozenset[Kind]]
    """Where it can take a vLLM artefact's weights from."""
    own_places: ClassVar[frozenset[Kind]] = frozenset()
    """Where it can take those of an artefact that Quicksilver's own server serves."""
    mounts: ClassVar[bool] = False
    """Whether it brings weights from anywhere into a folder of the server's."""
    takes_image: ClassVar[bool] = False
    takes_name: ClassVar[bool] = True
    """Whether a service has a name there."""
    needs_gpu: ClassVar[bool] = False

    @classmethod
    def name(cls) -> str:
        """The name on the command line: the file's name, with dashes."""
        return cls.__module__.rpartition(".")[2].replace("_", "-")

    @classmethod
    def serves(cls, engine: str) -> bool:
        """Whether it can serve artefacts of an engine."""
        return engine != "remote" and cls.runs in ("any engine", engine)

    def default_place(self, artifact: Artifact) -> Weights:
        """Return where the weights are if nothing is said: in the artefact's own folder."""
        from quicksilver.deploy._weights import Weights

        return Weights("folder", str(artifact.path))

    def sees(self, place: Weights, artifact: Artifact) -> str:
        """Return what the server is told to load."""
        return place.text

    def loading(self, place: Weights) -> dict[str, Any]:
        """Return what vLLM's arguments need beside the place."""
        # docs.vllm.ai, Run:ai Model Streamer: what reads object storage. Its package is an extra, vllm[runai].
        return {"load-format": "runai_streamer"} if place.kind in ("s3", "gs") else {}

    @abstractmethod
    def notes(self, deployment: Deployment) -> list[str]:
        """Return what it can't say of this artefact, or leaves to the user: a sentence each."""

    @abstractmethod
    def files(self, deployment: Deployment, notes: Sequence[str]) -> dict[str, str]:
        """Return its files, texts by name; they list the notes. Raises BadInputError for a value that the format can't hold."""
