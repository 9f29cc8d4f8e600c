"""OpenVINO IR: export, compress, quantise. Runs in the build worker, which has torch and NNCF."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from quicksilver.errors import BuildError
from quicksilver.nouns.artifact import MANIFEST
from quicksilver.nouns.technique import Step
from quicksilver.sources.gguf_grid import FILE as GRID_FILE
from quicksilver.sources.links import link, link_all

MODEL = "openvino_model.xml"
WEIGHTS = "openvino_model.bin"
SHORT_PROMPT = 256
SMALLEST_MATRIX = 32
"""Rows and columns of a weight; what is smaller is no weight."""
CARRIED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def export(source: Path, target: Path, precision: str) -> None:
    """Export a Hugging Face directory to an IR with its tokenizer; float weights as `precision` says."""
    import openvino as ov
    import torch
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    # By this name the exporter takes the precision; by the newer one, dtype, it keeps what config.json says.
    model = OVModelForCausalLM.from_pretrained(
        source, export=True, compile=False, load_in_8bit=False, use_cache=True, torch_dtype=_dtype(torch, precision)
    )
    if precision == "bf16":
        _to_bf16(model.model)
    ov.save_model(model.model, target / MODEL, compress_to_fp16=precision == "fp16")
    encode, decode = convert_tokenizer(tokenizer, with_detokenizer=True)
    ov.save_model(encode, target / "openvino_tokenizer.xml")
    ov.save_model(decode, target / "openvino_detokenizer.xml")
    for name in CARRIED_FILES:
        if (source / name).exists():
            # The folder may be the user's own: what is stored mustn't change with it.
            shutil.copyfile(source / name, target / name)
    if (source / GRID_FILE).exists():
        link(source / GRID_FILE, target / GRID_FILE)


def _dtype(torch: Any, precision: str) -> Any:
    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def _to_bf16(model: Any) -> None:
    """Keep in bfloat16 what the exporter left in float32: the stacked matrices of experts."""
    import openvino as ov
    import torch
    from openvino import opset13 as ops

    for old in model.get_ordered_ops():
        if old.get_type_name() != "Constant" or old.get_element_type() != ov.Type.f32:
            continue
        if len(old.shape) < 2 or min(old.shape[-2:]) < SMALLEST_MATRIX:
            continue  # such as the frequencies of rotary positions, which have to stay exact
        readers = list(old.output(0).get_target_inputs())
        bits = torch.from_numpy(old.data.copy()).to(torch.bfloat16).view(torch.int16).numpy()
        half = ov.Tensor(ov.Type.bf16, ov.Shape(list(old.shape)))  # which owns its memory
        half.data.view(np.int16)[...] = bits
        new = ov.op.Constant(half)
        new.friendly_name = old.friendly_name
        wide = ops.convert(new, "f32")
        for reader in readers:
            reader.replace_source_output(wide.output(0))


def read(folder: Path) -> Any:
    """Read the model graph of a folder."""
    import openvino as ov

    return ov.Core().read_model(folder / MODEL)


def save(model: Any, step: Step) -> None:
    """Write a changed graph to the step's target, with the other files of its source."""
    import openvino as ov

    link_all(step.source, step.target, but=(MODEL, WEIGHTS, MANIFEST))
    ov.save_model(model, step.target / MODEL, compress_to_fp16=False)


def compress(
    step: Step,
    *,
    mode: str,
    group_size: int | None = None,
    ratio: float | None = None,
    awq: bool = False,
    scale_estimation: bool = False,
    gptq: bool = False,
    sensitivity: str | None = None,
) -> None:
    """Compress weights with NNCF; the data-aware ways read the step's calibration prompts."""
    import nncf

    model = read(step.source)
    options: dict[str, Any] = {"mode": nncf.CompressWeightsMode(mode)}
    if group_size is not None:
        options |= {"group_size": group_size, "ratio": 1.0 if ratio is None else ratio}
    if awq or scale_estimation or gptq or sensitivity:
        dataset = calibration(step)
        options |= {"dataset": dataset, "subset_size": dataset.get_length()}
        options |= {"awq": awq, "scale_estimation": scale_estimation, "gptq": gptq}
        if sensitivity:
            options["sensitivity_metric"] = nncf.SensitivityMetric(sensitivity)
    step.say("compressing")
    save(nncf.compress_weights(model, **options), step)


def quantize_activations(step: Step, *, alpha: float) -> None:
    """Quantise weights and activations to INT8 with SmoothQuant, calibrated on the step's prompts."""
    import nncf

    model = read(step.source)
    # NNCF keeps every layer's activations of a prompt at once: 5 GB for the 135M and prompts of 1,000 tokens.
    dataset = calibration(step, most_tokens=SHORT_PROMPT)
    step.say("calibrating")
    quantized = nncf.quantize(
        model,
        dataset,
        subset_size=dataset.get_length(),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.PERFORMANCE,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=alpha)
        ),
    )
    save(quantized, step)


def calibration(step: Step, *, most_tokens: int | None = None) -> Any:
    """Return the calibration prompts as an NNCF dataset of model inputs, cut to `most_tokens`; raises BuildError without any."""
    import nncf

    if not step.calibration:
        raise BuildError("This technique calibrates on data, and the workload has no calibration prompts.")

    def inputs() -> Iterator[dict[str, Any]]:
        for ids in step.calibration:
            row = np.asarray([ids[:most_tokens]], dtype=np.int64)
            yield {
                "input_ids": row,
                "attention_mask": np.ones_like(row),
                "position_ids": np.arange(row.shape[1], dtype=np.int64)[None],
                "beam_idx": np.zeros(1, dtype=np.int32),
            }

    return nncf.Dataset(list(inputs()))


def add_draft(step: Step, draft: Path, precision: str) -> None:
    """Put a draft model, exported and rounded as `precision` says, beside the target's weights."""
    from quicksilver.techniques.draft import FOLDER

    link_all(step.source, step.target, but=(MANIFEST,))
    folder = step.target / FOLDER
    folder.mkdir()
    if precision == "fp16":
        export(draft, folder, "fp16")
        return
    exported = step.target / "exported"
    exported.mkdir()
    export(draft, exported, "fp16")
    compress(Step(exported, folder, step.format, step.facts), mode="int8_asym")
    shutil.rmtree(exported)
