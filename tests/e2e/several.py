"""Engines for the tests of several: a package with entry points, for this process and those that it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

HEAD = """
import os
from quicksilver.engines.fake import Fake, FakeDecoder
from quicksilver.nouns.engine import Abilities
from quicksilver.errors import EngineError, IllegalRecipeError


def timed(settings, **times):
    return settings.model_copy(update={"properties": times | dict(settings.properties)})

"""
STEADY = """
class Steady(Fake):
    'The same for many users as for one.'

    name = "steady"
    abilities = Abilities()

    def open(self, artifact, settings):
        return FakeDecoder(artifact, timed(settings, decode_ms=40.0, batch_cost=0.02, draft_cost=0.0))
"""
SWIFT = """
class Swift(Fake):
    'Quick for one user, slow for many.'

    name = "swift"
    abilities = Abilities()

    def check(self, technique):
        super().check(technique)
        if technique.name() not in ("int8", "prompt-lookup"):
            raise IllegalRecipeError(f"The engine swift can't do {technique.name()}.")

    def choices(self, hardware, streams):
        return {"kv_precision": ("default", "u8")}

    def open(self, artifact, settings):
        return FakeDecoder(artifact, timed(settings, decode_ms=15.0, batch_cost=1.5, draft_cost=0.0))
"""
MUTE = """
class Mute(Fake):
    "Tells no log-probabilities of a prompt, and answers as it should."

    name = "mute"
    abilities = Abilities(prompt_logprobs=False, prompt_top_logprobs=False)

    def open(self, artifact, settings):
        return Silent(artifact, timed(settings, decode_ms=10.0, batch_cost=0.02))


class Silent(FakeDecoder):
    def submit(self, request, deliver):
        if request.echo:
            raise ValueError("It can't tell log-probabilities of a prompt.")
        return super().submit(request, deliver)
"""
WRONG = """
class Wrong(Fake):
    "Tells no log-probabilities of a prompt either, and answers another question."

    name = "wrong"
    abilities = Abilities(prompt_logprobs=False, prompt_top_logprobs=False)

    def open(self, artifact, settings):
        return Confused(artifact, timed(settings, decode_ms=1.0))


class Confused(FakeDecoder):
    def submit(self, request, deliver):
        request.prompt = [token % 50 for token in request.prompt[::-1]]
        return super().submit(request, deliver)
"""
FRAIL = """
class Frail(Fake):
    "Dies under a load."

    name = "frail"
    abilities = Abilities()

    def open(self, artifact, settings):
        return Dying(artifact, settings)


class Dying(FakeDecoder):
    def submit(self, request, deliver):
        if request.max_tokens > 1:
            os.kill(os.getppid(), 9)  # the server, not this worker alone, which would be started again
            os._exit(7)
        return super().submit(request, deliver)
"""
ABSENT = """
class Absent(Fake):
    "Isn't installed."

    name = "absent"
    abilities = Abilities()

    def version(self):
        raise EngineError("The engine absent isn't installed; quicksilver engine add absent adds it.")
"""
ENGINES = {"steady": STEADY, "swift": SWIFT, "mute": MUTE, "wrong": WRONG, "frail": FRAIL, "absent": ABSENT}


def install(folder: Path, patch: pytest.MonkeyPatch, engines: Mapping[str, str] = ENGINES) -> None:
    """Install a package of engines until the patch is undone."""
    information = folder / "several-1.0.dist-info"
    information.mkdir(parents=True)
    for name, text in engines.items():
        (folder / f"engine_{name}.py").write_text(HEAD + text, encoding="utf-8")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: several\nVersion: 1.0\n", encoding="utf-8")
    entries = "".join(f"{name} = engine_{name}\n" for name in engines)
    (information / "entry_points.txt").write_text(f"[quicksilver.engines]\n{entries}", encoding="utf-8")
    patch.syspath_prepend(folder)
    patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
