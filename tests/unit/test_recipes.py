"""Recipes as files: what is read, what is refused and how, and that writing and reading give the same recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver import techniques
from quicksilver.build.plan import START, order
from quicksilver.errors import BadInputError
from quicksilver.nouns import Recipe, Settings, Speculation, Technique
from quicksilver.recipes import SUFFIXES, dump_recipe, dump_text, from_document, from_flags, load_recipe, to_document
from quicksilver.techniques.awq import Awq
from quicksilver.techniques.draft import Draft
from quicksilver.techniques.prompt_lookup import PromptLookup

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "recipes").iterdir())
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_/", min_size=1, max_size=20)


def write(folder: Path, content: str, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def values(cls: type[Technique], name: str) -> st.SearchStrategy[Any]:
    """Values that a technique's field may have, from its annotation."""
    annotation = cls.model_fields[name].annotation
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if annotation is bool:
        return st.booleans()
    if annotation is Path:
        return names.map(lambda part: Path("/models") / part.strip("/"))
    tried = cls.space().get(name, ())
    return st.sampled_from([*tried, cls.model_fields[name].default])


@st.composite
def stacks(draw: st.DrawFn) -> list[Technique]:
    chosen = draw(st.lists(st.sampled_from(techniques.names()), max_size=4))
    classes = [techniques.find(name) for name in chosen]
    return [cls(**{name: draw(values(cls, name)) for name in cls.model_fields}) for cls in classes]


settings = st.builds(
    Settings,
    threads=st.integers(0, 64),
    max_streams=st.integers(1, 512),
    kv_cache_gb=st.floats(0, 1e30),
    kv_precision=text,
    prefix_caching=st.booleans(),
    speculation=st.none()
    | st.builds(Speculation, kind=st.sampled_from(["prompt_lookup", "draft"]), draft=st.none() | text),
    properties=st.dictionaries(
        text,
        text | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False),
        max_size=4,
    ),
)
recipes = st.builds(
    Recipe, model=names, techniques=stacks(), engine=st.sampled_from(["openvino", "fake"]), settings=settings
)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(recipe=recipes)
def test_what_is_written_is_read_back_as_the_same_recipe(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, recipe: Recipe
) -> None:
    path = tmp_path_factory.mktemp("recipe") / f"recipe{suffix}"
    dump_recipe(recipe, path)
    assert load_recipe(path) == recipe
    assert load_recipe(path).hash == recipe.hash


@given(recipe=recipes)
def test_a_recipe_in_an_artefact_or_a_result_is_read_back(recipe: Recipe) -> None:
    """These keep the technique's identity: its name under another key, and its revision."""
    document = recipe.model_dump(mode="json") | {
        "techniques": [
            {"technique": t.name(), "revision": t.revision, **t.model_dump(mode="json")} for t in recipe.techniques
        ]
    }
    assert from_document(document) == recipe


