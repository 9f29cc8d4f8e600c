"""A GGUF's 4-bit grid in an OpenVINO graph."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quicksilver.engines.openvino import ir
from quicksilver.errors import BuildError
from quicksilver.nouns.technique import Step
from quicksilver.sources.gguf_grid import FILE

GROUP = 32


def keep(step: Step) -> None:
    """Replace the float weights that the grid file names by its integers, and round the rest to INT8.

    w = scale · (q - zero), with q in u4, scale and zero in f16: the pattern that the CPU plugin runs compressed.
    """
    import nncf
    import openvino as ov
    from openvino import opset13 as ops
    from safetensors.numpy import load_file

    tensors = load_file(step.source / FILE)
    names = sorted({name.rpartition(".")[0] for name in tensors})
    model = ir.read(step.source)
    constants = {
        _weight_name(op.friendly_name): op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"
    }
    replaced = 0
    for name in names:
        constant = constants.get(name)
        if constant is None:
            continue
        packed, scale, zero = (tensors[f"{name}.{part}"] for part in ("q", "scale", "zero"))
        levels = _unpack(packed)
        rows, groups = scale.shape
        q = ov.op.Constant(ov.Type.u4, ov.Shape([rows, groups, GROUP]), levels.reshape(-1))
        q.friendly_name = constant.friendly_name
        shifted = ops.subtract(ops.convert(q, "f16"), ops.constant(zero[..., None]))
        scaled = ops.multiply(shifted, ops.constant(scale[..., None]))
        flat = ops.reshape(scaled, ops.constant(np.asarray([rows, groups * GROUP], dtype=np.int64)), False)
        _replace(constant, ops.convert(flat, "f32"))
        replaced += 1
    if not replaced:
        raise BuildError("None of the GGUF's 4-bit tensors was found in the exported graph.")
    step.say(f"kept {replaced} of {len(names)} matrices on their grid")
    model.validate_nodes_and_infer_types()
    rest = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    ir.save(rest, step)
    (step.target / FILE).unlink(missing_ok=True)


def _weight_name(friendly: str) -> str:
    """Return a constant's name as safetensors has it; the exporter's depends on the precision it exports from."""
    stem = re.sub(r"(\.weight(_compressed)?|\._openvino_orig_weight)$", "", friendly.removeprefix("self."))
    return f"{stem}.weight"


def _replace(constant: Any, new: Any) -> None:
    """Feed whatever reads the float constant (through its Convert to f32, if there is one) from `new`."""
    for reader in list(constant.output(0).get_target_inputs()):
        node = reader.get_node()
        if node.get_type_name() == "Convert":
            for inner in list(node.output(0).get_target_inputs()):
                inner.replace_source_output(new.output(0))
        else:
            reader.replace_source_output(new.output(0))


def _unpack(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return one level a byte from two a byte, low half first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)
