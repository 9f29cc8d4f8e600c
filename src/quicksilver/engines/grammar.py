"""Grammars that answers have to follow: llguidance's, over a model's own tokenizer."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

# Bounds on what a grammar may cost: the first for compiling it, those of a step for each token of an answer.
LIMITS: dict[str, int | bool] = {
    "initial_lexer_fuel": 200_000,  # 4 ms
    "step_lexer_fuel": 200_000,  # 14 ms
    "step_max_items": 50_000,  # 3 ms
    "max_lexer_states": 50_000,  # 1 to 2 kB each
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}
MESSAGE = 300
"""Characters of llguidance's message that are passed on."""


class Grammar:
    """Where one sequence is in its grammar: which tokens may come next, and whether it is complete."""

    __slots__ = ("_ends", "_matcher")

    def __init__(self, matcher: Any, ends: list[int]) -> None:
        self._matcher = matcher
        self._ends = ends

    def allowed(self, width: int, *, end: bool = True) -> Mask:
        """Return which of `width` tokens may come next, without those that end an answer unless `end` or nothing else is left.

        Raises ValueError when the grammar leads nowhere or costs too much.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise ValueError(_short(self._matcher.get_error()))
        # A model's matrix may be wider than the vocabulary, or the mask's last word wider than both.
        mask = np.zeros(width, np.bool_)
        known = np.unpackbits(bits, count=min(width, 8 * len(bits)), bitorder="little").view(np.bool_)
        mask[: len(known)] = known
        if not end:
            longer = mask.copy()
            longer[[token for token in self._ends if token < width]] = False
            if longer.any():
                return longer
        if not mask.any():
            raise ValueError("No token that the model has can follow.")
        return mask

    def take(self, token: int) -> None:
        """Go on by a token. Raises ValueError for one that isn't allowed."""
        if not self._matcher.consume_token(token):
            raise ValueError(_short(self._matcher.get_error()))

    @property
    def over(self) -> bool:
        """Whether nothing but the answer's end may follow."""
        stopped: bool = self._matcher.is_stopped()
        return stopped


class Grammars:
    """Compiles grammars for the tokenizer of a model's folder, which is read when the first one comes."""

    def __init__(self, folder: Path, eos: Collection[int]) -> None:
        self._folder = folder
        # A model without an end still has one in llguidance; whoever chooses tokens for it asks for `end=False`.
        self._eos = sorted(eos)
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    def compile(self, text: str) -> Grammar:
        """Return the beginning of a grammar in llguidance's JSON or Lark text. Raises ValueError for one that can't be compiled."""
        import llguidance

        tokenizer = self.load()
        limits = llguidance.LLParserLimits(**LIMITS)
        matcher = llguidance.LLMatcher(tokenizer, text, log_level=0, limits=limits)
        if matcher.is_error():
            raise ValueError(_short(matcher.get_error()))
        grammar = Grammar(matcher, list(tokenizer.eos_tokens))
        grammar.allowed(tokenizer.vocab_size)  # much of the work, and of what can go wrong, is in the first mask
        return grammar

    def load(self) -> Any:
        """Return the tokenizer as llguidance has it. Raises ValueError if it can't be used."""
        import llguidance

        with self._lock:
            if self._tokenizer is None:
                path = self._folder / "tokenizer.json"
                if not path.is_file():
                    raise ValueError(f"{self._folder.name} has no tokenizer.json, which grammars need.")
                text = path.read_text(encoding="utf-8")
                self._tokenizer = llguidance.LLTokenizer(text, eos_token=self._eos or None)
            return self._tokenizer

    def closing(self) -> list[int]:
        """Return tokens that bring a JSON value nearer to its end; the later ones more so."""
        tokenizer = self.load()
        return [tokens[0] for sign in ',]}"' if len(tokens := tokenizer.tokenize_str(sign)) == 1]


def _short(message: str) -> str:
    """Return llguidance's message on one line, without the place in a grammar that the user never saw."""
    message = re.split(r"\n\s*\d+ \| ", message.replace("<non-verbose/>", ""))[0]
    line = " ".join(re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", message).split())
    if " " not in line:  # the name of a state
        line = f"The grammar can't be followed any further ({line or 'it ended'})"
    return (line if len(line) <= MESSAGE else line[:MESSAGE] + "…").rstrip(".") + "."
