"""The main job on the real model, once: SmolLM2-135M, real questions, a short race, and an OpenAI client on the winner."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from quicksilver import api
from quicksilver.bench.equivalence import near
from quicksilver.nouns import Endpoint, Recipe
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
        budget_minutes=1,
        quick=True,
    )
    result = found.result
    assert result.lengths is not None
    assert result.lengths.prompt_min >= 500
    assert result.lengths.prompt_max <= 1000
    assert "Q4_1" in result.model_remark
    # Which of the two is faster is the machine's to say: on some CPUs nothing wins.
    as_is = result.baseline
    assert as_is is not None
    (ours,) = (candidate for candidate in result.candidates if not candidate.baseline)
    assert found.best in (as_is, ours)
    assert ours.score.quality is not None
    assert ours.score.quality.loss_percent is not None
    assert 0 < ours.score.quality.loss_percent.value < 3
    assert ours.score.disk_mb is not None
    assert as_is.score.disk_mb is not None
    assert ours.score.disk_mb < 0.6 * as_is.score.disk_mb
    assert all(s.errors == 0 and s.tokens_per_s.value > 0 for c in (as_is, ours) for s in c.score.speed)
    assert found.report().is_file()
    built = str(api.build(recipe).path)
    with api.serving(built) as endpoint:
        whole, streamed = (_answer(endpoint, stream=stream) for stream in (False, True))
    assert "100°C" in "".join(token for token, _ in whole)
    # Guesses change the shapes of steps, and with them the last bits of logits: up to where the answers
    # part their tokens are about as likely, and there it has to be at a near tie of two tokens.
    pairs = list(zip(whole, streamed, strict=False))
    same = next((n for n, ((token, _), (other, _)) in enumerate(pairs) if token != other), len(pairs))
    assert same > 10
    shifts = [abs(one[token] - two[token]) for (token, one), (_, two) in pairs[:same]]
    assert sum(shifts) / same < 0.1
    if same == len(pairs):
        assert len(whole) == len(streamed)
    else:
        (token, likeliest), (other, _) = pairs[same]
        assert near(likeliest[token] - likeliest[other])
    made, _ = api.certify(built, prompts=4, max_tokens=40)
    assert made.verdict in ("identical", "near ties only")
    assert made.techniques[0].guessed


def _answer(endpoint: Endpoint, *, stream: bool) -> list[tuple[str, dict[str, float]]]:
    """Ask the README's question; return each token with the log-probabilities of the likeliest in its place."""
    client = openai.OpenAI(base_url=endpoint.url, api_key="none")
    answer = client.chat.completions.create(
        model=endpoint.model,
        messages=[{"role": "user", "content": "What is the boiling point of water?"}],
        temperature=0,
        max_tokens=40,
        logprobs=True,
        top_logprobs=5,
        stream=stream,
    )
    choices = [chunk.choices[0] for chunk in answer] if isinstance(answer, openai.Stream) else [answer.choices[0]]
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or []]
    return [(entry.token, {likely.token: likely.logprob for likely in entry.top_logprobs}) for entry in entries]
