"""The decoder over paged attention, on a tiny model: whatever batches, guesses, shares or starts over, the tokens stay the same."""

from __future__ import annotations

import json
import random
import shutil
import statistics
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import EXACT, LOOKUP, Heard, decode, tiny_artifact
from scipy import stats

from quicksilver.engines.openvino.files import conditions
from quicksilver.engines.openvino.graph import Work
from quicksilver.engines.openvino.lookup import Guess
from quicksilver.engines.openvino.paged import PagedDecoder
from quicksilver.engines.openvino.sampling import Choice
from quicksilver.errors import EngineError
from quicksilver.hardware import instructions
from quicksilver.nouns import Request, Settings, SpeculationTable
from quicksilver.nouns.speculation import FILE
from quicksilver.testing.engine_contract import until

ALWAYS = LOOKUP | {"adapts": False}
PROMPTS = [[(7 * n * i + i * i) % 500 + 3 for i in range(5 + 23 * n)] for n in range(1, 7)]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_artifact(tmp_path_factory) as path:
        yield path


@contextmanager
def opened(artifact: Path, kind: type[PagedDecoder] = PagedDecoder, **fields: Any) -> Iterator[PagedDecoder]:
    settings = Settings.model_validate({"kv_cache_gb": 0.01, "properties": EXACT} | fields)
    decoder = kind(artifact, settings)
    try:
        yield decoder
        until(lambda: decoder.blocks_used == 0)
    finally:
        decoder.close()


def greedy(prompt: list[int], tokens: int = 40, **fields: Any) -> Request:
    return Request(prompt=prompt, max_tokens=tokens, ignore_eos=True, **fields)


@pytest.fixture(scope="module")
def alone(artifact: Path) -> list[list[int]]:
    """The answer to each prompt with nothing else about."""
    with opened(artifact) as decoder:
        return [decode(decoder, greedy(prompt))[0].tokens for prompt in PROMPTS]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_batched_tokens": 16},
        {"max_streams": 2},
        {"speculation": LOOKUP},
        {"speculation": ALWAYS},
        {"speculation": LOOKUP, "max_batched_tokens": 24},
        {"prefix_caching": True},
        {"prefix_caching": True, "speculation": LOOKUP, "max_batched_tokens": 32},
        {"kv_cache_gb": 0.0002},
        {"kv_cache_gb": 0.0002, "prefix_caching": True, "speculation": LOOKUP},
    ],
    ids=str,
)
def test_a_batch_gives_what_each_gives_alone(artifact: Path, alone: list[list[int]], fields: dict[str, Any]) -> None:
    with opened(artifact, **fields) as decoder:
        for _ in range(2):  # the second time, prefixes are cached
            heard = decode(decoder, *(greedy(prompt) for prompt in PROMPTS))
            assert [one.tokens for one in heard] == alone
            assert {one.bursts[-1].finish for one in heard} == {"length"}


def test_guesses_are_made_and_are_right_where_the_text_repeats_itself(artifact: Path) -> None:
    with opened(artifact, speculation=ALWAYS) as decoder:
        (heard,) = decode(decoder, greedy(PROMPTS[0], 400))
        assert len(heard.bursts) < 300
        assert decoder.accepted > 100
        assert decoder.accepted <= decoder.drafted


@pytest.mark.parametrize(("token_ms", "pays"), [(1000.0, False), (1e-6, True)])
def test_a_table_decides_from_the_first_step_on(artifact: Path, tmp_path: Path, token_ms: float, pays: bool) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(artifact, folder)
    settings = Settings.model_validate({"speculation": LOOKUP})
    table = SpeculationTable(
        **conditions(settings),
        context_tokens=100,
        streams=(1, 8),
        lengths=(0, 6),
        step_ms=((10, 10 + 7 * token_ms), (20, 20 + 48 * token_ms)),
        guessed=(0, 6),
        gained=(1, 3),
    )
    (folder / FILE).write_text(table.model_dump_json(), encoding="utf-8")
    with opened(folder, speculation=LOOKUP) as decoder:
        (heard,) = decode(decoder, greedy(list(range(500)), 4))  # whatever comes next has been there before
        assert (decoder.drafted > 0) == pays
        assert len(heard.tokens) == 4
        # What wasn't worth checking is held against what came all the same.
        assert decoder._confidence.seen > 0


@pytest.mark.parametrize("speculate", [0, None])
def test_a_seed_gives_the_same_with_and_without_guesses(artifact: Path, speculate: int | None) -> None:
    request = greedy(PROMPTS[1], 60, temperature=0.7, top_p=0.9, seed=11, speculate_tokens=speculate)
    with opened(artifact) as plain, opened(artifact, speculation=ALWAYS) as guessing:
        assert decode(plain, request)[0].tokens == decode(guessing, request)[0].tokens


