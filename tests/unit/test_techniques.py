"""Techniques: found by their files, made of documents, and refused in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver import techniques
from quicksilver.errors import BadInputError
from quicksilver.nouns import Recipe
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.sources.vocabulary import vocabulary
from quicksilver.techniques import find, make, names
from quicksilver.testing.tiny import make_tiny_gguf, make_tiny_model


def test_names_are_the_files_and_importing_waits() -> None:
    here = Path(techniques.__file__).parent
    files = {p.stem.replace("_", "-") for p in here.glob("*.py") if not p.stem.startswith("_")}
    assert set(names()) == files
    script = (
        "import sys\nfrom quicksilver import techniques\ntechniques.names()\n"
        "assert 'quicksilver.techniques.awq' not in sys.modules\n[techniques.find(n) for n in techniques.names()]\n"
        "print([m for m in ('torch', 'openvino', 'nncf', 'transformers') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("awk", r"There is no technique named 'awk'; did you mean 'awq'\?"),
        ("int16", r"There is no technique named 'int16'; did you mean 'int\d'\?"),
        ("", r"A technique needs a name\."),
        ({}, r"A technique needs a name\."),
        ({"name": 4}, r"A technique needs a name\."),
        ({"name": "awq", "groupsize": 32}, r"There is no field of awq named 'groupsize'; did you mean 'group_size'\?"),
        ({"name": "awq", "bits": 3}, r"awq: bits: Input should be 4\."),
        (
            {"name": "prompt-lookup", "tokens": 0},
            r"prompt-lookup: tokens: Input should be greater than or equal to 1\.",
        ),
        ({"name": "mixed", "bits": 8}, r"mixed: bits: Input should be less than 8\."),
        ({"name": "draft"}, r"draft: model: Field required\."),
        ({"name": "int8", "mode": "lopsided"}, r"int8: mode: Input should be 'asymmetric' or 'symmetric'\."),
    ],
)
def test_what_cannot_be_made_is_said_in_one_sentence(document: str | dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInputError, match=f"^{sentence}$"):
        make(document)


@given(name=st.sampled_from([n for n in names() if n not in ("draft", "eagle")]))
def test_names_are_forgiving_of_case_and_of_underscores(name: str) -> None:
    assert make(name.upper().replace("-", "_")) == make(name) == make({"technique": name, "revision": 7})
    assert find(name).name() == name


@given(bits=st.floats(4.01, 7.99), awq=st.booleans(), group_size=st.sampled_from([-1, 32, 64]))
def test_a_technique_comes_back_from_its_document(bits: float, awq: bool, group_size: int) -> None:
    technique = make({"name": "mixed", "bits": bits, "awq": awq, "group_size": group_size})
    assert make(technique.document()) == technique
    assert make(technique.identity()) == technique


def test_a_label_names_a_draft_by_its_folder_alone() -> None:
    assert make({"name": "draft", "model": "/some/where/small", "tokens": 3}).label == "draft(model=small, tokens=3)"


def test_a_draft_is_itself_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    make_tiny_model(tmp_path / "a", layers=1)
    make_tiny_model(tmp_path / "b", layers=1)
    one, other = (make({"name": "draft", "model": str(tmp_path / name)}) for name in "ab")
    assert one.hash == other.hash
    assert make(one.document()) == one
    monkeypatch.chdir(tmp_path)
    assert make({"name": "draft", "model": "a"}).hash == one.hash
    # A recipe with a draft that is gone still has a name.
    assert Recipe("m", [make({"name": "draft", "model": "gone"})]).hash


def test_properties_of_several_techniques_are_joined_with_the_users() -> None:
    from quicksilver.nouns import Settings

    recipe = Recipe(
        "m",
        [make("int8"), make({"name": "activations", "group_size": 64}), make("kv-cache")],
        settings=Settings(properties={"INFERENCE_PRECISION_HINT": "f32"}, threads=1),
    )
    settings = recipe.effective_settings()
    assert settings.properties == {"INFERENCE_PRECISION_HINT": "f32"}
    assert settings.activation_group_size == 64
    assert (settings.threads, settings.kv_precision) == (1, "u8")


# Vocabularies


def test_a_gguf_has_the_vocabulary_of_the_directory_that_it_becomes(tmp_path: Path) -> None:
    """A draft is compared with its target before anything is converted."""
    folder = make_tiny_model(tmp_path / "hf")
    source = make_tiny_gguf(tmp_path / "tiny.gguf")
    assert vocabulary(folder) == vocabulary(source)
    assert vocabulary(folder)["<|im_end|>"] == 2
    assert sorted(vocabulary(folder).values()) == list(range(512))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "has no tokenizer.json"),
        ("{", "can't be read"),
        ("[]", "holds no vocabulary"),
        ('{"model": {}}', "holds no vocabulary"),
        ('{"model": {"vocab": [1, 2]}}', "holds no vocabulary"),
        ('{"model": {"vocab": {}}, "added_tokens": [{"id": 1}]}', "holds no vocabulary"),
    ],
)
def test_a_tokenizer_without_a_vocabulary_is_refused(text: str | None, sentence: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match=sentence):
        vocabulary(tmp_path)


def test_the_ids_of_a_unigram_vocabulary_are_its_order(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(
        '{"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": [{"content": "<s>", "id": 7}]}',
        encoding="utf-8",
    )
    assert vocabulary(tmp_path) == {"a": 0, "b": 1, "<s>": 7}
