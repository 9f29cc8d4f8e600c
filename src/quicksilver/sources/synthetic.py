"""Synthetic shapes: prompts of a given length in tokens, made of plain English sentences without sense."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from quicksilver.errors import BadInputError
from quicksilver.nouns.workload import Prompt, Workload
from quicksilver.sources.splits import FEWEST_PROMPTS, USUAL_PROMPTS, Item, assemble

PREFIX = "synthetic:"
FEWEST_INPUT, MOST_TOKENS = 4, 131_072
MOST_IN_ALL = 4_000_000

# Each of these words, with a space before it, is one token in the vocabularies of SmolLM2, Llama 3 and Mistral.
_WORDS = {
    part: words.split()
    for part, words in {
        "opening": "The A This That Every Each One Another Some No",
        "determiner": "the a this that every each one another her his their our its some",
        "adjective": """
            old new small large great young long short high low early late open public private local common simple
            strong heavy light dark bright quiet cold warm dry deep wide green blue white black red rich poor free
            full empty real true clear general special single different important modern ancient foreign national
            human natural political famous recent final main whole safe hard soft fresh
        """,
        "noun": """
            house river city road village school teacher student doctor captain king queen mother father brother
            sister child friend letter book story song picture window door table garden field forest mountain island
            ocean ship train station bridge market church hospital library company office report paper machine engine
            program system network signal message number question answer reason problem result method theory model
            language word law court judge army soldier war leader government president member team player game match
            season winter summer morning evening night year day hour moment event history museum artist writer film
            author painting music theatre animal horse dog bird fish tree flower fruit bread water fire stone metal
            gold glass wood wall tower castle square street farm factory worker price money trade bank tax plan
            project idea dream voice body hand eye heart
        """,
        "verb": """
            saw found built made took gave kept left held lost wrote read heard told showed sent brought changed
            opened closed moved followed joined crossed reached carried watched called named helped asked answered
            explained described studied played sold bought used saved covered entered passed turned needed wanted
            loved expected accepted remembered visited supported created destroyed discovered
        """,
        "preposition": """
            in on at near by under over behind beside through across after before with without for from against
            around beyond
        """,
        "conjunction": "and but while because although when until where",
    }.items()
}


def load_synthetic(spec: str, *, prompts: int | None = None, seed: int = 0) -> Workload:
    """Make the workload of a shape such as `synthetic:622x250`: 622 input tokens and 250 output tokens, forced.

    The prompts have the input length exactly in SmolLM2's tokenizer, not counting a begin-of-text token. Every word is
    one token in the vocabularies of Llama 3 and Mistral too, so there they should be within a token or two; elsewhere
    the length is approximate. Raises BadInputError.
    """
    tokens, answer = _shape(spec)
    count = min(USUAL_PROMPTS, MOST_IN_ALL // tokens) if prompts is None else prompts
    if count * tokens > MOST_IN_ALL:
        raise BadInputError(
            f"{count:,} prompts of {tokens:,} tokens are too many to make; at most {MOST_IN_ALL // tokens:,} can be asked for."
        )
    rng = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < max(count, FEWEST_PROMPTS):
        texts[sentences(rng, tokens)] = None
    digits = len(str(len(texts)))
    items = [
        Item(Prompt(id=f"synthetic-{i:0{digits}d}", prompt=text, max_tokens=answer, ignore_eos=True))
        for i, text in enumerate(texts, 1)
    ]
    return assemble(
        f"{PREFIX}{tokens}x{answer}",
        items,
        prompts=count,
        seed=seed,
        task="none",
        max_tokens=answer,
        licence="none needed",
        remark="random sentences, with answers forced to their full length: a small model then repeats itself, "
        "which flatters speculation",
    )


def _shape(spec: str) -> tuple[int, int]:
    """Return input and output tokens of a spec. Raises BadInputError."""
    match = re.fullmatch(rf"{PREFIX}([0-9]{{1,9}})x([0-9]{{1,9}})", spec)
    if not match:
        raise BadInputError(
            f"{spec!r} is not a synthetic shape; write synthetic:INPUTxOUTPUT in tokens, such as synthetic:622x250."
        )
    tokens, answer = int(match[1]), int(match[2])
    if not FEWEST_INPUT <= tokens <= MOST_TOKENS:
        raise BadInputError(f"{spec!r} has {tokens:,} input tokens; give {FEWEST_INPUT} to {MOST_TOKENS:,}.")
    if not 1 <= answer <= MOST_TOKENS:
        raise BadInputError(f"{spec!r} has {answer:,} output tokens; give 1 to {MOST_TOKENS:,}.")
    return tokens, answer


def sentences(rng: random.Random, tokens: int) -> str:
    """Return sentences of exactly so many words and punctuation marks; the last may be cut off."""
    parts: list[str] = []
    while len(parts) < tokens:
        parts += _sentence(rng)
    return "".join(part if part in ".," else f" {part}" for part in parts[:tokens]).lstrip()


def _sentence(rng: random.Random) -> Iterator[str]:
    yield from _clause(rng, "opening")
    if rng.random() < 0.4:
        yield ","
        yield _pick(rng, "conjunction")
        yield from _clause(rng, "determiner")
    yield "."


def _clause(rng: random.Random, determiner: str) -> Iterator[str]:
    yield from _phrase(rng, determiner)
    yield _pick(rng, "verb")
    yield from _phrase(rng, "determiner")
    if rng.random() < 0.5:
        yield _pick(rng, "preposition")
        yield from _phrase(rng, "determiner")


def _phrase(rng: random.Random, determiner: str) -> Iterator[str]:
    yield _pick(rng, determiner)
    if rng.random() < 0.6:
        yield _pick(rng, "adjective")
    yield _pick(rng, "noun")


def _pick(rng: random.Random, part: str) -> str:
    words = _WORDS[part]
    # Of random.Random, only random() is promised to give the same numbers in every version of Python.
    return words[int(rng.random() * len(words))]
