"""The load client's process: started for the first load, kept for the next ones, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any, Self

from quicksilver.bench.job import Job
from quicksilver.errors import EngineError

API_KEY_ENV = "QUICKSILVER_ENDPOINT_API_KEY"
STOP_S = 5.0


@dataclass(slots=True)
class Driver:
    """Runs one load after the other in a process of its own, which a context ends. Not for several threads at once."""

    api_key: str | None = None
    """What the servers ask for; it goes by the process's environment, which other users can't read."""
    _process: subprocess.Popen[str] | None = None
    _complaints: IO[str] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, job: Job, on_progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """Run a load to its end and return the client's summary. Raises EngineError; the next load then has a new process."""
        try:
            return self._run(job, on_progress)
        except BaseException:
            self.close()
            raise

    def _run(self, job: Job, on_progress: Callable[[int, int], None] | None) -> dict[str, Any]:
        for line in self._converse(job):
            if "summary" in line:
                summary: dict[str, Any] = line["summary"]
                if summary["stopped"]:
                    self.close()
                return summary
            if "failure" in line:
                raise EngineError(f"The load client failed: {line['failure'].rstrip('.')}.")
            if on_progress is not None:
                on_progress(line["done"], line["total"])
        raise EngineError(f"The load client failed: {self._last_words().rstrip('.')}.")

    def close(self) -> None:
        """End the process, and close its pipes."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)
        complaints, self._complaints = self._complaints, None
        if complaints is not None:
            complaints.close()

    def _converse(self, job: Job) -> Iterator[dict[str, Any]]:
        """Hand the job over, then yield the client's lines; ends when it closes its stdout."""
        if self._process is not None and self._process.poll() is not None:
            self.close()  # somebody ended it between two loads
        process = self._process = self._process or self._start()
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:  # pragma: no cover - both are pipes
            raise EngineError("The load client has no pipes.")
        try:
            stdin.write(job.model_dump_json() + "\n")
            stdin.flush()
        except BrokenPipeError:
            return  # it died before it read its job: its stderr says why
        for line in stdout:
            if line.endswith("\n"):  # a killed client may leave half a line
                yield json.loads(line)

    def _start(self) -> subprocess.Popen[str]:
        environment = dict(os.environ)
        if self.api_key:
            environment[API_KEY_ENV] = self.api_key
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  close() closes it
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "quicksilver.bench.client"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                encoding="utf-8",
                env=environment,
            )
        except OSError as error:
            raise EngineError(f"The load client could not be started: {error}.") from error

    def _last_words(self) -> str:
        """Say how a process ended that gave no summary: the last line of its stderr, or its exit code."""
        if self._process is None or self._complaints is None:  # pragma: no cover - it was started
            return "it never started"
        code = self._process.wait()
        self._complaints.seek(0)
        return next(reversed(self._complaints.read().strip().splitlines()), f"it ended with code {code}")


def _end(process: subprocess.Popen[str]) -> None:
    """Make sure that the client has ended, and close its pipes."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            with contextlib.suppress(BrokenPipeError):  # what it didn't read any more
                pipe.close()