@pytest.mark.parametrize("fields", [{}, {"prefix_caching": True, "max_batched_tokens": 32}], ids=str)
def test_a_token_has_the_logprob_that_it_has_in_a_prompt(artifact: Path, fields: dict[str, Any]) -> None:
    prompt = PROMPTS[4]
    with opened(artifact, speculation=LOOKUP, **fields) as decoder:
        (said,) = decode(decoder, greedy(prompt, 30, logprobs=True, top_logprobs=3))
        echo = greedy(prompt + said.tokens, 1, logprobs=True, echo=True, top_logprobs=3)
        (first,), (second,) = decode(decoder, echo), decode(decoder, echo)
    logprobs = [value for burst in said.bursts for value in burst.logprobs or []]
    for again in (first, second):
        scored = again.bursts[0].prompt_logprobs
        assert scored is not None
        assert len(scored) == len(prompt) + 30
        assert scored[0] is None
        assert scored[len(prompt) :] == pytest.approx(logprobs, abs=1e-3)
        tops = again.bursts[0].prompt_top_logprobs
        assert tops is not None
        assert [row[0][0] for row in tops[len(prompt) :]] == said.tokens
        assert [row[0][1] for row in tops[len(prompt) :]] == scored[len(prompt) :]
        assert [len(row) for row in tops] == [0, *[3] * (len(scored) - 1)]
    top = [alternatives for burst in said.bursts for alternatives in burst.top_logprobs or []]
    assert [row[0][0] for row in top] == said.tokens
    assert [row[0][1] for row in top] == pytest.approx(logprobs, abs=1e-6)
    assert all(len(row) == 3 and row[0][1] >= row[1][1] >= row[2][1] for row in top)


@pytest.mark.parametrize("precision", ["f16", "bf16", "u8", "u4"])
def test_a_rounded_cache_holds_the_same_prompt_however_it_is_read(artifact: Path, precision: str) -> None:
    if precision == "bf16" and not {"AVX-512", "AMX BF16", "NEON"} & set(instructions()):
        pytest.skip("OpenVINO reads no cache in bf16 on this processor")
    scores = []
    for batched in (2048, 32):
        with opened(artifact, kv_precision=precision, properties={}, max_batched_tokens=batched) as decoder:
            (heard,) = decode(decoder, greedy(PROMPTS[5] * 2, 1, logprobs=True, echo=True))
            assert heard.bursts[0].prompt_logprobs is not None
            scores.append([value for value in heard.bursts[0].prompt_logprobs if value is not None])
    assert statistics.correlation(*scores) > 0.9


def test_an_answer_ends_at_its_end_token_even_within_a_guess(artifact: Path) -> None:
    with opened(artifact, speculation=LOOKUP) as decoder:
        (free,) = decode(decoder, greedy(PROMPTS[2], 200))
        tokens = free.tokens
        ends = tokens[-1]
        decoder._eos = frozenset({ends})
        (heard,) = decode(decoder, Request(prompt=PROMPTS[2], max_tokens=200))
    assert heard.tokens == tokens[: tokens.index(ends) + 1]
    assert heard.bursts[-1].finish == "stop"


def test_a_cancelled_sequence_frees_its_blocks_and_the_others_go_on(artifact: Path, alone: list[list[int]]) -> None:
    with opened(artifact, max_streams=2) as decoder:
        long, waiting, other = Heard(), Heard(), Heard()
        number = decoder.submit(greedy(PROMPTS[0], 2000), long)
        decoder.submit(greedy(PROMPTS[1]), other)
        third = decoder.submit(greedy(PROMPTS[2]), waiting)
        until(lambda: len(long.bursts) > 3)
        decoder.cancel(third)
        decoder.cancel(number)
        for one in (long, waiting, other):
            assert one.over.wait(60)
    assert long.bursts[-1].finish == waiting.bursts[-1].finish == "cancelled"
    assert other.tokens == alone[1]


def test_steps_that_are_given_up_change_no_answer(artifact: Path, alone: list[list[int]]) -> None:
    with opened(artifact, speculation=LOOKUP, max_batched_tokens=64) as decoder:
        over = threading.Event()

        def disturb() -> None:
            while not over.wait(0.002):
                decoder._graph.abort()

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            heard = decode(decoder, *(greedy(prompt) for prompt in PROMPTS))
        finally:
            over.set()
            thread.join()
    assert [one.tokens for one in heard] == alone


def test_a_prompt_that_nobody_waits_for_is_not_read_to_its_end(artifact: Path, alone: list[list[int]]) -> None:
    with opened(artifact) as decoder:
        run, abort = decoder._graph.run, decoder._graph.abort
        aborted = threading.Event()

        def slow(work: Sequence[Work], padding: int = 0) -> Any:
            if any(len(piece.tokens) > 300 for piece in work):
                assert aborted.wait(60)
            return run(work, padding)

        def give_up() -> None:
            abort()
            aborted.set()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoder._graph, "run", slow)
            patch.setattr(decoder._graph, "abort", give_up)
            gone, other = Heard(), Heard()
            number = decoder.submit(greedy(PROMPTS[0] * 20), gone)
            until(lambda: number in decoder._reading)
            decoder.submit(greedy(PROMPTS[1]), other)
            decoder.cancel(number)
            assert gone.over.wait(60)
            assert other.over.wait(60)
    assert aborted.is_set()
    assert [burst.finish for burst in gone.bursts] == ["cancelled"]
    assert other.tokens == alone[1]


