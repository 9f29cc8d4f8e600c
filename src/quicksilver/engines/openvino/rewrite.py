"""The graph of an artefact as it is compiled: with paged attention, and with logits of chosen tokens only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13
from openvino._offline_transformations import paged_attention_transformation

from quicksilver.errors import EngineError

MODEL = "openvino_model.xml"
WEIGHTS = "openvino_model.bin"
ROWS = "sampled_tokens_indices"
"""The input that says whose logits are wanted."""
REVISION = 1
"""Raised when the same files would become another graph than before."""


def read(core: ov.Core, folder: Path) -> ov.Model:
    """Read an artefact's graph and rewrite it."""
    model = core.read_model(folder / MODEL)
    paged_attention_transformation(model)
    _gather_rows(model)
    return model


def _gather_rows(model: ov.Model) -> None:
    """Let the caller choose the tokens whose logits are computed: of a prompt, only the last is of use."""
    last = model.outputs[0].get_node().input_value(0).get_node()
    while last.get_type_name() != "MatMul":
        if last.get_type_name() not in ("Convert", "Multiply", "Divide", "Tanh", "Add"):
            raise EngineError(f"This model's logits come from {last.get_type_name()}, which isn't understood.")
        last = last.input_value(0).get_node()
    rows = opset13.parameter([-1], ov.Type.i64, name=ROWS)
    rows.output(0).get_tensor().set_names({ROWS})
    hidden = last.input_value(0)
    # Tokens come first, (tokens, 1, width).
    gathered = opset13.gather(hidden, rows, opset13.constant(0, dtype=np.int64))
    last.input(0).replace_source_output(gathered.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()
