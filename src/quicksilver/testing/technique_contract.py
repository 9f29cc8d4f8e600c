"""TechniqueContract: what every technique has to do, as a pytest class to inherit.

    class TestMine(TechniqueContract):
        @pytest.fixture(scope="class")
        @classmethod
        def technique(cls): return Mine()

It is described, planned, built for the engine on a tiny model, and served: that takes some 10 seconds for one that builds.
"""

from __future__ import annotations

import inspect
import itertools
import json
import math
import os
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from quicksilver import engines, techniques
from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.build import store
from quicksilver.nouns import Artifact, Engine, Model, Prompt, Recipe, Settings, Technique
from quicksilver.recipes import from_document, to_document
from quicksilver.sources import models
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.testing.engine_contract import ask
from quicksilver.testing.large import LARGE
from quicksilver.testing.tiny import make_tiny_gguf, make_tiny_model

GRID = "gguf grid"
TEXT = (
    "The question is which of these answers is right, and the answer is that some of them are and others are not. Every "
    "model reads the words before it and predicts the word that comes next; what it has learned stands in its weights."
)
CALIBRATION = tuple(
    Prompt(id=str(n), prompt=f"Of the {7 * n} houses behind the river, number {n} {words}.")
    for n, words in enumerate(
        ("had a school", "was very old", "sold paper and glass", "stood under the stone bridge") * 2
    )
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a served artefact says."""

    text: str
    logprobs: list[float]


class TechniqueContract:
    """Inherit it, and give the fixture `technique`."""

    engine: ClassVar[str] = "openvino"
    settings: ClassVar[Settings] = Settings(properties={"INFERENCE_PRECISION_HINT": "f32"})
    """Engine settings under which two builds of the same weights answer alike."""
    least_correlation: ClassVar[float] = 0.9
    """Of the log-probabilities with the as-is model's, which a build that mixes weights up falls far below."""

    @pytest.fixture(scope="class")
    @classmethod
    def technique(cls) -> Technique:
        """Return the technique to prove. To be overridden."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def home(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        """Build in a folder that the whole session shares, so that what several need is built once."""
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if re.fullmatch(r"popen-gw\d+", base.name) else base) / "techniques-home"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(HOME_VARIABLE, str(folder))
            yield folder

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, technique: Technique, home: Path) -> Model:
        """Return a tiny model that the technique can be applied to."""
        folder = home / f"models-{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        if GRID in technique.needs:
            return models.resolve(str(make_tiny_gguf(folder / "tiny.gguf", weights="Q4_1")))
        return models.resolve(str(make_tiny_model(folder / "tiny")))

    @pytest.fixture(scope="class")
    @classmethod
    def recipe(cls, technique: Technique, model: Model) -> Recipe:
        """Return the smallest recipe that the technique can stand in."""
        return Recipe(str(model.path), [*before(technique), technique], engine=cls.engine, settings=cls.settings)

    @pytest.fixture(scope="class")
    @classmethod
    def artifact(cls, recipe: Recipe, model: Model) -> Artifact:
        """Build the recipe."""
        return building.build(planning.make(recipe, model, CALIBRATION))

    @pytest.fixture(scope="class")
    @classmethod
    def answer(cls, artifact: Artifact) -> Answer:
        """Serve the artefact."""
        return answer(engines.find(cls.engine), artifact)

    @pytest.fixture(scope="class")
    @classmethod
    def as_is(cls, model: Model, home: Path) -> Answer:
        """Serve the same model as it is, once a session."""
        kept = home / f"as-is-{cls.engine}-{model.fingerprint[:16]}.json"
        if not kept.is_file():
            recipe = Recipe(str(model.path), engine=cls.engine, settings=cls.settings)
            given = answer(engines.find(cls.engine), building.build(planning.make(recipe, model)))
            part = kept.with_suffix(f".{id(given)}")
            part.write_text(json.dumps([given.text, given.logprobs]), encoding="utf-8")
            part.replace(kept)
        return Answer(*json.loads(kept.read_text(encoding="utf-8")))

    # What it says of itself

    def test_its_name_is_its_files(self, technique: Technique) -> None:
        cls = type(technique)
        assert Path(inspect.getfile(cls)).stem.replace("_", "-") == technique.name()
        assert technique.name() in techniques.names()
        assert techniques.find(technique.name()) is cls

    def test_its_docstring_begins_with_a_sentence_of_one_line(self, technique: Technique) -> None:
        first, *rest = (type(technique).__doc__ or "").strip().splitlines()
        assert re.fullmatch(r"[A-Z].+\.", first)
        assert not rest or not rest[0].strip()

    def test_every_field_is_described(self, technique: Technique) -> None:
        for name, info in type(technique).model_fields.items():
            assert info.description, name

    def test_what_it_takes_it_needs_and_something_gives(self, technique: Technique) -> None:
        given = planning.START.union({GRID}, *(techniques.find(name).gives for name in techniques.names()))
        assert technique.takes <= technique.needs <= given

    def test_the_values_of_its_search_space_are_valid(self, technique: Technique) -> None:
        cls, space = type(technique), type(technique).space()
        assert all(space.values())
        for values in itertools.product(*space.values()):
            made = cls.model_validate(technique.model_dump() | dict(zip(space, values, strict=True)))
            assert {name: getattr(made, name) for name in space} == dict(zip(space, values, strict=True))

    def test_its_label_says_which_fields_were_chosen(self, technique: Technique) -> None:
        cls = type(technique)
        labels = {}
        for values in itertools.product(*cls.space().values()):
            made = cls.model_validate(technique.model_dump() | dict(zip(cls.space(), values, strict=True)))
            labels[made.label] = made
            found = re.fullmatch(r"([a-z0-9-]+)(?:\((.+)\))?", made.label)
            assert found
            fields = dict(part.split("=", 1) for part in found[2].split(", ")) if found[2] else {}
            read = {key: yaml.safe_load(text) for key, text in fields.items()}
            # A label shows the last name of a path.
            read |= {key: value for key, value in made if isinstance(value, Path)}
            assert techniques.make({"name": found[1], **read}) == made
        assert len(labels) == len(list(itertools.product(*cls.space().values())))

    def test_its_json_schema_describes_its_fields(self, technique: Technique) -> None:
        schema = json.loads(json.dumps(type(technique).model_json_schema()))
        assert schema["properties"].keys() == type(technique).model_fields.keys() if schema.get("properties") else True
        assert schema["additionalProperties"] is False
        assert all(entry["description"] for entry in schema.get("properties", {}).values())

    def test_it_comes_back_from_json_and_from_a_recipe(self, technique: Technique) -> None:
        assert techniques.make(json.loads(json.dumps(technique.document()))) == technique
        recipe = Recipe("some/model", [technique], engine=self.engine)
        assert from_document(json.loads(json.dumps(to_document(recipe)))) == recipe

    def test_it_is_a_value(self, technique: Technique) -> None:
        twin = techniques.make(technique.document())
        assert twin == technique
        assert hash(twin) == hash(technique)
        assert twin.hash == technique.hash
        json.dumps(technique.identity())

    def test_one_that_builds_states_its_memory_and_disk(self, technique: Technique, model: Model) -> None:
        for state in (technique.build_memory_mb, technique.disk_mb):
            tiny, large = state(model.facts), state(LARGE)
            assert (tiny > 0) == (large > 0) == technique.builds
            assert math.isfinite(large)
            assert tiny <= large
        size = technique.size_mb(LARGE)
        assert size is None or (technique.builds and 8e9 / 4 / 1e6 < size <= 8e9 * 4 / 1e6)

    def test_one_that_builds_nothing_sets_something(self, technique: Technique) -> None:
        before, after = Recipe("m", engine=self.engine), Recipe("m", [technique], engine=self.engine)
        compiles = "compiled" in technique.gives  # that is the engine's work, when all else is built
        assert technique.builds or compiles or after.effective_settings() != before.effective_settings()

    # What it does

    def test_it_has_a_legal_plan(self, technique: Technique, recipe: Recipe, model: Model) -> None:
        plan = planning.make(recipe, model, CALIBRATION)
        assert [step.technique for step in plan.steps if step.technique == technique] == [technique] * technique.builds

    def test_it_builds_and_its_estimate_of_memory_holds(
        self, technique: Technique, recipe: Recipe, model: Model, artifact: Artifact
    ) -> None:
        assert store.verify(artifact.key) == []
        assert artifact.label == recipe.label
        for step in planning.make(recipe, model, CALIBRATION).steps:
            if step.technique == technique:
                assert step.built
                assert 0 < step.memory_mb <= engines.find(self.engine).build_needs_mb(technique, model.facts)[0]

    def test_what_it_builds_is_served_and_is_the_same_model(
        self, technique: Technique, answer: Answer, as_is: Answer
    ) -> None:
        if not engines.find(self.engine).abilities.prompt_logprobs:
            # Random weights say nothing that survives rounding: that it answers is all that can be told.
            assert answer.text
            return
        assert len(answer.logprobs) == len(as_is.logprobs) > 40
        assert statistics.correlation(answer.logprobs, as_is.logprobs) > self.least_correlation
        if not (technique.changes_output or "float weights" in technique.gives):
            assert answer.text == as_is.text


def before(technique: Technique) -> list[Technique]:
    """Return techniques that give what the technique needs and no model has, the plainest first."""
    found: list[Technique] = []
    for what in sorted(technique.needs - planning.START - {GRID}):
        classes = [techniques.find(name) for name in techniques.names()]
        givers = [c for c in classes if what in c.gives and c is not type(technique)]
        giver = min(givers, key=lambda c: (c.calibrated, not c.needs <= planning.START, c.name()))
        if giver.name() != "as-is":
            found.append(giver())
    return found


def answer(engine: Engine, artifact: Artifact) -> Answer:
    """Serve an artefact, and return a greedy answer and the log-probabilities of a text's own tokens, in nats."""
    with engine.serve(artifact.path, artifact.settings) as endpoint:
        body: dict[str, Any] = {"prompt": TEXT, "temperature": 0, "ignore_eos": True}
        # First, because of a prompt whose beginning is cached an engine may not know them.
        told = engine.abilities.prompt_logprobs
        scored = ask(endpoint, "/completions", body | {"max_tokens": 1, "echo": True, "logprobs": 1}) if told else None
        said, again = (ask(endpoint, "/completions", body | {"max_tokens": 8}) for _ in range(2))
        assert said["usage"]["completion_tokens"] == 8
        assert said["choices"] == again["choices"]
    # The first token has none before it, the last is the answer's.
    logprobs = scored["choices"][0]["logprobs"]["token_logprobs"][1:-1] if scored else []
    return Answer(said["choices"][0]["text"], logprobs)
