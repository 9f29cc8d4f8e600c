"""The grid of a GGUF: what is extracted is what its weights are, however odd a group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quicksilver.errors import BadInputError
from quicksilver.sources import gguf, gguf_grid
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.testing.tiny import make_tiny_gguf

GROUP = gguf_grid.GROUP


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path_factory.mktemp("home")))


def weights_of(levels: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """w = scale · (q - zero), as an engine computes it of a grid file's three tensors."""
    assert scale.dtype == zero.dtype == np.float16
    shifted = levels.reshape(*scale.shape, GROUP).astype(np.float32) - zero[..., None].astype(np.float32)
    return (scale[..., None].astype(np.float32) * shifted).reshape(levels.shape)


def unpacked(packed: np.ndarray) -> np.ndarray:
    """Two levels a byte, low half first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_grid_is_the_converted_models_weights(kind: str, tied: bool, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    source = make_tiny_gguf(tmp_path / "tiny.gguf", weights=kind, tied_embeddings=tied)
    gguf.convert(source, tmp_path / "hf")
    assert gguf_grid.has_grid(source)
    assert gguf_grid.extract(source, tmp_path / "hf") == 14
    converted = load_file(tmp_path / "hf" / "model.safetensors")
    grid = load_file(tmp_path / "hf" / gguf_grid.FILE)
    names = {name.rpartition(".")[0] for name in grid}
    assert names == {name for name in converted if name.endswith("_proj.weight")}
    for name in names:
        found = weights_of(*(unpacked(grid[f"{name}.q"]), grid[f"{name}.scale"], grid[f"{name}.zero"]))
        expected = converted[name].astype(np.float32)
        assert found.shape == expected.shape
        # A step is 1/15 or 1/16 of a group's range; both sides round to float16.
        assert np.abs(found - expected).max() < 0.004 * np.abs(expected).max()


def finite_halves(low: float, high: float) -> st.SearchStrategy[np.ndarray[Any, np.dtype[np.float16]]]:
    return arrays(np.float16, (2, 3), elements=st.floats(low, high, width=16))


@given(
    scale=finite_halves(-4, 4),
    codes=arrays(np.uint8, (2, 3, 16)),
)
def test_every_q4_0_group_is_kept_exactly(scale: np.ndarray, codes: np.ndarray) -> None:
    blocks = np.concatenate([scale[..., None].view(np.uint8), codes], axis=-1)
    found = weights_of(*gguf_grid._levels(blocks, "Q4_0"))
    np.testing.assert_array_equal(found, dequantised(blocks, "Q4_0"))


@given(
    scale=finite_halves(0, 4) | finite_halves(0, 2.0**-20),
    minimum=finite_halves(-64, 64) | finite_halves(-(2.0**-20), 2.0**-20),
    codes=arrays(np.uint8, (2, 3, 16)),
)
def test_every_q4_1_group_is_kept_within_float16(scale: np.ndarray, minimum: np.ndarray, codes: np.ndarray) -> None:
    parts = [scale[..., None].view(np.uint8), minimum[..., None].view(np.uint8), codes]
    blocks = np.concatenate(parts, axis=-1)
    found = weights_of(*gguf_grid._levels(blocks, "Q4_1"))
    offset = np.repeat(np.abs(minimum.astype(np.float32)), GROUP, axis=1)
    step = np.repeat(scale.astype(np.float32), GROUP, axis=1)
    # Rounding the offset to a float16 multiple of the scale: half of 2^-10 of it, or of a float16's least step.
    bound = offset * 2.0**-10 + step * 2.0**-18 + 2.0**-24
    assert np.isfinite(found).all()
    assert (np.abs(found - dequantised(blocks, "Q4_1")) <= bound).all()


def dequantised(blocks: np.ndarray, kind: str) -> np.ndarray:
    """What gguf's own library makes of the blocks."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    weights: np.ndarray = dequantize(blocks.reshape(blocks.shape[0], -1), GGMLQuantizationType[kind])
    return weights


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_a_gguf_in_other_formats_has_no_grid(kind: str, tmp_path: Path) -> None:
    assert not gguf_grid.has_grid(make_tiny_gguf(tmp_path / "tiny.gguf", weights=kind))


def test_other_architectures_have_no_grid_that_is_kept(tmp_path: Path) -> None:
    assert not gguf_grid.has_grid(make_tiny_gguf(tmp_path / "tiny.gguf", "qwen2", weights="Q4_1"))


def test_a_file_that_changes_is_looked_at_again(tmp_path: Path) -> None:
    import os

    source = make_tiny_gguf(tmp_path / "tiny.gguf", weights="Q4_1")
    os.utime(source, ns=(10**18, 10**18))
    assert gguf_grid.has_grid(source)
    assert gguf_grid.has_grid(source)
    make_tiny_gguf(source, weights="F16")
    assert not gguf_grid.has_grid(source)


def test_what_is_no_gguf_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"no")
    with pytest.raises(BadInputError, match="is not a GGUF file"):
        gguf_grid.has_grid(tmp_path / "a.gguf")
