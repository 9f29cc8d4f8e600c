"""Tasks of lm-eval, run by itself against an endpoint from an environment of its own; its scores of samples are paired by the gate."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicksilver import environments
from quicksilver.errors import BadInputError, EngineError, unknown
from quicksilver.nouns.engine import Endpoint

ENVIRONMENT = "lmeval"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""A task's data is where it is; whoever wants it downloaded sets these to 0."""


SAMPLES, RESULTS = "samples_*.jsonl", "results_*.json"
WRITTEN = re.compile(r"_\d{4}-\d{2}-\d{2}T.*")
"""When a file of samples was written: what is before it names the task."""


@dataclass(frozen=True, slots=True)
class Harness:
    """lm-eval, and the task that it is to run."""

    python: Path
    task: str
    metric: str | None
    """The metric to pair samples by; the task's first if it is None."""
    include: Path | None
    limit: int | None
    streams: int

    @property
    def name(self) -> str:
        """What reports call the task."""
        return f"lm-eval {self.task}" + (f", {self.metric}" if self.metric else "")

    def run(self, endpoint: Endpoint, tokenizer: Path | str, out: Path) -> dict[str, float]:
        """Run the task against an endpoint; return the score of each sample, 0 to 1, by its id.

        `out` is a folder for lm-eval's own results and its log. Raises EngineError if lm-eval fails, BadInputError for a metric that
        the task doesn't have, or that has no score of single samples.
        """
        out.mkdir(parents=True, exist_ok=True)
        for stale in [*out.rglob(SAMPLES), *out.rglob(RESULTS)]:
            stale.unlink()  # of an earlier comparison
        model = {
            "base_url": f"{endpoint.url.rstrip('/')}/completions",
            "model": endpoint.model,
            "tokenizer": str(tokenizer),
            "tokenizer_backend": "huggingface",
            "num_concurrent": self.streams,
        }
        odd = next((value for value in model.values() if "," in str(value)), None)
        if odd is not None:
            raise BadInputError(f"lm-eval can't be told of {odd!r}: there is a comma in it.")
        command: list[str | Path] = [self.python, "-m", "lm_eval", "run", "--model", "local-completions"]
        command += ["--model_args", ",".join(f"{name}={value}" for name, value in model.items())]
        command += ["--tasks", self.task, "--log_samples", "--output_path", str(out)]
        command += ["--include_path", str(self.include)] if self.include is not None else []
        command += ["--limit", str(self.limit)] if self.limit is not None else []
        keys = {"OPENAI_API_KEY": endpoint.api_key or "none"}
        log = out / "lm-eval.log"
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=OFFLINE | dict(os.environ) | keys, check=False
            )  # fmt: skip
        if done.returncode != 0:
            raise EngineError(f"lm-eval failed on the task {self.task}: {_last_line(log)}; its log is {log}.")
        return self._scores(out)

    def _scores(self, out: Path) -> dict[str, float]:
        files = sorted(out.rglob(SAMPLES))
        samples = [(file, json.loads(line)) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        if not samples:
            raise EngineError(f"lm-eval left no samples of the task {self.task} in {out}.")
        first = samples[0][1]
        known: Sequence[str] = first.get("metrics") or ()
        metric = self.metric or next(iter(known), "")
        if metric not in known:
            raise unknown(f"metric of lm-eval's task {self.task}", metric, known)
        self._check_direction(out, metric)
        scores: dict[str, float] = {}
        for file, sample in samples:
            if sample.get("filter") == first.get("filter"):
                # A document's hash is in its id, so that only what is the same is paired.
                name = f"{WRITTEN.sub('', file.name)} {sample['doc_id']} {str(sample.get('doc_hash', ''))[:12]}"
                scores[name] = self._score(sample, metric, known)
        return scores

    def _score(self, sample: Mapping[str, Any], metric: str, known: Sequence[str]) -> float:
        try:
            value = float(sample[metric])
        except (KeyError, TypeError, ValueError):
            value = math.nan
        if not 0 <= value <= 1:
            raise BadInputError(
                f"{metric} of lm-eval's task {self.task} is no score of single samples from 0 to 1; name another metric as "
                f"{self.task}:METRIC (it has {', '.join(known)})."
            )
        return value

    def _check_direction(self, out: Path, metric: str) -> None:
        """Raise BadInputError for a metric that is better the lower it is."""
        for file in out.rglob(RESULTS):
            for directions in json.loads(file.read_text(encoding="utf-8")).get("higher_is_better", {}).values():
                if directions.get(metric) is False:
                    raise BadInputError(
                        f"{metric} of lm-eval's task {self.task} is better the lower it is, and can't be judged."
                    )


def harness(spec: str, *, include: Path | None, limit: int | None, streams: int) -> Harness:
    """Return lm-eval with a task, TASK or TASK:METRIC. Raises EngineError if it isn't installed, BadInputError."""
    task, _, metric = spec.partition(":")
    if not task or "," in task:
        raise BadInputError(f"{spec!r} is not a task of lm-eval; write it as TASK or TASK:METRIC.")
    if include is not None and not include.is_dir():
        raise BadInputError(f"There is no folder {include} to take lm-eval's tasks from.")
    python = environments.python(ENVIRONMENT, "lm-eval")
    return Harness(python, task, metric or None, include, limit, streams)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].rstrip(".")[:300] if lines else "it said nothing"
