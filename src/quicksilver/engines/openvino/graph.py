"""A model's graph with paged attention: compiled for this CPU, with its KV cache, and run one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from quicksilver.engines.openvino.compiled import open_graph
from quicksilver.engines.openvino.lookup import SCRATCH_TOKENS
from quicksilver.engines.openvino.rewrite import ROWS
from quicksilver.errors import EngineError


@dataclass(slots=True)
class Work:
    """What one step does for one sequence."""

    tokens: list[int]
    """Those to compute, at least one."""
    past: int
    """Tokens whose keys and values are in the cache already."""
    blocks: list[int]
    """The sequence's blocks of the cache, with room for past and new tokens."""
    rows: int
    """The last tokens whose logits are wanted."""


class AbortedError(Exception):
    """A step was given up before its end."""


class Graph:
    """One model, one KV cache. `cache_bytes` says how large, given the bytes and the tokens of a block."""

    def __init__(
        self, folder: Path, properties: dict[str, Any], cache_bytes: Callable[[int, int], int], *, keep: bool = False
    ) -> None:
        self._compiled = open_graph(folder, properties, keep=keep)
        self._request = self._compiled.create_infer_request()
        self._aborted = False
        caches = [port for port in self._compiled.inputs if "_cache." in port.get_any_name()]
        shapes = [[side.get_length() for side in list(port.get_partial_shape())[1:]] for port in caches]
        # Rounded keys have rows for their scales beside those of the tokens; rounded values keep them in each row.
        self.block_tokens: int = min(shape[1] for shape in shapes)
        """Tokens of a block."""
        self.block_bytes = sum(
            int(np.prod(shape)) * port.get_element_type().bitwidth // 8
            for shape, port in zip(shapes, caches, strict=True)
        )
        """Bytes of a block in all layers."""
        size = cache_bytes(self.block_bytes, self.block_tokens)
        self.blocks = size // self.block_bytes
        if self.blocks < 1:
            raise EngineError(
                f"A KV cache of {size / 1e9:g} GB holds no block: one of {self.block_tokens} tokens takes "
                f"{self.block_bytes / 1e6:.1f} MB."
            )
        scratch = range(self.blocks, self.blocks + -(-SCRATCH_TOKENS // self.block_tokens))
        self._scratch = list(scratch)
        self._caches = [port.get_any_name() for port in caches]
        for shape, port in zip(shapes, caches, strict=True):
            # Not filled: the system gives memory to blocks as they are first written.
            self._request.set_tensor(
                port.get_any_name(), ov.Tensor(port.get_element_type(), ov.Shape([self.blocks + len(scratch), *shape]))
            )

    def abort(self) -> None:
        """Give up the step that is running, or else the next one; may be called from any thread."""
        self._aborted = True
        self._request.cancel()

    def warm(self) -> None:
        """Compute a token that nobody asked for: in the first step of its life the engine lays out the weights anew."""
        self.run([Work([0], 0, self._scratch, 1)])

    def run(self, work: Sequence[Work], padding: int = 0) -> NDArray[np.float32]:
        """Compute a step and return the logits that were asked for, (rows, vocabulary). They hold until the next step.

        `padding` tokens, up to SCRATCH_TOKENS, are computed besides and dropped: a step of the same shape as the one before
        costs a quarter less than one of a new shape, for which the engine prepares every node.

        Raises AbortedError if it was given up: what it had written is written again by the same step once more.
        """
        if padding > SCRATCH_TOKENS:
            raise ValueError(f"A step can't be padded with {padding} tokens: there is room for {SCRATCH_TOKENS}.")
        total = sum(piece.rows for piece in work)
        if padding:
            work = [*work, Work([0] * padding, 0, self._scratch, padding)]
        lengths = [len(piece.tokens) for piece in work]
        ends = np.cumsum(lengths)
        rows = [np.arange(end - piece.rows, end) for piece, end in zip(work, ends, strict=True) if piece.rows]
        wanted = np.concatenate(rows) if rows else ends[-1:] - 1
        used = [-(-(piece.past + length) // self.block_tokens) for piece, length in zip(work, lengths, strict=True)]
        inputs = {
            "input_ids": np.array([token for piece in work for token in piece.tokens], dtype=np.int64),
            "position_ids": np.concatenate(
                [np.arange(piece.past, piece.past + length) for piece, length in zip(work, lengths, strict=True)]
            ),
            "past_lens": np.array([piece.past for piece in work], dtype=np.int32),
            "subsequence_begins": np.array([0, *ends], dtype=np.int32),
            "block_indices": np.array(
                [block for piece, count in zip(work, used, strict=True) for block in piece.blocks[:count]],
                dtype=np.int32,
            ),
            "block_indices_begins": np.array([0, *np.cumsum(used)], dtype=np.int32),
            "max_context_len": np.array(
                max(piece.past + length for piece, length in zip(work, lengths, strict=True)), dtype=np.int32
            ),
            ROWS: wanted,
        }
        for name, values in inputs.items():
            self._request.set_tensor(name, ov.Tensor(values))
        try:
            if self._aborted:
                raise AbortedError
            self._request.infer()
        except RuntimeError as error:
            if self._aborted:
                raise AbortedError from error
            raise
        finally:
            self._aborted = False
        logits: NDArray[np.float32] = self._request.get_output_tensor(0).data
        return logits.reshape(len(wanted), -1)[:total]

    def copy(self, blocks: Sequence[int], to: Sequence[int]) -> None:
        """Copy the keys and values of some blocks to as many others."""
        for name in self._caches:
            tensor = self._request.get_tensor(name)
            # Four-bit values come as flat bytes.
            rows = tensor.data.reshape(tensor.shape[0], -1)
            rows[to] = rows[blocks]
