"""Presets: kept with the artefact and in the project's folder, found again for a model, a machine and a workload."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import quicksilver
from quicksilver import recipes
from quicksilver.bench.price import cost
from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.build import store
from quicksilver.errors import BadInputError, unknown
from quicksilver.hardware import detect
from quicksilver.nouns.artifact import Artifact
from quicksilver.nouns.preset import PRESET_VERSION, PRESETS, Preset, machine_key
from quicksilver.nouns.score import Speed
from quicksilver.search.pareto import Pick
from quicksilver.search.state import Entry, Search, artifact_of
from quicksilver.sources import catalogue, models, workloads
from quicksilver.sources.home import home, writable, writing

FILE = "presets.json"
"""The presets of an artefact, in its folder: they travel with it."""
DEFAULTS = "defaults.json"


def make(search: Search, pick: Pick, entry: Entry, speeds: Sequence[Speed], run: str) -> Preset:
    """Return the preset of a recipe that was picked from the front, with its benchmark."""
    artifact = artifact_of(entry)
    return Preset(
        name=pick.name,
        why=pick.why,
        label=entry.label,
        recipe=recipes.to_document(entry.recipe),
        recipe_hash=entry.hash,
        settings=artifact.settings,
        artifact=artifact.key,
        model=search.model.name,
        source=search.model.source,
        fingerprint=search.model.fingerprint,
        workload=search.workload.name,
        workload_hash=search.workload.hash,
        max_quality_loss=search.goal.max_quality_loss,
        benchmark=tuple(speeds),
        costs=tuple(cost(speed, search.price) for speed in speeds),
        quality=entry.quality,
        price=search.price,
        hardware=detect(),
        tools=building.tools(entry.engine),
        commit=_commit(),
        run=run,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _commit() -> str:
    """Return the commit of the checkout that this package is run from; nothing for an installed one."""
    package = Path(quicksilver.__file__).parent
    if not (package.parents[1] / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=package, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""  # it is a remark on a figure's origin, and no git is no reason to lose the figure
    return done.stdout.strip()


def keep(presets: Sequence[Preset]) -> None:
    """Keep the presets of one search: in the project's folder, in place of those of the same model, machine and workload.

    Each artefact that they name carries its own, too, without paths of this machine.
    """
    if not presets:
        return
    first = presets[0]
    folder = writable(home() / "presets")
    _write(folder / f"{_key(first)}.json", presets)
    for artifact in dict.fromkeys(p.artifact for p in presets):
        ours = [_portable(p) for p in presets if p.artifact == artifact]
        others = [p for p in _read(store.path(artifact) / FILE) if _key(p) != _key(first)]
        store.amend(artifact, FILE, _text([*others, *ours]))


def _key(preset: Preset) -> str:
    return f"{preset.fingerprint[:16]}-{preset.machine}-{preset.workload_hash}"


def _portable(preset: Preset) -> Preset:
    """Leave out where this machine has the model."""
    path = Path(preset.source).expanduser()
    source = path.name if path.is_absolute() or path.exists() else preset.source
    return preset.model_copy(update={"source": source, "recipe": preset.recipe | {"model": source}})


def _text(presets: Iterable[Preset]) -> str:
    return json.dumps({"presets": [p.model_dump(mode="json") for p in presets]}, indent=1) + "\n"


def _write(file: Path, presets: Iterable[Preset]) -> None:
    part = file.with_suffix(".part")
    with writing(home()):
        part.write_text(_text(presets), encoding="utf-8")
        part.replace(file)


def _read(file: Path) -> list[Preset]:
    """Read presets; of a file that is damaged, or of another version, none: a search makes them anew."""
    try:
        found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["presets"]
        return [Preset.model_validate(p) for p in found if p["version"] == PRESET_VERSION]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def known(model: str | None = None, *, workload: str | None = None, everywhere: bool = False) -> list[Preset]:
    """Return the presets of this machine, or of all, for all models or one; the newest search first.

    Those that came with an imported artefact are among them. Raises BadInputError for a model that has none.
    """
    found: dict[tuple[str, str], Preset] = {}
    files = [
        *sorted((home() / "presets").glob("*-*-*.json")),
        *(folder / FILE for folder in map(store.path, store.keys())),
    ]
    for preset in (p for file in files for p in _read(file)):
        kept = found.setdefault((_key(preset), preset.name), preset)
        if preset.created > kept.created:
            found[_key(preset), preset.name] = preset
    every = list(found.values())
    if model is not None:
        every = _of_model(every, model)
    if workload is not None:
        names = {p.workload for p in every}
        if every and workload not in names:
            raise unknown("workload with presets", workload, names)
        every = [p for p in every if p.workload == workload]
    if not everywhere:
        every = [p for p in every if here(p)]
    every.sort(key=lambda p: PRESETS.index(p.name))
    # Those of one search stay together, though they weren't written in the same second.
    newest = {key: max(p.created for p in every if _key(p) == key) for key in map(_key, every)}
    every.sort(key=lambda p: (newest[_key(p)], _key(p)), reverse=True)
    return every


def here(preset: Preset) -> bool:
    """Whether a preset was measured on such a machine as this one."""
    return preset.machine == machine_key(detect())


def _of_model(presets: Sequence[Preset], model: str) -> list[Preset]:
    """Return the presets of a model: a path by the bytes that are there, whatever else by its name."""
    if Path(model).expanduser().exists() and model.lower() not in catalogue.names():
        fingerprint = models.resolve(model).fingerprint
        found = [p for p in presets if p.fingerprint == fingerprint]
    else:
        found = [p for p in presets if model.lower() in (p.model.lower(), p.source.lower())]
    if not found:
        names = {p.model for p in presets}
        if model not in names and names:
            near = unknown("model with presets", model, names)
            raise BadInputError(f"{near} `quicksilver optimize {model}` finds presets.")
        raise BadInputError(f"There are no presets for {model}; `quicksilver optimize {model}` finds them.")
    return found


def find(name: str, model: str, *, workload: str | None = None, any_machine: bool = False) -> Preset:
    """Return the newest preset of a name for a model on this machine.

    Raises BadInputError for a name that there isn't, and for presets that were measured on other machines only, unless
    `any_machine` allows these.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    every = [p for p in known(model, workload=workload, everywhere=True) if p.name == name]
    fitting = [p for p in every if here(p)] or (every if any_machine else [])
    if fitting:
        return fitting[0]
    if every:
        other = every[0].hardware
        raise BadInputError(
            f"The preset {name} of {model} was measured on another machine ({other.cpu}, {other.cores} cores), where "
            f"another recipe may be the best; run `quicksilver optimize {model}` here, or take it with --any-machine."
        )
    raise BadInputError(f"There is no preset {name} for {model}; `quicksilver optimize {model}` finds one.")


