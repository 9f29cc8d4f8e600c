"""Blocks: which parts of the KV cache belong to which sequence, and which hold prefixes that may come again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import count

Prefix = tuple[int, tuple[int, ...]]
"""A block's content: the number of the prefix before it, and its own tokens."""


class Blocks:
    """Hands out blocks of the KV cache; with `caching`, whole blocks are found again by what they hold.

    A block that is found again is shared and never written to. One that nobody holds keeps its content until its place is
    needed, the longest unused first (vLLM's automatic prefix caching).
    """

    def __init__(self, number: int, tokens: int, *, caching: bool) -> None:
        self.number = number
        self.tokens = tokens
        """Tokens of a block."""
        self._caching = caching
        # Used last, taken first: memory that was never touched stays untouched.
        self._empty = list(range(number - 1, -1, -1))
        self._holders = [0] * number
        self._serials = count(1)
        self._known: dict[Prefix, tuple[int, int]] = {}
        """Content to block and serial number."""
        self._content: dict[int, Prefix] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Blocks with known content that nobody holds, the longest unused first."""

    @property
    def free(self) -> int:
        """Blocks that can be handed out."""
        return len(self._empty) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self.number - self.free

    def take(self) -> int:
        """Hand out a block. Raises IndexError if none is free."""
        if self._empty:
            block = self._empty.pop()
        else:
            if not self._idle:
                raise IndexError("no block is free")
            block, _ = self._idle.popitem(last=False)
            del self._known[self._content.pop(block)]
        self._holders[block] = 1
        return block

    def release(self, blocks: Sequence[int]) -> None:
        """Take blocks back from a sequence."""
        # A prefix's end goes first: its beginning is of use to more prompts.
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._content:
                self._idle[block] = None
            else:
                self._empty.append(block)

    def find(self, tokens: Sequence[int]) -> tuple[list[int], int]:
        """Return the blocks that hold the longest known prefix of `tokens`, now held once more, and its serial number."""
        found: list[int] = []
        serial = 0
        if self._caching:
            for start in range(0, len(tokens) - self.tokens + 1, self.tokens):
                entry = self._known.get((serial, tuple(tokens[start : start + self.tokens])))
                if entry is None:
                    break
                block, serial = entry
                self._holders[block] += 1
                self._idle.pop(block, None)
                found.append(block)
        return found, serial

    def note(self, block: int, before: int, tokens: Sequence[int]) -> int:
        """Note what a full block holds after the prefix `before`, and return the serial number of the two together."""
        if not self._caching:
            return 0
        content = (before, tuple(tokens))
        entry = self._known.get(content)
        if entry is None:
            entry = self._known[content] = (block, next(self._serials))
            self._content[block] = content
        return entry[1]
