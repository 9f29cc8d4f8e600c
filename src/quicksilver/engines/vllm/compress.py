"""Round a model's weights with llm-compressor; the Python of the environment llmcompressor runs this file, without Quicksilver.

A JSON job comes on stdin: `source` and `target` folders, a `recipe` in llm-compressor's own words, the token ids of
`calibration` prompts, and `most_tokens` of each that are read where there is no accelerator, or null. JSON lines go out
on stdout: `say` now and then, and at the end `memory_mb`, its peak resident memory, or an `error` if it failed, or
`memory` if that was short.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SAY_EVERY_S = 2.0
NO_MEMORY = re.compile(r"can't allocate memory|cannot allocate memory|out of memory", re.IGNORECASE)


def main() -> int:
    """Run the job on stdin; the libraries' own chatter on stdout is sent to stderr."""
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(**message: str | float) -> None:
        out.write(json.dumps(message) + "\n")

    try:
        compress(job, lambda words: tell(say=words))
        tell(
            memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1e-6 if sys.platform == "darwin" else 1.024e-3)
        )
    except Exception as error:
        words = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
            tell(memory=words)
        else:
            tell(error=f"{type(error).__name__}: {words.rstrip('.')}" if words else type(error).__name__)
        raise
    return 0


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def compress(job: dict[str, Any], say: Callable[[str], None]) -> None:
    """Load the model, apply the recipe, and write it in the format compressed-tensors."""
    say("loading the model")
    import torch
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job["source"], dtype="auto", local_files_only=True)
    kept = model.dtype
    if not torch.accelerator.is_available():
        _pin_nothing()
        model.float()  # in halves it took twice as long here
    most = None if torch.accelerator.is_available() else job["most_tokens"]
    rows = [torch.tensor([ids[:most]]) for ids in job["calibration"]]
    prompts = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    progress = Progress(sum(type(layer).__name__ in _blocks(model) for layer in model.modules()), say)
    for layer in model.modules():
        if type(layer).__name__ in _blocks(model):
            layer.register_forward_pre_hook(progress.reached)
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(job["source"], local_files_only=True),
        recipe=json.dumps(job["recipe"]),
        # Batches of one: prompts are of different lengths, and padding would be calibrated on.
        dataset=DataLoader(prompts, batch_size=None) if prompts else None,
        # GPTQ alone mends in a layer what those before it lost; for the others a second pass through each layer tells nothing.
        propagate_error="GPTQModifier" in str(job["recipe"]),
    )
    say("writing it")
    model.to(kept)
    model.save_pretrained(job["target"], save_compressed=True)
    (Path(job["target"]) / "recipe.yaml").unlink(missing_ok=True)  # the artefact's own says it


def _pin_nothing() -> None:
    """Keep llm-compressor's cache of activations from pinning memory, which is for copies to a device that isn't there.

    AWQ asks for it on every machine (0.14), and torch refuses it without an accelerator.
    """
    from llmcompressor.pipelines.cache import IntermediatesCache

    def pin_memory(*_: object) -> None:
        pass

    IntermediatesCache.pin_memory = pin_memory


def _blocks(model: Any) -> Sequence[str]:
    """Return the names of the classes of the model's layers, which are calibrated one after the other."""
    return tuple(getattr(model, "_no_split_modules", None) or ())


class Progress:
    """Says which layer is worked on, and how long the rest will take."""

    def __init__(self, layers: int, say: Callable[[str], None]) -> None:
        self._layers, self._say = layers, say
        self._seen: set[int] = set()
        self._begun = self._said = time.monotonic()

    def reached(self, layer: object, _: object) -> None:
        """Note that a layer's forward pass begins: the first time it is new."""
        if id(layer) in self._seen:
            return
        done = len(self._seen)
        self._seen.add(id(layer))
        now = time.monotonic()
        if done == 0:
            self._begun = now
        elif now - self._said >= SAY_EVERY_S:
            self._said = now
            left_s = (now - self._begun) / done * (self._layers - done)
            self._say(f"layer {done + 1} of {self._layers}, about {left_s:.0f} s left")


if __name__ == "__main__":
    sys.exit(main())
