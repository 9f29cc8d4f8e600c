"""Artefacts that need no engine, and what an export of each is read back to."""

from __future__ import annotations

import json
from pathlib import Path

from quicksilver.nouns import Artifact, Settings, Speculation
from quicksilver.testing.tiny import make_tiny_model

KEY = "0123456789abcdef"
MODEL = "SmolLM2-135M-Instruct"
PLAIN = Settings(max_streams=8, max_batched_tokens=512)
LOOKUP = Settings(
    max_streams=16,
    prefix_caching=True,
    speculation=Speculation(kind="prompt_lookup", tokens=5, max_ngram=4, adapts=False),
)


def write(folder: Path, engine: str, settings: Settings, *, model: str = MODEL, label: str = "int8") -> Artifact:
    """Write what stands in an artefact beside its weights, and open it."""
    folder.mkdir(parents=True, exist_ok=True)
    if engine == "vllm":  # its arguments depend on the model's shape and type
        make_tiny_model(folder)
    recipe = {"label": label, "name": model, "engine": engine, "serve": settings.model_dump(mode="json")}
    tools = {"quicksilver": "0.1.0", "engine": "vLLM 0.32.0 (CPU)" if engine == "vllm" else "1.2.3"}
    manifest = {"key": KEY, "files": {}, "target": {"engine": tools["engine"], "isa": "avx2"}, "tools": tools}
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Artifact.open(folder)