def artifact(preset: Preset, *, say: Callable[[str], None] = lambda _: None) -> Artifact:
    """Return a preset's artefact, built again if it is no longer in the store. Raises QuicksilverError."""
    if store.has(preset.artifact):
        return Artifact.open(store.path(preset.artifact))
    recipe = recipes.from_document(preset.recipe)
    model = models.resolve(recipe.model)
    if model.fingerprint != preset.fingerprint:
        raise BadInputError(
            f"The preset {preset.name} is for {preset.model} as it was: {recipe.model} has changed since; "
            f"run `quicksilver optimize {recipe.model}` again."
        )
    calibrated = any(t.calibrated for t in recipe.techniques)
    calibration = workloads.load(preset.workload).calibration if calibrated else ()
    made = building.build(planning.make(recipe, model, calibration), say=say)
    if made.key != preset.artifact:
        say(f"the preset {preset.name} was built anew with other tools than those that it was measured with")
        return made
    store.amend(made.key, FILE, _text(_portable(p) for p in known(everywhere=True) if p.artifact == made.key))
    return Artifact.open(made.path)


def set_default(preset: Preset) -> None:
    """Serve this preset from now on when its model is named and nothing else is said."""
    file = writable(home() / "presets") / DEFAULTS
    part = file.with_suffix(".part")
    with store.locked("presets"), writing(home()):
        chosen = _defaults() | {_default_key(preset): {"name": preset.name, "workload": preset.workload}}
        part.write_text(json.dumps(chosen, indent=1, sort_keys=True), encoding="utf-8")
        part.replace(file)


def default(model: str) -> Preset | None:
    """Return the preset that `set_default` chose for a model; None if none was. Raises BadInputError for a model without any."""
    chosen = _defaults()
    for preset in known(model, everywhere=True):
        wanted = chosen.get(_default_key(preset))
        if wanted == {"name": preset.name, "workload": preset.workload}:
            return preset
    return None


def instead(target: str) -> Artifact | None:
    """Return the artefact to serve where a model was named in place of one: that of its default preset.

    None if there are no presets for it. Raises BadInputError if there are, and none was chosen.
    """
    try:
        if not known(target, everywhere=True):
            return None
    except BadInputError:
        return None  # no model, or one without presets: what was said of it as an artefact holds
    chosen = default(target)
    if chosen is None:
        raise BadInputError(
            f"{target} is a model, and none of its presets has been chosen; add --preset {'|'.join(PRESETS)}, or choose one "
            f"for good with `quicksilver presets use NAME --model {target}`."
        )
    return artifact(chosen)


def _default_key(preset: Preset) -> str:
    return f"{preset.fingerprint[:16]}-{machine_key(detect())}"


def _defaults() -> dict[str, dict[str, str]]:
    try:
        found: dict[str, dict[str, str]] = json.loads((home() / "presets" / DEFAULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # nobody has chosen yet, or the file is damaged: then a preset has to be named
    return found
