"""The catalogue of machines that can be rented: package data, and a file of the user's that adds to it and goes before it."""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from importlib import resources
from pathlib import Path

import platformdirs
from pydantic import Field, ValidationError

from quicksilver.errors import BadInputError, said
from quicksilver.hardware import detect
from quicksilver.nouns.base import Noun
from quicksilver.nouns.instance import Accelerator, Commitment, Instance, Rate

CONFIG_VARIABLE = "QUICKSILVER_CONFIG"
SAGEMAKER = "ml."
LOCAL = "local"
GIB = 2**30 / 1e9
"""10^9 bytes of a GiB, which price lists state memory in."""
OLD_DAYS = 365


class _Size(Noun):
    accelerators: int = Field(0, ge=0)
    vcpus: int = Field(gt=0)
    cores: int = Field(gt=0)
    memory_gib: float = Field(gt=0)


class _Socket(Noun):
    vcpus: int = Field(gt=0)
    bandwidth_gb_s: float = Field(gt=0)


class _Core(Noun):
    ghz: float = Field(gt=0)
    flop_per_cycle: dict[str, float]


class _Family(Noun):
    accelerator: str = ""
    cpu: str
    sagemaker: bool = False
    socket: _Socket | None = None
    core: _Core | None = None
    source: str
    sizes: dict[str, _Size]


class _Prices(Noun):
    where: str
    date: str = Field(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")
    source: str
    commitment: Commitment = "on-demand"
    usd_per_hour: dict[str, float]


class _Device(Noun):
    memory_gb: float = Field(gt=0)
    bandwidth_gb_s: float = Field(gt=0)
    tflops: dict[str, float]
    link_gb_s: float = Field(gt=0)
    system: str = ""
    source: str


class _Catalogue(Noun):
    accelerator: dict[str, _Device] = Field(default_factory=dict)
    family: tuple[_Family, ...] = ()
    prices: tuple[_Prices, ...] = ()


def users_file() -> Path:
    """Return where the user's own instances and prices are read from: QUICKSILVER_CONFIG or the user's configuration folder."""
    chosen = os.environ.get(CONFIG_VARIABLE)
    folder = Path(chosen).expanduser().absolute() if chosen else platformdirs.user_config_path("quicksilver")
    return folder / "instances.toml"


def instances() -> dict[str, Instance]:
    """Return every known instance by its name, the user's before the package's. Raises BadInputError for a broken file of the user's."""
    file = users_file()
    try:
        return dict(_instances(file, file.stat().st_mtime_ns))
    except (FileNotFoundError, NotADirectoryError):
        return dict(_instances(None, 0))
    except OSError as error:
        raise BadInputError(f"{file} can't be read: {(error.strerror or str(error)).lower()}.") from error


def find(name: str) -> Instance:
    """Return an instance by its name; `local` is this machine, on its CPU. Raises BadInputError that suggests the nearest one."""
    known = instances()
    if name in known:
        return known[name]
    if name == LOCAL:
        return local()
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"`quicksilver hardware list` shows what is known, and {users_file()} adds one."
    )
    raise BadInputError(f"There is no instance named {name!r}; {hint}")


def local() -> Instance:
    """Return this machine as an instance, without a price: what an hour of it costs, only its owner knows."""
    here = detect()
    return Instance(
        name=LOCAL, cpu=here.cpu, vcpus=here.cores, cores=here.cores, memory_gb=here.memory_gb, source="this machine"
    )


def stale(rate: Rate, today: date) -> str | None:
    """Return a warning for a price that is more than a year old, else None. A date without a day counts as its last."""
    year, *rest = (int(part) for part in rate.date.split("-"))
    month = rest[0] if rest else 12
    day = rest[1] if len(rest) > 1 else 28
    if (today - date(year, month, day)).days <= OLD_DAYS:
        return None
    return (
        f"${rate.usd_per_hour:g} an hour is a price of {rate.date} ({rate.source}), more than a year old: "
        f"look it up, and put what you pay into {users_file()}."
    )


