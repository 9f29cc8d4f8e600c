"""Fit: the memory of one device, or of a machine without any, that a model takes in a layout under a load, line by line."""

from __future__ import annotations

import math

from quicksilver import engines
from quicksilver.errors import BadInputError
from quicksilver.nouns.instance import Accelerator, Instance
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import Layout, MemoryFit, MemoryLine, PlannedLoad

GROUP = 128
"""Weights that share a scale at int4 and int3."""
WEIGHT_BYTES = {
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5 + (2 + 0.5) / GROUP,
    "int3": 0.375 + (2 + 0.375) / GROUP,
}
"""Bytes of a weight in a linear layer. Groups carry a 16-bit scale and a zero point of as many bits as the weights (AutoAWQ's and
GPTQ's layout); a scale for each output channel, as fp8 and int8 have, comes to less than a thousandth and isn't counted."""
WEIGHT_WORDS = {
    "bf16": "2 bytes",
    "fp8": "1 byte",
    "int8": "1 byte",
    "int4": f"(4 + 20 / {GROUP}) / 8 bytes",
    "int3": f"(3 + 19 / {GROUP}) / 8 bytes",
}
CACHE_BYTES = {"bf16": 2, "fp8": 1, "int8": 1}
BLOCK = 16
"""Tokens of a block of vLLM's cache, the least that a stream takes."""
USED_SHARE = 0.9
"""vLLM's gpu_memory_utilization: the share of a device's memory that it may take (its default)."""
DRAFT_KV_PER_PARAMETER = 2 * 16 * 8 * 64 / 1_235_814_400
"""Cached elements of a token for each parameter of a draft: those of Llama 3.2 1B, which has many for its size."""
CONTEXT_GB = 0.58
"""CUDA's context and the libraries' workspaces: the 551 MiB that aiconfigurator 0.12 states as measured for its systems."""
GRAPHS_GB = 0.6
"""Captured CUDA graphs: about what vLLM's log states for an 8B model."""
NCCL_GB = {1: 0.0, 2: 0.359, 4: 0.411}
"""NCCL's buffers by devices (four or more are alike), from aiconfigurator 0.12's system files."""
CPU_ENGINE = "openvino"
"""Whose habits are counted on a machine without devices."""
BATCHED_TOKENS, BATCHED_TOKENS_LARGE = 2048, 8192
"""Tokens of one step: vLLM's defaults for its server, the second on devices of 70 GiB and more that are newer than the A100."""


def fit(facts: ModelFacts, layout: Layout, instance: Instance, load: PlannedLoad) -> MemoryFit:
    """Return what one device of an instance holds, and what it may hold; of a machine without devices, its memory.

    The load's streams are spread over as many copies of the model as there is room for; each stream is counted with its whole prompt and
    answer in the cache. Where pipeline stages differ, the fullest is counted. Raises BadInputError if the layout takes more devices than
    the instance has.
    """
    copies = replicas(layout, instance)
    streams = math.ceil(load.streams / copies)
    device = instance.accelerator
    lines = _weights(facts, layout)
    if device is None:
        lines.append(_laid_out(facts, sum(line.gb for line in lines), streams))
    lines += [_cache(facts, layout, load, streams), *_draft(layout, load, streams)]
    lines += [_activations(facts, layout, load, streams, device), *_runtime(layout, device)]
    memory = device.memory_gb if device else instance.memory_gb
    return MemoryFit(
        lines=tuple(lines),
        capacity_gb=USED_SHARE * memory,
        capacity_how=f"{USED_SHARE:g} x {memory:g} GB of {'one ' + device.name if device else instance.name}"
        + (" (vLLM's gpu_memory_utilization)" if device else " (the rest is the system's)"),
    )


def replicas(layout: Layout, instance: Instance) -> int:
    """Return how many copies of the model an instance holds in a layout. Raises BadInputError if it hasn't the devices for one."""
    if instance.accelerator is None:
        if layout.devices > 1:
            raise BadInputError(
                f"{instance.name} computes on its CPU: a model can't be divided over {layout.devices} devices there."
            )
        return 1
    if layout.devices > instance.accelerators:
        has = f"{instance.accelerators} {instance.accelerator.name}"
        raise BadInputError(f"{layout.label} takes {layout.devices} devices; {instance.name} has {has}.")
    return instance.accelerators // layout.devices


def batched_tokens(device: Accelerator) -> int:
    """Return the tokens that one step takes at most on a device: vLLM's default for its server."""
    large = device.memory_gb >= 70 * 2**30 / 1e9 and not device.name.startswith("A100")
    return BATCHED_TOKENS_LARGE if large else BATCHED_TOKENS


def _weights(facts: ModelFacts, layout: Layout) -> list[MemoryLine]:
    """The linear layers in their precision, and embeddings and output layer, which quantisers leave at 16 bits."""
    tensor, stages = layout.tensor_parallel, layout.pipeline_parallel
    body = facts.parameters - facts.embedding_parameters
    layers = math.ceil(facts.layers / stages)
    share = layers / facts.layers / tensor
    how = f"{body / 1e9:.4g} x 10^9 parameters of {facts.layers} layers x {WEIGHT_WORDS[layout.weights]}"
    how += f" x {layers} of {facts.layers} layers" if stages > 1 else ""
    how += f" / {tensor} (TP)" if tensor > 1 else ""
    lines = [
        MemoryLine(what=f"weights, {layout.weights}", gb=body * WEIGHT_BYTES[layout.weights] * share / 1e9, how=how)
    ]
    # The first stage has the embedding and the last the output layer; alone, a stage has both.
    matrices = 1 if facts.tied_embeddings or stages > 1 else 2
    table = facts.vocab_size * facts.hidden_size
    which = "embedding, also the output layer" if facts.tied_embeddings else "embedding and output layer"
    how = f"{matrices} x {facts.vocab_size:,} x {facts.hidden_size:,} x 2 bytes" + (
        f" / {tensor} (TP)" if tensor > 1 else ""
    )
    what = f"{which}, 16 bits" if stages == 1 else "embedding or output layer, 16 bits"
    lines.append(MemoryLine(what=what, gb=matrices * table * 2 / tensor / 1e9, how=how))
    return lines


