"""Fixtures for every test."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

from quicksilver import api
from quicksilver.environments import MARKER
from quicksilver.nouns import Recipe
from quicksilver.sources.home import HOME_VARIABLE, home
from quicksilver.sources.text import Tokenizer
from quicksilver.testing.tiny import make_tiny_model

# No test is timed: hypothesis's deadline would fail them on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHARED_HOME_VARIABLE = "QUICKSILVER_TEST_HOME"
"""A folder that keeps downloads and conversions from one test session to the next."""


# A shell's background job ignores Ctrl-C, and so do the processes that it starts: the tests send it to some of theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def share_environments(users: Path, ours: Path) -> None:
    """Have the engines' environments that were added (`quicksilver engine add`) in a cache folder of the tests, too."""
    for environment in users.iterdir() if users.is_dir() else ():
        if (environment / MARKER).is_file():
            ours.mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another worker was quicker
                (ours / environment.name).symlink_to(environment)


@pytest.fixture(scope="session", autouse=True)
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of every test that brings none, so that nothing is left in the user's: one download a session."""
    chosen = os.environ.get(SHARED_HOME_VARIABLE)
    base = tmp_path_factory.getbasetemp()
    # Under pytest-xdist each worker has a folder of its own inside the session's.
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = Path(chosen).absolute() if chosen else session / "shared-home"
    folder.mkdir(parents=True, exist_ok=True)
    share_environments(home() / "envs", folder / "envs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(folder))
        yield folder


@pytest.fixture
def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """What loads a script of benchmarks/ by its name, with its neighbours, for one test."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, as Hugging Face keeps one."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    """The tiny model's tokenizer."""
    return Tokenizer(folder)


@pytest.fixture(scope="session")
def fake_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as it comes, for the fake engine: only to be read."""
    folder = tmp_path_factory.mktemp("fake")
    recipe = Recipe(str(make_tiny_model(folder / "tiny")), engine="fake")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(folder / "home"))
        return api.build(recipe).path


@pytest.fixture(autouse=True, scope="session")
def _no_width() -> Iterator[None]:
    """Tables have the width of a pipe, and not that of whoever started the tests (pytest-xdist sets one)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        yield