def test_toml_for_people() -> None:
    recipe = Recipe("m", [Awq(group_size=64), PromptLookup()], settings=Settings(threads=2, properties={"a b": 1.0}))
    assert dump_text(recipe) == (
        'model = "m"\nengine = "openvino"\n\n'
        '[[techniques]]\nname = "awq"\ngroup_size = 64\n\n'
        '[[techniques]]\nname = "prompt-lookup"\n\n'
        '[settings]\nthreads = 2\nproperties = { "a b" = 1.0 }\n'
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_can_be_stacked(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.techniques
    assert order(recipe.techniques, START | {"gguf grid"})
    assert "#" in path.read_text(encoding="utf-8")


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    content = 'model = "../tiny"\n[[techniques]]\nname = "draft"\nmodel = "small"\n'
    recipe = load_recipe(write(tmp_path, content))
    assert recipe.model == str(tmp_path.resolve().parent / "tiny")
    (draft,) = recipe.techniques
    assert isinstance(draft, Draft)
    assert draft.model == tmp_path.resolve() / "small"


def test_a_relative_path_is_written_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = to_document(Recipe("./tiny", [Draft(model=Path("small"))]))
    assert document["model"] == str(tmp_path / "tiny")
    assert document["techniques"] == [{"name": "draft", "model": str(tmp_path / "small")}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('modle = "m"', "'modle'; did you mean 'model'?"),
        ('model = "m"\ntechniques = ["awqq"]', "no technique named 'awqq'; did you mean 'awq'?"),
        ('model = "m"\ntechniques = [{name = "awq", grup_size = 3}]', "'grup_size'; did you mean 'group_size'?"),
        ('model = "m"\ntechniques = [{name = "prompt-lookup", tokens = 99}]', "prompt-lookup: tokens: "),
        ('model = "m"\ntechniques = [{tokens = 3}]', "A technique needs a name."),
        ('model = "m"\ntechniques = [3]', "and this is a number."),
        ('model = "m"\ntechniques = "awq"', "techniques is a list of names or tables, and this is a text."),
        ('model = "m"\nengine = "openvinno"', "no engine named 'openvinno'; did you mean 'openvino'?"),
        ('model = "m"\n[settings]\nthread = 2', "'thread'; did you mean 'threads'?"),
        ('model = "m"\n[settings]\nthreads = "many"', "settings: threads: "),
        ('model = "m"\nsettings = 3', "settings is a table, and this is a number."),
        ("model = 3", "a recipe needs a model"),
        ("techniques = []", "a recipe needs a model"),
        ('model = "m', "this is not TOML: "),
        ("", "a recipe needs a model"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_in_one_sentence(tmp_path: Path, content: str, said: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(BadInputError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert said in message
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("model: m\nmodel: n", "the key 'model' stands twice (line 1, column 1)"),
        ("model: [m", "this is not YAML: "),
        ("- model", "and this is a list."),
        ("", "and this is nothing."),
        ("model: m\ntechniques: [{name: awq, bits: 5}]", "awq: bits: "),
        ("model: !!python/object:os.system m", "this is not YAML: "),
    ],
)
def test_yaml_that_is_wrong_is_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(BadInputError, match=r".*") as caught:
        load_recipe(write(tmp_path, content, "r.yaml"))
    assert said in str(caught.value)


@given(content=st.text(max_size=60), suffix=st.sampled_from(SUFFIXES))
def test_any_text_is_a_recipe_or_refused(tmp_path_factory: pytest.TempPathFactory, content: str, suffix: str) -> None:
    path = tmp_path_factory.mktemp("any") / f"r{suffix}"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        load_recipe(path)
    except BadInputError as error:
        assert str(path) in str(error)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path, 'model = "m"', "int8.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes(b'model = "\xff"')
    for name, said in {
        "int9.toml": "int8.toml'?",
        "other.yaml": "There is no recipe at ",
        "folder.toml": "is a directory",
        "latin.toml": "is not UTF-8",
        "int8.txt": "its name has to end in .toml, .yaml, .yml or .json",
    }.items():
        with pytest.raises(BadInputError) as caught:
            load_recipe(tmp_path / name)
        assert said in str(caught.value)


def test_flags_say_the_same_as_a_file(tmp_path: Path) -> None:
    pairs = ["awq.group_size=64", "awq.scale_estimation=false", "settings.threads=2", "prompt_lookup.tokens=5"]
    recipe = from_flags("m", ["awq", "prompt-lookup"], pairs)
    assert recipe == Recipe(
        "m", [Awq(group_size=64, scale_estimation=False), PromptLookup(tokens=5)], settings=Settings(threads=2)
    )


@pytest.mark.parametrize(
    ("names", "pairs", "said"),
    [
        (["awq"], ["awq.grup_size=64"], "did you mean 'group_size'?"),
        (["awq"], ["awq.group_size"], "has to look like awq.group_size=64"),
        (["awq"], ["int8.mode=symmetric"], "add --technique int8."),
        (["awq"], ["int88.mode=symmetric"], "did you mean 'int8'?"),
        (["awq"], ["awq.group_size=[1"], "awq: group_size: "),
        (["aqw"], [], "did you mean 'awq'?"),
        ([], ["settings.thread=2"], "did you mean 'threads'?"),
    ],
)
def test_flags_that_are_wrong_are_refused(names: list[str], pairs: list[str], said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        from_flags("m", names, pairs)
    assert said in str(caught.value)
