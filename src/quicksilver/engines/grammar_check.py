"""Proves grammars in a process of its own, `python -m quicksilver.engines.grammar_check FOLDER`, which dies of one that is too costly.

llguidance's limits don't bound all that a hostile schema can do: some (`allOf` over a dozen patterns) take it minutes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

from quicksilver.engines.grammar import Grammar, Grammars

CPU_S = 2.0
"""Processor time that a grammar may take to compile."""
MEMORY = 1 << 30
"""Bytes that it may take on top of the tokenizer's."""
KNOWN = 256
"""Grammars whose verdict is remembered."""
PROBED = 4
"""Tokens that a grammar is tried with."""
LATE = "It takes too long, or too much memory, to compile."


class GrammarCheck:
    """Says whether a grammar can be compiled for a model's tokenizer. Its process starts with the first one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._known: OrderedDict[str, str] = OrderedDict()

    def check(self, grammar: str) -> None:
        """Return if the grammar can be compiled, within seconds. Raises ValueError that says why not."""
        with self._lock:
            found = self._known.get(grammar)
            if found is None:
                found = self._known[grammar] = self._ask(grammar)
                if len(self._known) > KNOWN:
                    self._known.popitem(last=False)
            else:
                self._known.move_to_end(grammar)
        if found:
            raise ValueError(found)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(self, grammar: str) -> str:
        for _ in range(2):
            line, ended = self._exchange(grammar)
            if line:
                said: str = json.loads(line)
                return said
            if ended in (-signal.SIGPROF, -signal.SIGABRT):  # its timer; what it may allocate
                return LATE
        raise ValueError("The process that checks grammars ends before it answers.")

    def _exchange(self, grammar: str) -> tuple[str, int]:
        """Send a grammar; return the line that comes back, or else how the process ended."""
        if self._process is None or self._process.poll() is not None:
            self._end()
            command = [sys.executable, "-m", "quicksilver.engines.grammar_check", str(self._folder)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(grammar) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        ended = 0 if line else process.wait()
        if not line:
            self._end()
        return line, ended

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def main() -> None:
    """Answer each line of stdin, a grammar, with a line that says what is wrong with it."""
    os.nice(10)  # streams that are being decoded come first
    grammars = Grammars(Path(sys.argv[1]), eos=())
    try:
        grammars.load()
        used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    except (ValueError, OSError):  # compile says the first again; without /proc there is the timer alone
        pass
    for line in sys.stdin:
        grammar: str = json.loads(line)
        # The signal's default action ends the process, also from within native code.
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        try:
            _begin(grammars.compile(grammar))
            said = ""
        except ValueError as error:
            said = str(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(said), flush=True)


def _begin(grammar: Grammar) -> None:
    """Take a few tokens: some of what can go wrong comes with the first. Raises ValueError."""
    for _ in range(PROBED):
        if grammar.over:
            return
        grammar.take(int(grammar.allowed(2**20).argmax()))


if __name__ == "__main__":
    main()