def _laid_out(facts: ModelFacts, file_gb: float, streams: int) -> MemoryLine:
    """What a CPU's engine holds of the weights beside the file that it maps."""
    held = engines.find(CPU_ENGINE).weights_mb(facts, 1e3 * file_gb, streams) / 1e3
    return MemoryLine(
        what="weights, laid out for the CPU",
        gb=held - file_gb,
        how=f"OpenVINO maps the file of {file_gb:.3g} GB and holds {held / file_gb:.3g} x of it at {streams} streams (measured)",
    )


def _cache(facts: ModelFacts, layout: Layout, load: PlannedLoad, streams: int) -> MemoryLine:
    """Keys and values; a device holds whole heads, so that with fewer heads than devices each has one, some the same."""
    layers = math.ceil(facts.layers / layout.pipeline_parallel)
    heads = math.ceil(facts.kv_heads / layout.tensor_parallel)
    each = 2 * layers * heads * facts.head_dim * CACHE_BYTES[layout.cache]
    context = _context(layout, load)
    return MemoryLine(
        what=f"KV cache, {layout.cache}",
        gb=streams * context * each / 1e9,
        how=f"{streams} streams x {context:,} tokens x (2 x {layers} layers x {heads} of {facts.kv_heads} heads x {facts.head_dim} "
        f"x {CACHE_BYTES[layout.cache]} bytes = {each / 1e3:.4g} kB)",
    )


def _context(layout: Layout, load: PlannedLoad) -> int:
    """Tokens that a stream's blocks have room for at its end, with what is guessed ahead."""
    ahead = layout.guessing.tokens if layout.guessing else 0
    return math.ceil((load.input_tokens + load.output_tokens + ahead) / BLOCK) * BLOCK


def _draft(layout: Layout, load: PlannedLoad, streams: int) -> list[MemoryLine]:
    if layout.guessing is None or not layout.guessing.draft_parameters:
        return []
    parameters, tensor = layout.guessing.draft_parameters, layout.tensor_parallel
    split = f" / {tensor} (TP)" if tensor > 1 else ""
    context = _context(layout, load)
    elements = parameters * DRAFT_KV_PER_PARAMETER
    return [
        MemoryLine(
            what="draft, 16 bits",
            gb=2 * parameters / tensor / 1e9,
            how=f"{parameters / 1e9:.4g} x 10^9 parameters x 2 bytes{split}",
        ),
        MemoryLine(
            what="draft's KV cache",
            gb=streams * context * elements * 2 / tensor / 1e9,
            how=f"{streams} streams x {context:,} tokens x {elements:,.0f} elements x 2 bytes{split}; its shape isn't known: "
            "as many elements for its size as Llama 3.2 1B",
        ),
    ]


def _activations(
    facts: ModelFacts, layout: Layout, load: PlannedLoad, streams: int, device: Accelerator | None
) -> MemoryLine:
    """Of the largest step, which an engine sets memory aside for, and a row of logits in 32 bits for each stream, twice while sampling."""
    tensor = layout.tensor_parallel
    rows = streams * (1 + (layout.guessing.tokens if layout.guessing else 0))
    if device is None:
        tokens = min(BATCHED_TOKENS, streams * load.input_tokens)
        step = engines.find(CPU_ENGINE).step_mb(facts, tokens, rows, rounded=layout.weights != "bf16")
        how = f"a step of {tokens:,} tokens: two layers' elements in 32 bits, and {rows} rows of logits"
        return MemoryLine(what="activations", gb=step / 1e3, how=how)
    tokens = batched_tokens(device)
    logits = 2 * 4 * rows * facts.vocab_size
    split = (f" x {facts.experts_per_token}" if facts.experts_per_token > 1 else "") + (
        f" / {tensor}" if tensor > 1 else ""
    )
    return MemoryLine(
        what="activations",
        gb=(2 * facts.forward_elements(tokens, tensor) + logits) / 1e9,
        how=f"{tokens:,} tokens x (4 x {facts.hidden_size:,} + 3 x {facts.intermediate_size:,}{split}) x 2 bytes + {rows} rows of logits "
        f"x {facts.vocab_size:,} x 4 bytes x 2",
    )


def _runtime(layout: Layout, device: Accelerator | None) -> list[MemoryLine]:
    if device is None:
        held = engines.find(CPU_ENGINE).runtime_mb / 1e3
        return [MemoryLine(what="runtime", gb=held, how="interpreter, libraries and gateway, about")]
    lines = [
        MemoryLine(
            what="runtime",
            gb=CONTEXT_GB + GRAPHS_GB,
            how=f"context and libraries {CONTEXT_GB:g} + captured graphs {GRAPHS_GB:g}, about",
        )
    ]
    if layout.devices > 1:
        buffers = NCCL_GB[min(4, 1 << (layout.devices.bit_length() - 1))]
        lines.append(
            MemoryLine(what="communication", gb=buffers, how=f"NCCL's buffers between {layout.devices} devices, about")
        )
    return lines
