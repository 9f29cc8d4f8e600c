"""Deployment files: what other systems read to serve an artefact. One file each; its name, with dashes, is the target's."""

from __future__ import annotations

import importlib
import pkgutil

from quicksilver.deploy._target import Target
from quicksilver.deploy._write import check_folder, write
from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.artifact import Artifact
from quicksilver.nouns.export import Export

__all__ = ["Target", "check_folder", "find", "names", "render", "write"]


def names() -> list[str]:
    """Return the names of all targets, without importing any of them."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(name: str) -> Target:
    """Return a target. Raises BadInputError with the nearest name for an unknown one."""
    plain = name.lower().replace("_", "-")
    if plain not in names():
        raise unknown("target", name, names())
    module = importlib.import_module(f"{__name__}.{plain.replace('-', '_')}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Target) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} has to define exactly one Target, not {len(found)}")
    target: Target = found[0]()
    return target


def render(
    artifact: Artifact,
    to: str,
    *,
    weights: str | None = None,
    image: str | None = None,
    gpus: int | None = None,
    name: str | None = None,
) -> Export:
    """Make a target's files for an artefact; nothing is written.

    `weights` is where the files of the artefact will be, and by default where they are. Raises BadInputError for an unknown target, one that can't
    serve the artefact's engine, and for options that don't go with it.
    """
    from quicksilver.deploy._deployment import plan

    target = find(to)
    _check_engine(target, artifact)
    deployment = plan(artifact, target, weights=weights, image=image, gpus=gpus, name=name)
    notes = (*deployment.notes, *target.notes(deployment))
    files = target.files(deployment, notes)
    return Export(
        to=target.name(),
        key=artifact.key,
        label=artifact.label,
        model=artifact.model,
        engine=artifact.engine,
        weights=deployment.weights.text,
        main=target.main,
        files=files,
        notes=notes,
    )


def _check_engine(target: Target, artifact: Artifact) -> None:
    if target.serves(artifact.engine):
        return
    others = [name for name in names() if find(name).serves(artifact.engine)]
    raise BadInputError(
        f"{target.name()} can't serve an artefact of the engine {artifact.engine}: it runs {target.runs} only; "
        f"{' and '.join(others)} can."
    )
