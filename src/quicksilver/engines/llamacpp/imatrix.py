"""The importance of each input of a matrix: the mean square of what the workload's prompts send there.

llama.cpp's imatrix (tools/imatrix) without its own pass: torch runs the model, whose float weights are those of the GGUF.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quicksilver.errors import BuildError
from quicksilver.sources import gguf

if TYPE_CHECKING:
    import numpy as np

LONGEST = 512
"""Tokens of a prompt that are read."""


def measure(source: Path, target: Path, prompts: Sequence[Sequence[int]], say: Callable[[str], None]) -> None:
    """Run prompts (token ids) through the model in a GGUF, and write the importances by the GGUF's names as .npz.

    Raises BuildError if nothing was read.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        gguf.convert(source, Path(folder))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    kind = model.config.model_type
    _, block = gguf.tensor_names(kind)
    ours = {theirs: name for name, theirs in block.items()}
    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).to(torch.float32)
            sums[name] = sums.get(name, 0) + rows.square().sum(0)
            counts[name] = counts.get(name, 0) + len(rows)

        return hook

    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path.startswith("model.layers."):
            _, _, layer, part = path.split(".", 3)
            if (name := ours.get(f"{part}.weight")) is not None:
                module.register_forward_pre_hook(watch(f"blk.{layer}.{name}"))
    with torch.inference_mode():
        for number, prompt in enumerate(prompts, start=1):
            if prompt:
                model(input_ids=torch.tensor([list(prompt[:LONGEST])]), use_cache=False, logits_to_keep=1)
            if number % 8 == 0 or number == len(prompts):
                say(f"{number} of {len(prompts)} prompts")
    if not sums:
        raise BuildError("The importance of the weights could not be measured: the prompts sent nothing through them.")
    found: dict[str, np.ndarray] = {name: (total / counts[name]).numpy() for name, total in sums.items()}
    np.savez(target, allow_pickle=False, **found)
