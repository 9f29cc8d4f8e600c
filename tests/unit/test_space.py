"""The space of a search: what is legal, what excludes what, and where each configuration lies."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver import engines, techniques
from quicksilver.build import plan
from quicksilver.hardware import detect
from quicksilver.nouns import Hardware, Settings, Technique
from quicksilver.nouns.choices import choices_of
from quicksilver.search import space
from quicksilver.search.space import Configuration, Space, combine
from quicksilver.testing import surface

BASES = [
    (),
    (techniques.make("int8"),),
    (techniques.make("int8"), techniques.make({"name": "activations", "group_size": 64})),
]
CHOICES = {"threads": (0, 2, 1), "max_streams": (64, 8), "max_batched_tokens": (2048, 256), "kv_cache_gb": (0,)}


@pytest.fixture(scope="module")
def found() -> Space:
    return combine(BASES, space.serving(engines.find("openvino")), CHOICES)


def test_every_configuration_has_a_legal_order_and_is_there_once(found: Space) -> None:
    for stack in {c.stack for c in found.configurations}:
        plan.order(stack)
    assert len(set(found.configurations)) == len(found)


def test_what_takes_the_same_thing_is_never_stacked(found: Space) -> None:
    for configuration in found.configurations:
        taken = [what for t in configuration.stack for what in t.takes]
        assert len(taken) == len(set(taken))


def test_it_has_every_value_that_the_techniques_and_settings_name(found: Space) -> None:
    tokens = {t.tokens for c in found.configurations for t in c.serving if t.name() == "prompt-lookup"}  # type: ignore[attr-defined]
    assert tokens == set(techniques.find("prompt-lookup").space()["tokens"])
    assert {dict(c.settings).get("threads", 0) for c in found.configurations} == {0, 1, 2}
    # The batch's tokens are chosen through chunked-prefill, and one value is no choice.
    assert {name for c in found.configurations for name, _ in c.settings} == {"threads", "max_streams"}
    assert {t.precision for c in found.configurations for t in c.serving if t.name() == "kv-cache"} == {"u8"}  # type: ignore[attr-defined]


def test_its_size_is_the_product_of_what_is_free(found: Space) -> None:
    slots: dict[str, int] = {}
    for technique in space.serving(engines.find("openvino")):
        slots[min(technique.takes)] = slots.get(min(technique.takes), 1) + 1
    each = 3 * 2
    for count in slots.values():
        each *= count
    assert len(found) == len(BASES) * each


def test_a_place_tells_configurations_apart(found: Space) -> None:
    assert found.codes.shape == (len(found), len(found.dimensions))
    assert len({tuple(row) for row in found.codes.tolist()}) == len(found)
    for number, dimension in enumerate(found.dimensions):
        assert set(found.codes[:, number]) == set(range(len(dimension.values)))


def test_what_has_no_meaning_has_no_value(found: Space) -> None:
    names = [d.name for d in found.dimensions]
    at = names.index("plain decoding: tokens")
    for configuration, row in zip(found.configurations, found.codes, strict=True):
        value = found.dimensions[at].values[row[at]]
        guesses = [t for t in configuration.serving if t.name() == "prompt-lookup"]
        assert (value is None) == (not guesses)
    assert found.dimensions[at].ordered
    assert [d.name for d in found.dimensions if d.setting] == ["threads", "max_streams"]


def test_the_first_is_the_model_as_it_comes_and_a_base_is_found_again(found: Space) -> None:
    assert found.configurations[0] == Configuration(())
    assert found.index(Configuration(BASES[2])) is not None
    assert found.index(Configuration((techniques.make("int4"),))) is None


def test_only_what_changes_output_changes_the_numerics() -> None:
    lookup, kv = techniques.make("prompt-lookup"), techniques.make("kv-cache")
    configuration = Configuration(BASES[1], (lookup, kv), (("threads", 1),))
    assert configuration.numerics == (*BASES[1], kv)


@given(st.integers(1, 256), st.integers(1, 64))
def test_an_engine_narrows_the_values_to_the_machine_and_the_load(cores: int, streams: int) -> None:
    machine = Hardware(name="x", cpu="x", cores=cores, memory_gb=1)
    for name in ("openvino", "fake"):
        choices = engines.find(name).choices(machine, streams)
        for field, values in choices.items():
            assert field in choices_of(Settings)
            assert values
            for value in values:
                Settings(**{field: value})
        threads = choices.get("threads", (0,))
        assert threads[0] == 0
        assert all(4 <= n < cores for n in threads[1:])
        assert all(n == 64 or n < streams for n in choices["max_streams"])


@pytest.mark.parametrize("field", sorted(choices_of(Settings)))
def test_the_first_value_of_a_setting_is_its_default(field: str) -> None:
    assert choices_of(Settings)[field][0] == Settings.model_fields[field].default


def test_a_label_tells_settings_apart() -> None:
    from quicksilver.nouns import Recipe

    plain = Recipe("m", BASES[1])
    assert plain.label == "int8"
    assert Recipe("m", BASES[1], settings=Settings(threads=1)).label == "int8 + settings(threads=1)"
    assert Recipe("m", settings=Settings(max_streams=4)).label == "as-is + settings(max_streams=4)"


def test_the_synthetic_space_is_legal_and_drawn_by_its_seed() -> None:
    drawn = surface.space(500, seed=1)
    assert len(drawn) == 500
    assert drawn.configurations[0] == Configuration(())
    assert drawn.configurations == surface.space(500, seed=1).configurations
    assert drawn.configurations != surface.space(500, seed=2).configurations
    for stack in {c.stack for c in drawn.configurations}:
        plan.order(stack)


def test_alternatives_are_combined_with_each_other_and_with_nothing_twice() -> None:
    a, b = techniques.make("prompt-lookup"), techniques.make({"name": "prompt-lookup", "tokens": 3})
    c = techniques.make("prefix-caching")
    stacks = {x.serving for x in combine([()], [a, b, c], {}).configurations}
    expected: set[tuple[Technique, ...]] = {
        tuple(t for t in pair if t is not None) for pair in itertools.product((None, a, b), (None, c))
    }
    assert stacks == expected
    assert detect().cores > 0


def test_the_engine_is_a_dimension_where_there_are_several() -> None:
    int8, lookup = techniques.make("int8"), techniques.make("prompt-lookup")
    one = space.Options([(), (int8,)], [lookup], {"threads": (0, 1), "max_streams": (64,)}, engine="one")
    other = space.Options([()], [], {"threads": (0, 2)}, engine="other")
    where = space.union([one, other])
    assert len(where) == 2 * 2 * 2 + 2
    assert len({tuple(row) for row in where.codes.tolist()}) == len(where)
    names = {dimension.name: dimension for dimension in where.dimensions}
    assert names["engine"].values == ("one", "other")
    assert names["engine"].numeric and not names["engine"].ordered and not names["engine"].setting
    assert set(names["threads"].values) == {0, 1, 2}
    assert where.index(Configuration((), engine="other")) is not None
    assert where.index(Configuration((int8,), engine="other")) is None
    # The same techniques on two engines are two models: each has to prove its quality.
    assert Configuration((), engine="one").computes != Configuration((), engine="other").computes
    assert "engine" not in {dimension.name for dimension in space.union([one]).dimensions}
