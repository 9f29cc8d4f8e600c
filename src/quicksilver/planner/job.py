"""Jobs: what a machine needs for quantising a model or training a draft for it, how long that takes, and which instance does it for least.

Everything is arithmetic on the model's shape and the makers' figures: predicted, not measured. What it is held against are the times that the
GPTQ paper states (arXiv 2210.17323, table 3: OPT-175B in 4.2 h, OPT-66B in 1.6 h, on one A100 80 GB).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from pydantic import Field

from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.base import Noun
from quicksilver.nouns.instance import Accelerator, Commitment, Instance, Rate
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import MemoryLine
from quicksilver.planner.fit import CONTEXT_GB, USED_SHARE

Job = Literal["awq", "gptq", "w8a8", "fp8", "train-draft"]
JOBS: tuple[str, ...] = get_args(Job)
ABOUT: dict[str, str] = {
    "awq": "AWQ to 4 bits, layer by layer on one device",
    "gptq": "GPTQ to 4 bits, layer by layer on one device",
    "w8a8": "SmoothQuant to 8 bits with 8-bit activations, layer by layer on one device",
    "fp8": "rounding to FP8, one matrix at a time, without calibration",
    "train-draft": "training an EAGLE-3 head for speculation on all devices",
}
SAMPLES: dict[str, tuple[int, int]] = {
    "awq": (256, 512),
    "gptq": (512, 2048),
    "w8a8": (512, 2048),
    "fp8": (0, 0),
    "train-draft": (68_000, 1024),
}
"""Prompts and tokens of each: llm-compressor's examples for quantising, and for training as many conversations as ShareGPT has."""
BF16_USED, FP32_USED = 0.4, 0.5
"""Shares of the devices' dense peaks that forward passes and GPTQ's products are counted with; assumed."""
DISK_GB_S = 0.5
"""Reading and writing weights; assumed, as a provisioned network disk has."""
GRID, SMOOTHED = 20, 1.3
"""AWQ tries 20 scales, each with forward passes of attention, of the feed-forward network and once more of its last matrix."""
EPOCHS, UNROLLED = 2, 7
"""Of training a draft: passes over the data, and EAGLE-3's steps of training-time test."""
DRAFT_VOCAB = 32_000
"""Tokens that an EAGLE-3 head chooses from."""
TRAINED_BYTES = 16
"""Of a trained parameter: weight and gradient in 16 bits, its 32-bit copy and Adam's two moments (arXiv 1910.02054)."""
LAYER_BYTES = 34
"""That backward needs of each token and hidden element of a layer, without attention's matrix (arXiv 2205.05198)."""
SHARD_GB = 5.0
"""Of a file of safetensors, as transformers writes them by default."""
HOST_GB = 4.0
"""Of the machine's memory: libraries and the system."""
NEURON = ("Inferentia2", "Trainium")


class TimeLine(Noun):
    """One line of the arithmetic of time."""

    what: str
    hours: float
    how: str


class Sized(Noun):
    """A job on one instance: whether it fits, how long it takes and what that costs; predicted."""

    source: Literal["predicted"] = "predicted"
    instance: str
    device: list[MemoryLine] = Field(description="of the fullest device")
    device_gb: float = Field(description="that may be used of one device")
    host: list[MemoryLine] = Field(description="of the machine's memory")
    host_gb: float
    time: list[TimeLine]
    commitment: Commitment = "on-demand"
    rate: Rate | None = None
    why_not: str = Field("", description="what is too small; empty if it fits")

    @property
    def hours(self) -> float:
        return sum(line.hours for line in self.time)

    @property
    def usd(self) -> float | None:
        """Dollars for the whole job; None without a price."""
        return self.hours * self.rate.usd_per_hour if self.rate else None


def size(
    facts: ModelFacts,
    job: str,
    instances: Iterable[Instance],
    *,
    samples: int | None = None,
    tokens: int | None = None,
    commitment: Commitment = "on-demand",
) -> list[Sized]:
    """Size a job on each instance that has an accelerator: what fits first, the cheapest before others, those without a price last.

    `samples` are the prompts that calibrate or train, `tokens` the length of each. Raises BadInputError for an unknown job and for numbers
    that make no sense.
    """
    if job not in JOBS:
        raise unknown("job", job, JOBS)
    usual = SAMPLES[job]
    samples, tokens = usual[0] if samples is None else samples, usual[1] if tokens is None else tokens
    if job == "fp8" and (samples or tokens):
        raise BadInputError("fp8 rounds without calibration: it takes neither samples nor tokens.")
    if job != "fp8" and (samples < 1 or tokens < 1):
        raise BadInputError("A job needs at least 1 sample of at least 1 token.")
    if tokens > facts.max_positions:
        raise BadInputError(
            f"A sample of {tokens:,} tokens is longer than the {facts.max_positions:,} that the model takes."
        )
    found = [_sized(facts, job, one, (samples, tokens), commitment) for one in instances if one.accelerator is not None]
    return sorted(found, key=lambda s: (bool(s.why_not), s.usd is None, s.usd or s.hours, s.hours, s.instance))


