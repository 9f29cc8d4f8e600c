"""Exports against the schemas of the systems that read them, where a package has one: `make exports` brings the packages.

vLLM's own parser is asked where its environment is installed (`quicksilver engine add vllm`).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import artifacts
import pytest
import reading
import yaml

from quicksilver import deploy
from quicksilver.deploy import _options
from quicksilver.nouns import Settings, Speculation

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("QUICKSILVER_EXPORTS_PYTHON", ROOT / ".venv-exports" / "bin" / "python"))
schemas = pytest.mark.skipif(not PYTHON.exists(), reason="`make exports` brings the schemas")
VLLM = Path(os.environ.get("QUICKSILVER_VLLM_PYTHON", "none"))
SETTINGS = {
    "plain": artifacts.PLAIN,
    "lookup": artifacts.LOOKUP,
    "draft": Settings(speculation=Speculation(kind="draft", tokens=3, draft="draft"), threads=2),
}


def checked(kind: str, *files: Path, python: Path = PYTHON) -> str:
    command = [str(part) for part in (python, ROOT / "tests" / "deploy" / "schemas.py", kind, *files)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def written(folder: Path, to: str, engine: str, settings: Settings, **options: Any) -> Path:
    made = deploy.render(artifacts.write(folder / "artifact", engine, settings), to, **options)
    deploy.write(made, folder / "out")
    return folder / "out" / made.main


@schemas
def test_compose(tmp_path: Path) -> None:
    engines = ("vllm", "openvino", "llamacpp")
    checked(
        "compose",
        *(
            written(tmp_path / engine / name, "docker-compose", engine, settings)
            for engine in engines
            for name, settings in SETTINGS.items()
        ),
        written(tmp_path / "cpu", "docker-compose", "vllm", artifacts.LOOKUP, gpus=0, weights="org/mine"),
    )


@schemas
def test_kserve(tmp_path: Path) -> None:
    options = {"vllm": {}, "openvino": {"image": "r.example/qs:1"}}
    checked(
        "kserve",
        *(
            written(tmp_path / engine / name, "kserve", engine, settings, weights="pvc://claim/mine", **more)
            for engine, more in options.items()
            for name, settings in SETTINGS.items()
        ),
    )


@schemas
def test_ray(tmp_path: Path) -> None:
    checked(
        "ray",
        *(
            written(tmp_path / f"{name}-{gpus}", "ray-serve", "vllm", settings, gpus=gpus)
            for name, settings in SETTINGS.items()
            for gpus in (0, 1)
        ),
    )


@schemas
def test_properties(tmp_path: Path) -> None:
    settings = SETTINGS["lookup"].model_copy(update={"properties": {"seed": 1, "chat_template": "a: \\b é😀 =#!"}})
    file = written(tmp_path, "lmi", "vllm", settings)
    assert json.loads(checked("properties", file)) == reading.java_properties(file.read_text(encoding="utf-8"))


@schemas
@pytest.mark.parametrize(
    ("kind", "to", "break_it"),
    [
        ("compose", "docker-compose", lambda d: next(iter(d["services"].values())).update(comand=["x"])),
        ("kserve", "kserve", lambda d: d["spec"]["predictor"]["containers"][0].update(argz=["x"])),
        ("ray", "ray-serve", lambda d: d["applications"][0].update(import_paths="x")),
        ("ray", "ray-serve", lambda d: d["applications"][0]["args"]["llm_configs"][0].update(accelerator_type="H1000")),
    ],
)  # fmt: skip
def test_the_schemas_refuse_what_is_wrong(tmp_path: Path, kind: str, to: str, break_it: Any) -> None:
    file = written(tmp_path, to, "vllm", artifacts.PLAIN, **({"weights": "pvc://claim"} if to == "kserve" else {}))
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    break_it(document)
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(AssertionError, match=f"{file.name} is refused"):
        checked(kind, file)


@pytest.mark.skipif(not VLLM.exists(), reason="QUICKSILVER_VLLM_PYTHON names the Python of an environment with vLLM")
def test_vllm(tmp_path: Path) -> None:
    files = []
    for name, settings in SETTINGS.items():
        script = written(tmp_path / name, "vllm-args", "vllm", settings)
        words = shlex.split(script.read_text(encoding="utf-8").split("exec vllm serve ")[1].replace("\\\n", " "))
        asked = {"words": words, "config": str(script.with_name("vllm.yaml")), "frontend": sorted(_options.FRONTEND)}
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(asked), encoding="utf-8")
    checked("vllm", *files, python=VLLM)
