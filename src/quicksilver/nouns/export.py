"""Export: the files that another system reads to serve an artefact, and what they can't say."""

from __future__ import annotations

from pydantic import Field

from quicksilver.nouns.base import Noun

EXPORT_VERSION = 1


class Export(Noun):
    """An artefact's settings in another system's words."""

    version: int = EXPORT_VERSION
    to: str = Field(description="the target: vllm-args, lmi, docker-compose, kserve or ray-serve")
    key: str = Field(description="of the artefact")
    label: str
    model: str
    engine: str
    weights: str = Field(description="where the files say that the weights are")
    main: str = Field(description="the file that is printed where no folder is given")
    files: dict[str, str] = Field(description="texts by file name")
    notes: tuple[str, ...] = Field((), description="what the target can't say or leaves to the user, a sentence each")

    @property
    def text(self) -> str:
        """The main file."""
        return self.files[self.main]