def draft_parameters(facts: ModelFacts) -> int:
    """Return the trained parameters of an EAGLE-3 head: one layer that reads two states, the mixing of three, and its own output layer."""
    layer = (facts.parameters - facts.embedding_parameters) / facts.layers
    if facts.experts:
        layer = 2 * facts.hidden_size * (facts.heads + facts.kv_heads) * facts.head_dim
        layer += 3 * facts.hidden_size * facts.intermediate_size
    wider = facts.hidden_size * (facts.heads + 2 * facts.kv_heads) * facts.head_dim
    return int(layer + wider + 3 * facts.hidden_size**2 + DRAFT_VOCAB * facts.hidden_size)


def _sized(facts: ModelFacts, job: str, instance: Instance, prompts: tuple[int, int], commitment: Commitment) -> Sized:
    samples, tokens = prompts
    device = instance.accelerator
    assert device is not None
    if job == "train-draft":
        on_device, host, time = _training(facts, instance, device, samples, tokens)
    else:
        on_device, host, time = _quantising(facts, job, device, samples, tokens)
    device_gb, host_gb = USED_SHARE * device.memory_gb, USED_SHARE * instance.memory_gb
    needs, takes = sum(line.gb for line in on_device), sum(line.gb for line in host)
    why_not = ""
    if device.name in NEURON:
        why_not = f"{device.name} doesn't run CUDA, which the tools for this job need"
    elif needs > device_gb:
        why_not = f"a device needs {needs:,.1f} GB and has {device_gb:,.1f}"
    elif takes > host_gb:
        why_not = f"the machine needs {takes:,.0f} GB and has {host_gb:,.0f}"
    return Sized(
        instance=instance.name,
        device=on_device,
        device_gb=device_gb,
        host=host,
        host_gb=host_gb,
        time=time,
        commitment=commitment,
        rate=instance.rate(commitment),
        why_not=why_not,
    )


Arithmetic = tuple[list[MemoryLine], list[MemoryLine], list[TimeLine]]


def _quantising(facts: ModelFacts, job: str, device: Accelerator, samples: int, tokens: int) -> Arithmetic:
    weights = 2 * facts.parameters / 1e9
    body = facts.parameters - facts.embedding_parameters
    layer = body / facts.layers
    hidden, inner = facts.hidden_size, facts.intermediate_size
    host = [
        MemoryLine(what="model, 16 bits", gb=weights, how=f"{facts.parameters / 1e9:.4g} x 10^9 parameters x 2 bytes"),
        MemoryLine(
            what="one shard being read or written",
            gb=min(SHARD_GB, weights),
            how=f"safetensors of at most {SHARD_GB:g} GB",
        ),
        MemoryLine(what="system and libraries", gb=HOST_GB, how="about"),
    ]
    on_device = [MemoryLine(what="CUDA and libraries", gb=CONTEXT_GB, how="about")]
    time = [_moved("reading the model and writing the result", 1.5 * weights, DISK_GB_S, "disk, assumed")]
    if job == "fp8":
        largest = max(hidden * inner, facts.vocab_size * hidden)
        on_device.append(
            MemoryLine(what="the largest matrix, in 16 and 32 bits", gb=6 * largest / 1e9, how=f"{largest:,} x 6 bytes")
        )
        return on_device, host, [*time, _moved("over the bus and back", 1.5 * weights, _bus(device), "PCIe 4.0 x16")]
    calibration = samples * tokens
    states = 2 * 2 * calibration * hidden / 1e9
    host.append(
        MemoryLine(
            what="hidden states before and after a layer",
            gb=states,
            how=f"2 x {samples:,} x {tokens:,} tokens x {hidden:,} x 2 bytes",
        )
    )
    copies = 2 if job == "awq" else 1
    on_device += [
        MemoryLine(
            what="one layer, 16 bits" + (", and its copy to compare with" if copies == 2 else ""),
            gb=2 * copies * layer / 1e9,
            how=f"{layer / 1e9:.4g} x 10^9 parameters x 2 bytes" + (" x 2" if copies == 2 else ""),
        ),
        MemoryLine(
            what="activations of a prompt",
            gb=4 * facts.forward_elements(tokens) / 1e9,
            how=f"{tokens:,} tokens x (4 x {hidden:,} + 3 x {inner:,}) x 4 bytes",
        ),
    ]
    passes = 2.0 if job != "awq" else 2.0 + GRID * SMOOTHED
    words = "2 passes" if job != "awq" else f"(2 + {GRID} scales x {SMOOTHED}) passes"
    time.append(_moved("layers onto the device and back", 2 * weights, _bus(device), "PCIe 4.0 x16"))
    time.append(
        _computed(
            "forward passes",
            2 * body * calibration * passes,
            device,
            "bf16",
            f"2 x {body / 1e9:.4g} x 10^9 parameters x {calibration:,} tokens x {words}",
        )
    )
    if job == "w8a8":
        return on_device, host, time
    if job == "awq":
        seen = 2 * calibration * inner / 1e9
        on_device.append(
            MemoryLine(
                what="what goes into the layer's widest matrix",
                gb=seen,
                how=f"{calibration:,} tokens x {inner:,} x 2 bytes",
            )
        )
        return on_device, host, time
    # GPTQ (algorithm 1 of the paper): a product of the inputs with themselves for each matrix, and its inverse, in 32 bits.
    on_device.append(
        MemoryLine(
            what="the products of inputs with themselves, 32 bits",
            gb=4 * (2 * inner**2 + 6 * hidden**2) / 1e9,
            how=f"(2 x {inner:,}^2 + 6 x {hidden:,}^2) x 4 bytes, the inverse beside the widest",
        )
    )
    squares = 6 * hidden**2 + inner**2
    cubes = 6 * hidden**3 + inner**3
    flop = facts.layers * (2 * calibration * squares + 4 / 3 * cubes) * max(1, facts.experts)
    how = f"{facts.layers} layers x (2 x {calibration:,} tokens x {squares:.4g} + 4/3 x {cubes:.4g})"
    time.append(_computed("GPTQ's products and inverses", flop, device, "fp32", how))
    return on_device, host, time


