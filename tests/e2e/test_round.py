"""A round of races on the fake engine: how long answers are, and who goes first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from quicksilver import api
from quicksilver.nouns import Prompt, Recipe, Sample
from quicksilver.nouns.workload import Message
from quicksilver.search.events import Event
from quicksilver.search.run import Raced, Run, open_run
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.testing.tiny import make_tiny_model

PROMPTS = [Prompt(id=f"p{n}", messages=(Message(role="user", content=f"What is {n}?"),)) for n in range(12)]


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Raced]]:
    """Three models that answer differently, as rounded weights do: the fake engine's answers follow from the tokens of a prompt."""
    base = tmp_path_factory.mktemp("round")
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(base / "home"))
        for number, begin in enumerate(("", "Now. ", "Then. ")):
            folder = make_tiny_model(base / f"model-{number}")
            template = folder / "chat_template.jinja"
            template.write_text(begin + template.read_text(encoding="utf-8"), encoding="utf-8")
            artifact = api.build(Recipe(str(folder), engine="fake"))
            made.append(Raced(f"r{number}", f"model {number}", artifact))
        yield made


def measured(run: Run, entries: Sequence[Raced], number: int) -> list[dict[tuple[int, str], Sample]]:
    """Return what was measured of each entry in a round, by streams and prompt."""
    return [{(s.concurrency, s.prompt_id): s for s in run.samples(e.recipe, [number])} for e in entries]


def lengths(samples: dict[tuple[int, str], Sample]) -> dict[tuple[int, str], int]:
    return {key: sample.completion_tokens for key, sample in samples.items()}


@pytest.mark.parametrize("together", [True, False])
def test_a_short_round_compares_answers_of_the_same_lengths(
    entries: list[Raced], tmp_path: Path, *, together: bool
) -> None:
    run = open_run(tmp_path, "round", {}, run_id="round", budget_s=600, progress=lambda _: None)
    loads: dict[int, Sequence[Prompt]] = {1: PROMPTS[:3], 4: PROMPTS[3:]}
    for number in (0, 1):
        run.round(number, entries, loads, 100, PROMPTS[:1], phase="race", together=together, short=True)
    run.round(2, entries, loads, 100, PROMPTS[:1], phase="final", together=together)
    for number in (0, 1, 2):
        first, *others = map(lengths, measured(run, entries, number))
        assert first.keys() == {(streams, prompt.id) for streams, load in loads.items() for prompt in load}
        assert len(set(first.values())) > 1
        assert all((other == first) == (number < 2) for other in others)


def test_the_first_leads_and_the_others_go_there_and_back(entries: list[Raced], tmp_path: Path) -> None:
    said: list[Event] = []
    run = open_run(tmp_path, "round", {}, run_id="round", budget_s=600, progress=said.append)
    heard = []
    for number in (0, 1):
        said.clear()
        run.round(number, entries, {1: PROMPTS[:1], 2: PROMPTS[1:5]}, 100, PROMPTS[:1], phase="race", short=True)
        heard.append(list(dict.fromkeys(event.text.partition(" at ")[0] for event in said)))
    assert heard == [["model 0", "model 1", "model 2"], ["model 0", "model 2", "model 1"]]


def test_where_there_is_room_for_no_more_the_rest_is_left_out(entries: list[Raced], tmp_path: Path) -> None:
    for together in (True, False):
        run = open_run(tmp_path / str(together), "round", {}, run_id="round", budget_s=600, progress=lambda _: None)
        loads: dict[int, Sequence[Prompt]] = {1: PROMPTS[:3], 4: PROMPTS[3:]}
        heard: list[float] = []

        def most(seconds: float, heard: list[float] = heard) -> int:
            heard.append(seconds)
            return 1

        run.round(0, entries, loads, 100, PROMPTS[:1], phase="race", together=together, short=True, most=most)
        assert len(heard) == 1
        assert run.finished_rounds() == {0: ["r0", "r1"]}
        first, second, left_out = map(lengths, measured(run, entries, 0))
        assert len(first) == len(PROMPTS)
        assert second == first
        assert not left_out
