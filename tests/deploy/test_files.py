"""What is exported for each target, to the letter, and that it reads back as what was meant."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import artifacts
import pytest
import reading
from hypothesis import given
from hypothesis import strategies as st

from quicksilver import deploy, environments
from quicksilver.deploy import _options
from quicksilver.deploy._deployment import plan
from quicksilver.engines.vllm.launch import KV_TYPES, MODULE, Launch, Machine
from quicksilver.nouns import Settings, Speculation
from quicksilver.nouns.export import Export

GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, tuple[str, str, Settings, dict[str, Any]]] = {
    "vllm-args-plain": ("vllm-args", "vllm", artifacts.PLAIN, {}),
    "vllm-args-lookup": ("vllm-args", "vllm", artifacts.LOOKUP, {"weights": "s3://bucket/mine"}),
    "lmi-plain": ("lmi", "vllm", artifacts.PLAIN, {}),
    "lmi-lookup": ("lmi", "vllm", artifacts.LOOKUP, {"weights": "hf://org/mine:main"}),
    "docker-compose-vllm": ("docker-compose", "vllm", artifacts.LOOKUP, {}),
    "docker-compose-cpu": ("docker-compose", "vllm", artifacts.PLAIN, {"weights": "org/mine", "gpus": 0}),
    "docker-compose-openvino": ("docker-compose", "openvino", artifacts.PLAIN, {}),
    "docker-compose-llamacpp": ("docker-compose", "llamacpp", artifacts.PLAIN, {"name": "mine"}),
    "docker-compose-native": ("docker-compose", "llamacpp", Settings(properties={"build": "native"}), {}),
    "kserve-vllm": ("kserve", "vllm", artifacts.LOOKUP, {"weights": "pvc://models/mine"}),
    "kserve-openvino": ("kserve", "openvino", artifacts.PLAIN, {"weights": "s3://b/m", "image": "r.example/qs:1"}),
    "ray-serve-plain": ("ray-serve", "vllm", artifacts.PLAIN, {"weights": "gs://bucket/mine"}),
    "ray-serve-lookup": ("ray-serve", "vllm", artifacts.LOOKUP, {"gpus": 0}),
}


def export(folder: Path, case: str) -> Export:
    to, engine, settings, options = CASES[case]
    return deploy.render(artifacts.write(folder, engine, settings), to, **options)


def test_every_target_has_a_golden_file() -> None:
    assert {case[0] for case in CASES.values()} == set(deploy.names())


def launched(artifact: Path, settings: Settings, machine: Machine, *_: Any, cache: Path, **__: Any) -> Launch:
    """Arguments that stay as they are: those of the engine are its own tests' matter."""
    words = ["--model", str(artifact), "--served-model-name", artifacts.MODEL, "--host", "127.0.0.1", "--port", "0"]
    words += ["--dtype", "bfloat16", "--max-num-seqs", str(settings.max_streams), "--shutdown-timeout", "8"]
    words += ["--uvicorn-log-level", "warning", "--max-num-batched-tokens", str(settings.max_batched_tokens)]
    words += ["--enable-prefix-caching" if settings.prefix_caching else "--no-enable-prefix-caching"]
    if settings.speculation is not None:
        words += ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 5}']
    variables = {"VLLM_CACHE_ROOT": str(cache), "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    if machine.device == "cpu":
        variables["OMP_NUM_THREADS"] = str(settings.threads or machine.cores)
    return Launch(("-m", MODULE, *words), variables)


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quicksilver.engines.vllm.launch.compile_launch", launched)
    made = export(tmp_path / "made", case)
    for name, text in made.files.items():
        if name == "serve.lock":
            continue
        check(f"{case}.{name}", text.replace(str(tmp_path / "made"), "/srv/artefact"))


def check(name: str, text: str) -> None:
    file = GOLDEN / name
    if os.environ.get("QUICKSILVER_UPDATE_GOLDEN") == "1":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), f"{name} differs; if it should, set QUICKSILVER_UPDATE_GOLDEN=1"


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {
        f"{case}.{name}" for case, (to, *_) in CASES.items() for name in _names(case, to)
    }


def _names(case: str, to: str) -> list[str]:
    own = case in ("docker-compose-openvino", "docker-compose-llamacpp", "docker-compose-native")
    return {
        "vllm-args": ["serve.sh", "vllm.yaml"],
        "lmi": ["serving.properties", "lmi.env"],
        "docker-compose": ["compose.yaml", *(["Dockerfile"] if own else [])],
        "kserve": ["inferenceservice.yaml"],
        "ray-serve": ["serve.yaml"],
    }[to]


def test_the_image_installs_what_is_locked_for_servers(tmp_path: Path) -> None:
    made = export(tmp_path / "made", "docker-compose-openvino")
    locked = (environments.folder_of_locks() / "serve.lock").read_text(encoding="utf-8")
    assert made.files["serve.lock"] == locked
    assert "serve.lock" in made.files["Dockerfile"]


