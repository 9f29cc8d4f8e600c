"""What a recipe takes of memory: the arithmetic, and what is dropped for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver import engines
from quicksilver.nouns import Recipe, Settings, Technique
from quicksilver.search.fit import Load, fit
from quicksilver.techniques import make
from quicksilver.testing.large import LARGE

LOAD = Load(streams=8, context=1000)


def settings_of(stack: list[Technique], **fields: object) -> Settings:
    return Recipe("m", stack, settings=Settings(**fields)).effective_settings()


def test_the_lines_are_what_the_shapes_say() -> None:
    found = fit(LARGE, (), settings_of([]), LOAD, runtime_mb=100)
    assert found.weights == pytest.approx(16_000)
    # 2 x 32 layers x 8 heads x 128 in 16 bits for each token.
    assert found.kv_cache == pytest.approx(8 * 1000 * 2 * 32 * 8 * 128 * 2 / 1e6)
    assert found.total == pytest.approx(found.weights + found.kv_cache + found.activations + 100)


def test_the_sentence_has_every_line_and_the_limit() -> None:
    said = fit(LARGE, (), settings_of([]), LOAD).sentence(8000)
    for words in (
        "weights 16,000",
        "KV cache 1,049 (8 streams of 1,000 tokens at 131.1 kB)",
        "activations",
        "runtime 250",
        "8,000 MB",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("stack", "fields"),
    [(["int8"], {}), (["int4"], {}), ([{"name": "kv-cache", "precision": "u8"}], {}), ([], {"max_streams": 4}),
     ([], {"kv_cache_gb": 0.5}), (["chunked-prefill"], {})],
)  # fmt: skip
def test_what_saves_memory_takes_less(stack: list[object], fields: dict[str, object]) -> None:
    made = [make(entry) for entry in stack]  # type: ignore[arg-type]
    assert fit(LARGE, made, settings_of(made, **fields), LOAD).total < fit(LARGE, (), settings_of([]), LOAD).total


@given(st.integers(1, 64), st.integers(1, 8000), st.floats(1, 1e6))
def test_only_what_is_well_over_a_limit_is_dropped(streams: int, context: int, limit: float) -> None:
    found = fit(LARGE, (), settings_of([]), Load(streams, context))
    if found.exceeds(limit):
        assert found.total > limit
    assert not found.exceeds(found.total)


def test_an_engine_that_takes_its_cache_whole_is_counted_with_it() -> None:
    engine = engines.find("llamacpp")
    whole = fit(LARGE, (), settings_of([]), LOAD, engine=engine)
    assert whole.kv_cache > fit(LARGE, (), settings_of([]), LOAD, engine=engines.find("openvino")).kv_cache
    assert "llamacpp takes at its start" in whole.sentence(1000)
    # Fewer streams are given less of it, though the load is the same.
    assert fit(LARGE, (), settings_of([], max_streams=2), LOAD, engine=engine).kv_cache < whole.kv_cache


def test_openvino_lays_weights_out_beside_the_file_that_it_maps() -> None:
    engine = engines.find("openvino")
    one = fit(LARGE, (), settings_of([]), Load(1, 1000), engine=engine)
    many = fit(LARGE, (), settings_of([]), Load(8, 1000), engine=engine)
    assert one.weights == pytest.approx(2 * 16_000)
    # Steps of several tokens lay the layers' matrices out once more, but not embedding and output layer.
    assert many.weights == pytest.approx(3 * 16_000 - 2 * LARGE.embedding_parameters / 1e6)
    assert one.runtime == engine.runtime_mb


def test_what_a_server_was_seen_to_take_goes_before_the_usual() -> None:
    assert fit(LARGE, (), settings_of([]), LOAD, 321.0, engine=engines.find("openvino")).runtime == 321.0


def test_llamacpp_serves_a_gguf_as_it_comes_in_steps_of_512() -> None:
    engine = engines.find("llamacpp")
    found = fit(LARGE, (), settings_of([]), LOAD, engine=engine, as_is=3_000.0)
    assert found.weights == 3_000
    assert found.activations == fit(LARGE, (), settings_of([]), Load(8, 8000), engine=engine).activations
    rounded = [make("k-quant")]
    assert fit(LARGE, rounded, settings_of([]), LOAD, engine=engine, as_is=3_000.0).weights == pytest.approx(4_900)
