"""FP8: weights and activations in 8-bit floats (E4M3), for GPUs that multiply them."""

from __future__ import annotations

from quicksilver.techniques._weights import Weights


class Fp8(Weights):
    """Round weights to 8-bit floats, one scale a row, and activations while serving, one scale a token.

    NVIDIA's Ada, Hopper and Blackwell and AMD's MI300 multiply them; on a CPU vLLM does it through torch.
    """

    gives = frozenset()
    formats = frozenset({"hf"})