def _training(facts: ModelFacts, instance: Instance, device: Accelerator, samples: int, tokens: int) -> Arithmetic:
    devices, trained = instance.accelerators, draft_parameters(facts)
    hidden, weights = facts.hidden_size, 2 * facts.parameters / 1e9
    whole = samples * tokens * EPOCHS
    on_device = [
        MemoryLine(
            what="target, 16 bits",
            gb=weights / devices,
            how=f"{facts.parameters / 1e9:.4g} x 10^9 parameters x 2 bytes"
            + (f" / {devices} devices" if devices > 1 else ""),
        ),
        MemoryLine(
            what="draft with gradients and Adam's state",
            gb=TRAINED_BYTES * trained / 1e9,
            how=f"{trained / 1e9:.4g} x 10^9 parameters x {TRAINED_BYTES} bytes",
        ),
        MemoryLine(
            what="what backward needs",
            gb=LAYER_BYTES * UNROLLED * tokens * hidden / 1e9,
            how=f"{LAYER_BYTES} bytes x {UNROLLED} steps x {tokens:,} tokens x {hidden:,}",
        ),
        MemoryLine(
            what="logits of target and draft, 32 bits",
            gb=4 * tokens * (facts.vocab_size + UNROLLED * DRAFT_VOCAB) / 1e9,
            how=f"{tokens:,} tokens x ({facts.vocab_size:,} + {UNROLLED} x {DRAFT_VOCAB:,}) x 4 bytes",
        ),
        MemoryLine(what="CUDA and libraries", gb=CONTEXT_GB, how="about"),
    ]
    host = [
        MemoryLine(
            what="shards being read",
            gb=min(SHARD_GB * devices, weights),
            how=f"one of at most {SHARD_GB:g} GB for each device",
        ),
        MemoryLine(what="system and libraries", gb=HOST_GB, how="about"),
    ]
    target = 2.0 * facts.parameters * whole
    draft = 6.0 * trained * UNROLLED * whole
    how = f"{samples:,} x {tokens:,} tokens x {EPOCHS} epochs x "
    time = [
        _moved("reading the target", weights, DISK_GB_S, "disk, assumed"),
        _computed(
            "target's forward passes",
            target,
            device,
            "bf16",
            how + f"2 x {facts.parameters / 1e9:.4g} x 10^9",
            devices=devices,
        ),
        _computed(
            "draft, forward and backward",
            draft,
            device,
            "bf16",
            how + f"6 x {trained / 1e9:.4g} x 10^9 x {UNROLLED} steps",
            devices=devices,
        ),
    ]
    return on_device, host, time


def _bus(device: Accelerator) -> float:
    return min(device.link_gb_s, 32.0)


def _moved(what: str, gb: float, gb_s: float, by: str) -> TimeLine:
    return TimeLine(what=what, hours=gb / gb_s / 3600, how=f"{gb:,.1f} GB / {gb_s:g} GB/s ({by})")


def _computed(what: str, flop: float, device: Accelerator, precision: str, how: str, *, devices: int = 1) -> TimeLine:
    """The time of so many floating-point operations at the share of the device's peak that is counted with."""
    share = BF16_USED if precision == "bf16" else FP32_USED
    rate = device.tflops[precision] * share * devices
    by = f"{share:g} x {device.tflops[precision]:g} TFLOP/s {precision}" + (
        f" x {devices} devices" if devices > 1 else ""
    )
    return TimeLine(what=what, hours=flop / (rate * 1e12) / 3600, how=f"{how} = {flop:.3g} FLOP / ({by})")
