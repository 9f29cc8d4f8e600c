"""A process that measures matrix products in bf16 with OpenVINO, and prints the rate as one JSON line; an empty one where the CPU has no bf16."""

from __future__ import annotations

import json
import time

SIDE = 2048
ROUNDS = 8


def bf16_gflop_s(side: int = SIDE, rounds: int = ROUNDS) -> float | None:
    """Return the rate of the product of two square matrices, GFLOP/s (2 x side^3 operations); None if this CPU has no bf16."""
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    core = ov.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    rng = np.random.default_rng(0)
    left = ops.parameter([side, side], np.float32)
    weights = ops.constant(rng.standard_normal((side, side), dtype=np.float32))
    model = ov.Model([ops.matmul(left, weights, transpose_a=False, transpose_b=True)], [left])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(rng.standard_normal((side, side), dtype=np.float32)))
    seconds = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        request.infer()
        seconds.append(time.perf_counter() - begun)
    return float(2 * side**3 / min(seconds[1:]) / 1e9)


if __name__ == "__main__":
    import openvino

    rate = bf16_gflop_s()
    version = openvino.__version__.split("-")[0]
    print(json.dumps({} if rate is None else {"bf16_gflop_s": round(rate, 2), "openvino": version}))