def test_a_cache_is_as_large_as_the_streams_can_use_and_never_larger_than_what_is_free(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def tokens(**fields: Any) -> int:
        with opened(artifact, **fields) as decoder:
            return decoder._blocks.number * decoder._blocks.tokens

    context = json.loads((artifact / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    assert tokens(kv_cache_gb=0, max_streams=3) == pytest.approx(3 * context, rel=0.05)
    monkeypatch.setattr("quicksilver.engines.openvino.files.available_memory", lambda: 2_000_000)
    least = tokens(kv_cache_gb=0.0001)
    assert least < tokens(kv_cache_gb=0, max_streams=1000) == tokens(kv_cache_gb=5)
    assert "gets 0.0 GB and not 5" in caplog.text
    monkeypatch.setattr("quicksilver.engines.openvino.files.available_memory", lambda: 100)
    with pytest.raises(EngineError, match="holds no block"), opened(artifact, kv_cache_gb=0):
        pass


def test_a_prompt_that_the_cache_can_not_hold_is_refused(artifact: Path) -> None:
    with opened(artifact, kv_cache_gb=0.0002) as decoder, pytest.raises(ValueError, match="KV cache holds"):
        decoder.submit(greedy(list(range(3, 500)) * 3), Heard())


def test_an_answer_that_fills_the_whole_cache_ends(artifact: Path) -> None:
    with opened(artifact, kv_cache_gb=0.0002) as decoder:
        (heard,) = decode(decoder, greedy(PROMPTS[0], 100_000))
    assert heard.bursts[-1].finish == "length"
    assert len(heard.tokens) > 100


def test_closing_ends_what_runs(artifact: Path) -> None:
    heard = Heard()
    with opened(artifact) as decoder:
        decoder.submit(greedy(PROMPTS[0], 100_000), heard)
        until(lambda: len(heard.bursts) > 1)
        decoder.close()
        decoder.close()
    assert heard.bursts[-1].finish == "cancelled"


WORDS = (10, 11, 12, 13)
"""The only tokens that are drawn below, so that there are few different answers; the prompt has them, so that they are guessed."""
DRAWS = 4000
FAIR = 0.001
"""P-value from which two distributions pass for one."""


class Partial(PagedDecoder):
    """Takes a guess whatever was drawn, in a share of the cases."""

    share = 0.0

    def _emit(self, sequence: Any, rows: Any, ids: list[int], guess: Guess | None) -> None:
        honest, coin = sequence.sampler.choose, random.Random(100 * sequence.number + sequence.generated)
        guessed = iter(guess.tokens if guess is not None else ())

        def choose(row: Any, given: int) -> Choice:
            choice, token = honest(row, given), next(guessed, None)
            return Choice(token) if token is not None and coin.random() < self.share else choice

        sequence.sampler.choose = choose
        super()._emit(sequence, rows, ids, guess)
        sequence.sampler.choose = honest


def drawn(decoder: PagedDecoder, first_seed: int) -> Counter[tuple[int, ...]]:
    """How often each answer of four tokens comes: the first is never guessed, the next two are, together or one by one."""

    prompt, bias = random.Random(5).choices(WORDS, k=24), dict.fromkeys(WORDS, 100.0)
    seeds = range(first_seed, first_seed + DRAWS)
    heard = decode(decoder, *(greedy(prompt, 4, temperature=3.0, seed=seed, logit_bias=bias) for seed in seeds))
    return Counter(tuple(one.tokens) for one in heard)


def likeness(one: Counter[tuple[int, ...]], other: Counter[tuple[int, ...]]) -> float:
    """The p-value of a G-test of homogeneity; answers that are rare in both share a cell."""
    common = [answer for answer in one | other if one[answer] + other[answer] >= 10]
    cells = [[counts[a] for a in common] + [DRAWS - sum(counts[a] for a in common)] for counts in (one, other)]
    return float(stats.chi2_contingency(np.array(cells), lambda_="log-likelihood").pvalue)


@pytest.fixture(scope="module")
def unguessed(artifact: Path) -> Counter[tuple[int, ...]]:
    with opened(artifact) as decoder:
        return drawn(decoder, 0)


def test_sampling_keeps_its_distribution_under_guesses(artifact: Path, unguessed: Counter[tuple[int, ...]]) -> None:
    with opened(artifact, speculation=ALWAYS) as decoder:
        guessed = drawn(decoder, DRAWS)  # with the same seeds the very answers would be the same
        assert decoder.drafted > 2 * DRAWS
        assert 0.1 < decoder.accepted / decoder.drafted < 0.9
    assert len(unguessed) > 100
    assert likeness(unguessed, guessed) > FAIR


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_rule_that_favours_guesses_does_not_pass_for_one_that_keeps_the_distribution(
    artifact: Path, unguessed: Counter[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(Partial, "share", share)
    with opened(artifact, Partial, speculation=ALWAYS) as decoder:
        assert likeness(unguessed, drawn(decoder, DRAWS)) < FAIR
