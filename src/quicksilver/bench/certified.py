"""What a Certificate says, in words and rows, the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence

from quicksilver import techniques
from quicksilver.bench.findings import NOTHING, number, streams, winner
from quicksilver.nouns.certificate import Certificate, Difference, Trial
from quicksilver.nouns.result import Result

HEADS = ("with", "identical", "95 %", "first at", "gap, nats", "drift, nats", "at work", "verdict")
SHOWN = 12
"""Differences that a page shows; certificate.json has them all."""


def outcome(certificate: Certificate) -> str:
    """The verdict on the recipe in a sentence or two: only one whose certificate says so is called lossless."""
    trial = certificate.together or certificate.techniques[0]
    names = _listed([t.name for t in certificate.techniques if t.exercised is not False])
    if certificate.verdict == "not exercised":
        names = _listed([t.name for t in certificate.techniques])
        return f"Nothing is certified: {names} had nothing to do on these prompts."
    if certificate.verdict == "fault":
        faults = {t.name: sum(not d.near_tie for d in t.differences) for t in certificate.trials}
        worst = max(certificate.trials, key=lambda t: faults[t.name])
        return (
            f"Not lossless: with {worst.name} {faults[worst.name]} of {worst.prompts} answers part where the reference is sure, "
            f"by more than {certificate.near_tie:g} nats."
        )
    if certificate.verdict == "identical":
        return f"Lossless on these prompts: all {trial.prompts} greedy answers are the same, token by token, with {names} as without."
    return (
        f"Lossless up to near ties, on these prompts: {trial.identical} of {trial.prompts} greedy answers are the same with {names} "
        f"as without. The others part only where two tokens are almost equally likely, by at most {certificate.near_tie:g} nats; "
        f"{_share(certificate.near_tie_share)} of the reference's tokens are such."
    )


def standing(result: Result, certificate: Certificate | None) -> str:
    """Whether a result's winner may be called lossless; nothing if none of its techniques claims to be."""
    if certificate is not None:
        return f"{outcome(certificate)} {_beside(certificate)}"
    best = winner(result)
    named = [str(t.get("technique")) for t in best.recipe.get("techniques", ())] if best is not None else []
    claims = [name for name in named if name in techniques.names() and techniques.find(name).lossless]
    if not claims:
        return ""
    return (
        f"Whether {_listed(claims)} left the greedy answers as they are without isn't certified; `quicksilver certify "
        f"runs/{result.id}` puts it to the test."
    )


def rows(certificate: Certificate) -> list[list[str]]:
    """A row for each run, under HEADS: the control first."""
    return [_row(trial) for trial in (certificate.control, *certificate.trials)]


def terms(certificate: Certificate) -> str:
    """Under what it was made, and what the figures mean."""
    return (
        f"{certificate.prompts} prompts of {certificate.workload}, up to {certificate.prompt_tokens_max} tokens long, with "
        f"{streams(certificate.streams)}; answers up to {certificate.max_tokens} tokens, temperature 0. Each run is compared "
        "with one that has none of these techniques. The control has none either, but another number of streams: its differences "
        "are what rounding does by itself, since steps of another shape add up in another order. First at: the token at which "
        "answers first differ, median and earliest. Gap: how far the reference's likeliest token leads the other one there, median "
        f"and most. Up to {certificate.near_tie:g}, as far as rounding alone was seen to tip a choice, it is a near tie. Over that the "
        "reference reads the same text once more, in a step of another shape, and where it is as sure then it is a fault. Drift: how far "
        "log-probabilities of the same tokens are apart (99th percentile)."
    )


def made(certificate: Certificate) -> str:
    """Of what, with what, where and when."""
    machine = certificate.hardware
    return (
        f"Artefact {certificate.key}; {certificate.tools.get('engine', certificate.engine)}, quicksilver "
        f"{certificate.tools.get('quicksilver', '?')}; {machine.cpu}, {machine.cores} cores; {certificate.created}; took "
        f"{number(certificate.seconds)} s."
    )


def differences(certificate: Certificate) -> list[tuple[str, Difference]]:
    """The differences with the widest gaps, by run, faults first."""
    every = [(trial.name, difference) for trial in certificate.trials for difference in trial.differences]
    return sorted(every, key=lambda pair: (pair[1].near_tie, pair[1].gap is not None, -(pair[1].gap or 0.0)))[:SHOWN]


def gap(value: float | None) -> str:
    """A gap as text."""
    return "not among the likeliest" if value is None else f"{value:.3f}"


def token(text: str) -> str:
    """A token as text, with what can't be seen."""
    return text if text in ("(end)", "(cut off)") else repr(text)


def _beside(certificate: Certificate) -> str:
    """How the control compares: two runs without any technique aren't the same, either."""
    control = certificate.control
    if control.identical == control.prompts:
        return (
            f"Without any of it answers are the same with {streams(control.streams)} instead of {certificate.streams}."
        )
    return (
        f"Nor are answers without any of it always the same: with {streams(control.streams)} instead of {certificate.streams}, "
        f"{control.identical} of {control.prompts} are."
    )


def _row(trial: Trial) -> list[str]:
    low, high = trial.share.low, trial.share.high
    return [
        trial.name,
        f"{trial.identical} of {trial.prompts}",
        NOTHING if low is None or high is None else f"{100 * low:.0f}..{100 * high:.0f} %",
        NOTHING if trial.first_median is None else f"{trial.first_median:g} / {trial.first_min}",
        NOTHING if trial.gap_median is None else f"{trial.gap_median:.2f} / {trial.gap_max:.2f}",
        NOTHING if trial.drift_p99 is None else f"{trial.drift_p99:.3f}",
        _work(trial),
        trial.verdict,
    ]


def _work(trial: Trial) -> str:
    """What the technique did, as far as it is known."""
    if trial.guessed and trial.accepted is not None:
        return f"{trial.accepted:,} of {trial.guessed:,} guesses right"
    return NOTHING if trial.exercised is None else "yes" if trial.exercised else "no"


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1f} %"


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
