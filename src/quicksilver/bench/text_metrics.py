"""Scores of an answer against its references, and of two answers against each other."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from quicksilver.errors import QuicksilverError
from quicksilver.nouns.workload import Task

Metric = Callable[[str, Sequence[str]], float]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Lower the case and drop punctuation, articles and extra space, in the order of SQuAD v1.1's evaluation script."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1.0 if the normalised answer is one of the normalised references (SQuAD v1.1, arXiv 1606.05250), else 0.0."""
    return float(any(normalise(answer) == normalise(reference) for reference in references))


def f1(answer: str, references: Sequence[str]) -> float:
    """Return the highest F1 of the answer's words over the references, 0 to 1 (SQuAD v1.1, arXiv 1606.05250)."""
    return max((_f1(normalise(answer).split(), normalise(reference).split()) for reference in references), default=0.0)


def contains(answer: str, references: Sequence[str]) -> float:
    """Return 1.0 if a normalised reference occurs in the normalised answer as whole words, else 0.0.

    For answers that explain themselves, whose exact match is always 0 and whose F1 measures mostly their length.
    """
    padded = f" {normalise(answer)} "
    return float(any(words in padded for reference in references if (words := f" {normalise(reference)} ").strip()))


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Return the highest ROUGE-L F-measure over the references, 0 to 1, as rouge-score computes it (no stemming).

    Raises QuicksilverError if that library isn't installed.
    """
    if not references:
        return 0.0
    return float(_rouge().score_multi(list(references), answer)["rougeL"].fmeasure)


def common_prefix(one: str, other: str) -> float:
    """Return the share of the longer text's words that come before the first difference, 0 to 1; 1 for two empty ones."""
    mine, theirs = one.split(), other.split()
    longer = max(len(mine), len(theirs))
    if not longer:
        return 1.0
    same = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    return same / longer


BY_NAME: dict[str, Metric] = {"contains": contains, "f1": f1, "exact_match": exact_match, "rouge_l": rouge_l}
METRICS: dict[Task, tuple[str, ...]] = {
    "qa": ("contains", "f1", "exact_match", "rouge_l"),
    "summary": ("rouge_l", "f1"),
    "none": ("f1", "contains", "exact_match", "rouge_l"),
    "code": (),
}
"""The scores of each task, the one that its loss is taken of first. Code is scored by running it (bench/code_tests.py)."""


def _f1(answer: list[str], reference: list[str]) -> float:
    same = sum((Counter(answer) & Counter(reference)).values())
    if not same:
        return 0.0
    precision, recall = same / len(answer), same / len(reference)
    return 2 * precision * recall / (precision + recall)


@cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise QuicksilverError(
            "ROUGE-L needs the library rouge-score: pip install 'quicksilver[optimize]' brings it."
        ) from error
    return RougeScorer(["rougeL"], use_stemmer=False)