def test_a_draft_goes_by_its_place_beside_the_weights(tmp_path: Path) -> None:
    settings = Settings(speculation=Speculation(kind="draft", tokens=3, draft="draft"))
    artifact = artifacts.write(tmp_path / "a", "vllm", settings)
    made = deploy.render(artifact, "kserve", weights="s3://b/m")
    assert "/mnt/models/draft" in made.text
    assert str(tmp_path) not in made.text


def test_the_shell_script_is_one(tmp_path: Path) -> None:
    made = deploy.render(
        artifacts.write(tmp_path / "it's a $HOME", "vllm", artifacts.LOOKUP, label="`id`\nrm -rf /"), "vllm-args"
    )
    (written, _) = deploy.write(made, tmp_path / "out")
    assert os.access(written, os.X_OK)
    assert "rm" not in [line.split()[0] for line in made.text.splitlines() if line.strip()]
    program = written.read_text(encoding="utf-8").replace("exec vllm", "printf '%s\\0'")
    said = subprocess.run(["sh"], input=program, capture_output=True, text=True, check=True).stdout.split("\0")
    assert said[:2] == ["serve", str(tmp_path / "it's a $HOME")]
    assert _options.read(said[2:-1]) == reading.shell(made)[0]


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\x85\u2028\u2029"), min_size=1)
# Values as vLLM's arguments have them: what looks like a number is one.
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False).filter(lambda f: re.fullmatch(r"-?[0-9][0-9.e+-]*", str(f))),
    TEXT.filter(lambda t: _options.read([f"--x={t}"])["x"] == t and t not in ("true", "false")),
    st.dictionaries(TEXT, st.one_of(st.booleans(), st.integers(), TEXT, st.none()), max_size=3),
)
NAMES = st.from_regex(r"(?!no-)[a-z]{2,8}(-[a-z]{2,8})?", fullmatch=True).filter(
    lambda n: n not in _options.FRONTEND and n not in reading.BESIDE and n not in ("model", "revision", "engine")
)


@given(st.dictionaries(NAMES, VALUES | st.lists(st.from_regex(r"[a-z]+", fullmatch=True), min_size=2), max_size=6))
def test_options_read_back(options: dict[str, Any]) -> None:
    assert _options.read(_options.write(options)) == options


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return artifacts.write(tmp_path_factory.mktemp("artifact"), "vllm", artifacts.PLAIN)


@pytest.mark.parametrize("to", reading.READERS)
@given(data=st.data())
def test_whatever_the_arguments_they_read_back(to: str, artifact: Any, data: st.DataObject) -> None:
    options = data.draw(st.dictionaries(NAMES, VALUES, max_size=5)) | {"served-model-name": artifacts.MODEL}
    environment = data.draw(st.dictionaries(st.from_regex(r"VLLM_[A-Z]{1,5}", fullmatch=True), TEXT, max_size=2))
    target = deploy.find(to)
    planned = plan(artifact, target, weights="s3://b/m")
    planned = dataclasses.replace(planned, options=options, environment=environment)
    files = target.files(planned, ["a note\nwith a break"])
    made = Export(to=to, key="", label="", model="", engine="vllm", weights="", main=target.main, files=files)
    for read in reading.READERS[to]:
        assert read(made) == (options, environment)


SETTINGS = st.builds(
    Settings,
    max_streams=st.integers(1, 512),
    max_batched_tokens=st.integers(512, 16384),
    kv_precision=st.sampled_from(["default", *KV_TYPES]),
    prefix_caching=st.booleans(),
    speculation=st.none()
    | st.builds(
        Speculation,
        kind=st.just("prompt_lookup"),
        tokens=st.integers(1, 32),
        max_ngram=st.integers(1, 8),
        adapts=st.just(value=False),
    ),
)


@pytest.mark.parametrize("to", reading.READERS)
@given(settings=SETTINGS)
def test_settings_read_back(to: str, artifact: Any, settings: Settings) -> None:
    made = deploy.render(artifact.model_copy(update={"settings": settings}), to, weights="s3://b/m")
    for read in reading.READERS[to]:
        assert _settings(read(made)[0]) == settings


def _settings(options: dict[str, Any]) -> Settings:
    """Name vLLM's options as ours are named."""
    guessing = options.get("speculative-config")
    types = {theirs: ours for ours, theirs in KV_TYPES.items()}
    return Settings(
        max_streams=options["max-num-seqs"],
        max_batched_tokens=options["max-num-batched-tokens"],
        kv_precision=types[options["kv-cache-dtype"]] if "kv-cache-dtype" in options else "default",
        prefix_caching=options["enable-prefix-caching"],
        speculation=guessing
        and Speculation(
            kind="prompt_lookup",
            tokens=guessing["num_speculative_tokens"],
            max_ngram=guessing["prompt_lookup_max"],
            adapts=False,
        ),
    )
