"""The local machine, detected."""

from __future__ import annotations

import os
import platform
import re
import resource
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from quicksilver.nouns.hardware import Hardware

CGROUP = Path("/sys/fs/cgroup")
PROC_CGROUP = Path("/proc/self/cgroup")
ISA_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "sve": "SVE",
}


@cache
def detect() -> Hardware:
    """Describe this machine: the cores that this process may use, its memory and vector instruction sets."""
    model, _ = _cpuinfo()
    return Hardware(
        name="local",
        cpu=model or platform.processor() or platform.machine(),
        cores=usable_cores(),
        memory_gb=round(_memory_limit() / 1e9, 1),
        isa=instructions(),
    )


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instructions() -> tuple[str, ...]:
    """Name the vector instruction sets of this machine that matter to a language model."""
    _, flags = _cpuinfo()
    return tuple(name for flag, name in ISA_FLAGS.items() if flag in flags)


def named(text: str) -> tuple[str, ...]:
    """Return the instruction sets that a text names one after the other, as an artefact's manifest does."""
    longest_first = sorted(ISA_FLAGS.values(), key=len, reverse=True)
    return tuple(re.findall("|".join(map(re.escape, longest_first)), text))


def lacking(needed: Iterable[str]) -> list[str]:
    """Return those of an x86 package's instruction sets that this machine lacks; none on other processors, whose packages are others."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    here = instructions()
    return [name for name in needed if name not in here]


@cache
def _cpuinfo() -> tuple[str, set[str]]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return "", set()
    fields: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name", ""), flags


def available_memory() -> int:
    """Return the bytes of memory that a new process could take: the machine's, or what a container's or ulimit's limit leaves."""
    import psutil

    free = [int(psutil.virtual_memory().available), *(limit - used for limit, used in _cgroups())]
    # Of address space, which is always more than the memory in use.
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        free.append(most)
    return max(0, min(free))


def _memory_limit() -> int:
    """Bytes of memory: the machine's, or the container's limit where that is lower."""
    import psutil

    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _cgroups())])


def _cgroups() -> list[tuple[int, int]]:
    """Return limit and use, bytes, of this process's control groups that have a limit (Linux's cgroup-v2.rst, memory.rst).

    A group of version 2 is bound by those around it too. Cached files count as use, and are given back under pressure: those
    that are inactive aren't counted here.
    """
    found = []
    for folder, limit_file, use_file in _cgroup_folders():
        limit, use = _number(folder / limit_file), _number(folder / use_file)
        # Version 1 writes "no limit" as a number near 2^63.
        if limit is not None and limit < 2**60:
            found.append((limit, max(0, (use or 0) - _inactive_files(folder / "memory.stat"))))
    return found


def _cgroup_folders() -> Iterator[tuple[Path, str, str]]:
    membership = PROC_CGROUP.read_text(encoding="utf-8").splitlines() if PROC_CGROUP.is_file() else []
    for line in membership:
        _, controllers, name = line.split(":", 2)
        relative = Path(name.lstrip("/"))
        if not controllers:
            for part in (relative, *relative.parents):
                yield CGROUP / part, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            # Inside a container the group's own files are at the top, whatever its name is outside.
            for part in (relative, *relative.parents):
                yield CGROUP / "memory" / part, "memory.limit_in_bytes", "memory.usage_in_bytes"


def _number(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _inactive_files(stat: Path) -> int:
    try:
        lines = stat.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    values = dict(line.split() for line in lines if len(line.split()) == 2)
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))
