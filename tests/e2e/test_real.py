"""The main job on the real model, once: SmolLM2-135M, real questions, a short race, and an OpenAI client on the winner."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from quicksilver import api
from quicksilver.nouns import Recipe
from quicksilver.techniques import make

MODEL = "smollm2-135m-instruct"


@pytest.mark.real
@pytest.mark.timeout(900)
def test_the_main_job(shared_home: Path, tmp_path: Path) -> None:
    assert shared_home.is_dir()
    recipe = Recipe(MODEL, [make("int8"), make({"name": "prompt-lookup", "tokens": 4})])
    found = api.optimize(
        MODEL,
        recipes=[recipe],
        prompts=30,
        streams=(1, 2),
        runs=tmp_path / "runs",
        max_quality_loss=3,
        budget_minutes=3,
    )
    result = found.result
    assert result.lengths is not None
    assert result.lengths.prompt_min >= 500
    assert result.lengths.prompt_max <= 1000
    assert "Q4_1" in result.model_remark
    as_is, ours = (c for c in result.candidates if c.status == "measured")
    assert as_is.baseline
    assert ours.score.quality is not None
    assert ours.score.quality.loss_percent is not None
    assert 0 < ours.score.quality.loss_percent.value < 3
    assert ours.score.disk_mb is not None
    assert as_is.score.disk_mb is not None
    assert ours.score.disk_mb < 0.6 * as_is.score.disk_mb
    assert all(s.errors == 0 and s.tokens_per_s.value > 0 for c in (as_is, ours) for s in c.score.speed)
    with found.serve() as endpoint:
        client = openai.OpenAI(base_url=endpoint.url, api_key="none")
        question: list[openai.types.chat.ChatCompletionMessageParam] = [
            {"role": "user", "content": "What is the boiling point of water?"}
        ]
        answer = client.chat.completions.create(model=MODEL, messages=question, temperature=0, max_tokens=40)
        assert "100°C" in (answer.choices[0].message.content or "")
        stream = client.chat.completions.create(
            model=MODEL, messages=question, temperature=0, max_tokens=40, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert text == answer.choices[0].message.content