@lru_cache(maxsize=4)
def _instances(file: Path | None, _changed: int) -> Mapping[str, Instance]:
    package = resources.files("quicksilver.sources")
    ours = tomllib.loads((package / "instances.toml").read_text(encoding="utf-8"))
    devices = tomllib.loads((package / "accelerators.toml").read_text(encoding="utf-8"))
    known = _Catalogue.model_validate(ours | {"accelerator": devices})
    theirs = _users(file) if file is not None else _Catalogue()
    accelerators = {
        name: Accelerator(name=name, **device.model_dump())
        for name, device in (known.accelerator | theirs.accelerator).items()
    }
    found: dict[str, Instance] = {}
    for number, family in enumerate((*theirs.family, *known.family)):
        if family.accelerator and family.accelerator not in accelerators:
            raise _broken(file, ("family", number, "accelerator"), f"no accelerator is named {family.accelerator!r}")
        for name, size in family.sizes.items():
            made = _instance(name, family, size, accelerators)
            found.setdefault(name, made)
            if family.sagemaker:
                found.setdefault(SAGEMAKER + name, made.model_copy(update={"name": SAGEMAKER + name}))
    for number, prices in enumerate(theirs.prices):
        for name, usd in prices.usd_per_hour.items():
            place = ("prices", number, "usd_per_hour", name)
            if name not in found:
                raise _broken(file, place, f"it gives a price of {name!r}, of which it doesn't say what it is")
            if not 0 < usd < math.inf:
                raise _broken(file, place, f"the price of {name!r} has to be above 0")
    priced = {name: (*_rates(theirs, name), *_rates(known, name)) for name in found}
    return {name: one.model_copy(update={"rates": priced[name]}) for name, one in found.items()}


def _instance(name: str, family: _Family, size: _Size, accelerators: Mapping[str, Accelerator]) -> Instance:
    share = size.vcpus / family.socket.vcpus if family.socket else 0.0
    return Instance(
        name=name,
        accelerator=accelerators[family.accelerator] if family.accelerator else None,
        accelerators=(size.accelerators or 1) if family.accelerator else 0,
        cpu=family.cpu,
        vcpus=size.vcpus,
        cores=size.cores,
        memory_gb=round(size.memory_gib * GIB, 2),
        bandwidth_gb_s=round(family.socket.bandwidth_gb_s * share, 2) if family.socket else None,
        tflops={
            precision: round(size.cores * family.core.ghz * flop / 1e3, 3)
            for precision, flop in family.core.flop_per_cycle.items()
        }
        if family.core
        else {},
        source=family.source,
    )


def _rates(catalogue: _Catalogue, name: str) -> tuple[Rate, ...]:
    """The prices of one instance, the newest first."""
    found = [
        Rate(
            usd_per_hour=prices.usd_per_hour[name],
            commitment=prices.commitment,
            where=prices.where,
            date=prices.date,
            source=prices.source,
        )
        for prices in catalogue.prices
        if name in prices.usd_per_hour
    ]
    return tuple(sorted(found, key=lambda rate: rate.date, reverse=True))


def _users(file: Path) -> _Catalogue:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError(f"{file} is not UTF-8 text.") from error
    try:
        return _Catalogue.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadInputError(f"{file} is not valid TOML: {said(error)}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"][0].lower() + first["msg"][1:]
        raise BadInputError(f"{file}, line {_line(text, first['loc'])}: {place}: {message}.") from error


def _line(text: str, place: tuple[str | int, ...]) -> int:
    """The line of what is at a place in a TOML text, or of the last part of it that is there."""
    at = 0
    for part, following in zip(place, (*place[1:], ""), strict=True):
        if isinstance(part, str):
            for _ in range(following + 1 if isinstance(following, int) else 1):
                found = text.find(part, at)
                at = found + 1 if found >= 0 else at
    return text.count("\n", 0, at) + 1


def _broken(file: Path | None, place: tuple[str | int, ...], why: str) -> BadInputError:
    """Make the error for what a file says wrongly at a place in it."""
    text = file.read_text(encoding="utf-8") if file is not None else ""
    return BadInputError(f"{file}, line {_line(text, place)}: {why}.")
