"""Blocks of the KV cache: never held twice unless they hold the same, never lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quicksilver.engines.openvino.blocks import Blocks

SIZE = 2
Tokens = st.lists(st.integers(0, 1), min_size=1, max_size=9)


def fill(blocks: Blocks, tokens: list[int]) -> list[int]:
    """Do what a decoder does for a prompt: reuse what is known, take the rest, and note what became full."""
    held, prefix = blocks.find(tokens[:-1])
    known = len(held)
    while len(held) * SIZE < len(tokens):
        held.append(blocks.take())
    for index in range(known, len(tokens) // SIZE):
        prefix = blocks.note(held[index], prefix, tokens[index * SIZE : (index + 1) * SIZE])
    return held


def test_a_prefix_is_found_again_while_it_is_held_and_after() -> None:
    blocks = Blocks(8, SIZE, caching=True)
    first = fill(blocks, [1, 2, 3, 4, 5])
    second, _ = blocks.find([1, 2, 3, 4, 9])
    assert second == first[:2]
    blocks.release(first)
    blocks.release(second)
    assert blocks.used == 0
    again, _ = blocks.find([1, 2, 3, 4])
    assert again == first[:2]


def test_the_same_tokens_after_another_prefix_are_another_content() -> None:
    blocks = Blocks(8, SIZE, caching=True)
    fill(blocks, [1, 1, 2, 2])
    assert blocks.find([2, 2])[0] == []


def test_without_caching_nothing_is_found() -> None:
    blocks = Blocks(8, SIZE, caching=False)
    fill(blocks, [1, 2, 3, 4])
    assert blocks.find([1, 2, 3, 4]) == ([], 0)


def test_content_gives_way_the_longest_unused_first_and_a_prefix_after_what_follows_it() -> None:
    blocks = Blocks(3, SIZE, caching=True)
    held = fill(blocks, [1, 2, 3, 4])
    blocks.release(held)
    other = [blocks.take(), blocks.take()]
    assert blocks.find([1, 2, 3, 4])[0] == held[:1]
    assert held[1] in other


def test_without_a_free_block_none_is_handed_out() -> None:
    blocks = Blocks(1, SIZE, caching=True)
    blocks.take()
    with pytest.raises(IndexError):
        blocks.take()


class Decoding(RuleBasedStateMachine):
    """Sequences come and go; a model of what each block holds says whether two may share it."""

    @initialize(number=st.integers(1, 12), caching=st.booleans())
    def start(self, number: int, caching: bool) -> None:
        self.blocks = Blocks(number, SIZE, caching=caching)
        self.sequences: list[tuple[list[int], list[int]]] = []

    @rule(tokens=Tokens)
    def come(self, tokens: list[int]) -> None:
        if self.blocks.free * SIZE >= len(tokens):
            self.sequences.append((tokens, fill(self.blocks, tokens)))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.sequences) - 1))
        self.blocks.release(self.sequences.pop(index)[1])

    @invariant()
    def a_shared_block_holds_the_same_for_all(self) -> None:
        holds: dict[int, list[int]] = {}
        for tokens, held in self.sequences:
            for index, block in enumerate(held):
                prefix = tokens[: (index + 1) * SIZE]
                assert holds.setdefault(block, prefix) == prefix
                if len(prefix) < (index + 1) * SIZE:
                    assert sum(block in other for _, other in self.sequences) == 1  # it is still written to
        assert self.blocks.used == len(holds)


TestDecoding = Decoding.TestCase


@given(st.lists(Tokens, min_size=1, max_size=6))
def test_what_is_released_can_all_be_taken_again(prompts: list[list[int]]) -> None:
    blocks = Blocks(64, SIZE, caching=True)
    for held in [fill(blocks, tokens) for tokens in prompts]:
        blocks.release(held)
    assert blocks.free == 64
    assert sorted(blocks.take() for _ in range(64)) == list(range(64))
