"""Run code that a model wrote, confined as far as a process without privileges can confine itself.

Run as a script, in a process of its own and without the package (quicksilver.bench.sandbox starts it): a JSON job comes on stdin, and a
secret word goes to a file descriptor of its own when the program has run to its end.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_NO_NEW_PRIVS = 38
LANDLOCK_CREATE, LANDLOCK_RESTRICT = 444, 446
# Landlock's rights that change files: all of its first version but to execute and to read; to move them from its second, to cut them
# off from its third. TCP (to listen, to connect) can be refused from its fourth.
CHANGING, MOVING, CUTTING, TCP = 0x1FF2, 0x2000, 0x4000, 0x3
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MOST_SAID = 500
FORBIDDEN = (
    "ctypes.", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "os.killpg", "os.remove",
    "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime", "os.setxattr",
    "pty.spawn", "resource.setrlimit", "shutil.", "signal.pthread_kill", "socket.", "subprocess.Popen", "syslog.", "webbrowser.open",
)  # fmt: skip


def confine(cpu_s: int, memory_bytes: int) -> list[str]:
    """Limit this process for good, and return what holds: of Linux's own means, those that this kernel grants."""
    holds = ["limits"]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    # No file grows by a byte, wherever it is. Pipes are no files.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform != "linux":
        return holds
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWNET) == 0:
        holds.append("network")  # a network of its own, which leads nowhere
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    version = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version >= 1:
        rights = (ctypes.c_uint64 * 2)(
            CHANGING | (MOVING if version >= 2 else 0) | (CUTTING if version >= 3 else 0), TCP if version >= 4 else 0
        )
        size = ctypes.c_size_t(16 if version >= 4 else 8)
        ruleset = libc.syscall(LANDLOCK_CREATE, ctypes.byref(rights), size, ctypes.c_uint32(0))
        if ruleset >= 0 and libc.syscall(LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0)) == 0:
            holds += ["files"] + (["tcp"] if version >= 4 else [])  # nothing may be changed anywhere
    return holds


def refuse(event: str, args: tuple[Any, ...]) -> None:
    """Refuse what a solution to an exercise has no business with. A deterrent where the kernel's means aren't granted."""
    if event.startswith(FORBIDDEN):
        raise PermissionError(f"{event} isn't allowed here")
    if event == "open" and (set(str(args[1] or "")) & set("wax+") or (args[2] or 0) & WRITING):
        raise PermissionError("files can't be written here")


def main() -> None:
    """Read the job, confine, run the program, and tell the secret word if it came to its end, else what stopped it."""
    job = json.loads(sys.stdin.buffer.read())
    told = int(sys.argv[1])
    holds = confine(job["cpu_s"], job["memory_bytes"])
    os.write(told, (json.dumps(holds) + "\n").encode())
    try:
        program = compile(job["program"], "<answer>", "exec")
        sys.addaudithook(refuse)
        exec(program, {"__name__": "__main__"})  # noqa: S102  that is what it is for
    except BaseException as error:  # noqa: BLE001  whatever it raises means that it failed
        os.write(told, f"{type(error).__name__}: {error}"[:MOST_SAID].encode(errors="replace"))
        os._exit(1)
    os.write(told, job["word"].encode())


if __name__ == "__main__":
    main()
