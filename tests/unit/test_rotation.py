"""Rotation: other numbers, the same function, and no channel that stands out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.build import plan as planning
from quicksilver.errors import BuildError, IllegalRecipeError
from quicksilver.sources import models
from quicksilver.techniques import _rotation as rotation
from quicksilver.techniques import make
from quicksilver.testing.tiny import make_tiny_model

IDS = [[1, 17, 40, 5, 5, 100, 33, 260, 12, 90]]


@given(st.integers(1, 96), st.integers(0, 2**32))
def test_a_rotation_is_orthogonal_and_the_same_each_time(size: int, seed: int) -> None:
    matrix = rotation.orthogonal(size, seed)
    assert np.allclose(matrix @ matrix.T, np.eye(size), atol=1e-10)
    assert np.array_equal(matrix, rotation.orthogonal(size, seed))


@given(st.integers(1, 96), st.integers(0, 2**32))
def test_no_entry_stands_out(size: int, seed: int) -> None:
    most = 1 if size & (size - 1) == 0 else np.sqrt(2)
    assert np.abs(rotation.orthogonal(size, seed)).max() <= most / np.sqrt(size) + 1e-12


def _stream(folder: Path) -> tuple[Any, Any]:
    """Return logits and the hidden states between layers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        out = model(torch.tensor(IDS), output_hidden_states=True)
    return out.logits.numpy(), [state.numpy() for state in out.hidden_states[:-1]]


def _whole(folder: Path) -> None:
    """Keep a model's weights in float32, so that only the arithmetic tells it from its rotated self."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file({name: tensor.float() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", ["llama", "mistral", "mixtral"])
def test_a_rotated_model_says_the_same(architecture: str, tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path / "tiny", architecture)  # type: ignore[arg-type]
    _whole(source)
    (tmp_path / "rotated").mkdir()
    rotation.rotate(source, tmp_path / "rotated", seed=5)
    before, states = _stream(source)
    after, turned = _stream(tmp_path / "rotated")
    assert np.abs(after - before).max() < 1e-4 * np.abs(before).max()
    # It is another basis all the same.
    assert np.abs(turned[1] - states[1]).max() > 0.1 * np.abs(states[1]).max()
    assert models.resolve(str(tmp_path / "rotated")).facts.tied_embeddings is False


def test_biases_are_rotated_too(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    source = make_tiny_model(tmp_path / "tiny")
    _whole(source)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(
        json.dumps(config | {"attention_bias": True, "mlp_bias": True}), encoding="utf-8"
    )
    tensors = load_file(source / "model.safetensors")
    torch.manual_seed(0)
    biases = {
        name.replace(".weight", ".bias"): torch.randn(len(tensor))
        for name, tensor in tensors.items()
        if "_proj" in name
    }
    save_file(tensors | biases, source / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "rotated").mkdir()
    rotation.rotate(source, tmp_path / "rotated")
    (before, _), (after, _) = _stream(source), _stream(tmp_path / "rotated")
    assert np.abs(after - before).max() < 1e-4 * np.abs(before).max()


def test_an_outlying_channel_is_spread(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = make_tiny_model(tmp_path / "tiny")
    _whole(source)
    tensors = load_file(source / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 7] *= 50
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "rotated").mkdir()
    rotation.rotate(source, tmp_path / "rotated")

    def crest(folder: Path) -> float:
        state = _stream(folder)[1][0]
        return float(np.median(np.abs(state).max(-1) / np.sqrt(np.square(state).mean(-1))))

    assert crest(tmp_path / "rotated") < 0.5 * crest(source)


def test_large_models_are_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_model(tmp_path / "tiny")
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    rotation.rotate(source, tmp_path / "one")
    monkeypatch.setattr(rotation, "SHARD_BYTES", 20_000)
    rotation.rotate(source, tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert np.array_equal(_stream(tmp_path / "one")[0], _stream(tmp_path / "many")[0])
    shutil.rmtree(tmp_path / "one")
    (tmp_path / "one").mkdir()
    rotation.rotate(tmp_path / "many", tmp_path / "one")  # and read from them


def test_an_unknown_tensor_is_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = make_tiny_model(tmp_path / "tiny")
    tensors = load_file(source / "model.safetensors")
    save_file(
        tensors | {"model.layers.0.extra.weight": tensors["model.norm.weight"].clone()}, source / "model.safetensors"
    )
    (tmp_path / "rotated").mkdir()
    with pytest.raises(BuildError, match=r"doesn't know what to do with the tensor model\.layers\.0\.extra\.weight"):
        rotation.rotate(source, tmp_path / "rotated")


def test_it_comes_before_the_export_and_not_with_a_kept_grid(tmp_path: Path) -> None:
    stack = [make("int8"), make("rotate")]
    assert [t.name() for t in planning.order(stack)] == ["rotate", "as-is", "int8"]
    with pytest.raises(IllegalRecipeError, match="gguf-grid can't be stacked on rotate"):
        planning.order([make("rotate"), make("gguf-grid")], planning.START | {"gguf grid"})
    facts = models.resolve(str(make_tiny_model(tmp_path / "tiny"))).facts
    with pytest.raises(IllegalRecipeError, match="rotate doesn't know the architecture gemma3"):
        make("rotate").check(facts.model_copy(update={"architecture": "gemma3"}))
