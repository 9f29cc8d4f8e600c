"""Exports read as the systems read them that they are for, each by the rules of its own format."""

from __future__ import annotations

import re
import shlex
from typing import Any

import yaml

from quicksilver.deploy import _options
from quicksilver.nouns.export import Export

Read = tuple[dict[str, Any], dict[str, str]]
"""vLLM's options but for where the model is, and the environment."""
BESIDE = ("host", "port", "load-format", "revision")


def shell(export: Export) -> Read:
    """A POSIX shell: words, and variables that are exported."""
    lines = [line for line in export.files["serve.sh"].splitlines() if not line.startswith("#")]
    words = shlex.split("\n".join(lines).replace("\\\n", " "))
    begin = words.index("exec")
    assert words[begin : begin + 3] == ["exec", "vllm", "serve"]
    variables = dict(word.split("=", 1) for word in words[:begin] if word != "export")
    return _vllm(words[begin + 4 :]), variables


def config(export: Export) -> Read:
    """`vllm serve --config`: each key an option; its environment is elsewhere."""
    document = yaml.safe_load(export.files["vllm.yaml"])
    document.pop("model")
    words: list[str] = []
    for key, value in document.items():
        words += _options.write({key: value})
    return _vllm(words), shell(export)[1]


def properties(export: Export) -> Read:
    """java.util.Properties, as LMI gets it."""
    found = java_properties(export.files["serving.properties"])
    assert found.pop("engine") == "Python"
    return _lmi({key.removeprefix("option."): value for key, value in found.items()}), _environment(export)[1]


def environment(export: Export) -> Read:
    """`docker run --env-file`: a variable a line, taken as it is; LMI lowers the names behind OPTION_."""
    options, variables = _environment(export)
    assert options.pop("engine") == "Python"
    return _lmi(options), variables


def compose(export: Export) -> Read:
    """Compose, which puts variables in."""
    (service,) = yaml.safe_load(export.text)["services"].values()
    assert service["entrypoint"] == ["vllm", "serve"]
    words = [_composed(word) for word in service["command"]]
    variables = {
        name: _composed(value)
        for name, value in service["environment"].items()
        if name not in ("VLLM_API_KEY", "HF_TOKEN")
    }
    return _vllm(words[1:]), variables


def kserve(export: Export) -> Read:
    """Kubernetes, which puts variables in too."""
    (container,) = yaml.safe_load(export.text)["spec"]["predictor"]["containers"]
    assert container["command"] == ["vllm", "serve"]
    assert container["args"][0] == "/mnt/models"
    words = [_expanded(word) for word in container["args"][1:]]
    own = ("STORAGE_URI", "VLLM_API_KEY")
    return _vllm(words), {e["name"]: _expanded(e["value"]) for e in container["env"] if e["name"] not in own}


def ray(export: Export) -> Read:
    """Ray Serve: Python arguments."""
    (application,) = yaml.safe_load(export.text)["applications"]
    (llm,) = application["args"]["llm_configs"]
    options = {name.replace("_", "-"): value for name, value in llm["engine_kwargs"].items()}
    options["served-model-name"] = llm["model_loading_config"]["model_id"]
    return options, llm.get("runtime_env", {}).get("env_vars", {})


READERS = {
    "vllm-args": (shell, config),
    "lmi": (properties, environment),
    "docker-compose": (compose,),
    "kserve": (kserve,),
    "ray-serve": (ray,),
}


def java_properties(text: str) -> dict[str, str]:
    """Read properties by the rules of `java.util.Properties.load`, for lines that go on nowhere."""
    found = {}
    for line in text.splitlines():
        if not line or line[0] in "#!":
            continue
        key = re.match(r"(?:[^\\=: ]|\\.)*", line)
        assert key is not None
        value = re.sub(r"^[ \t\f]*[=:]?[ \t\f]*", "", line[key.end() :])
        found[_unescaped(key[0])] = _unescaped(value)
    return found


def _unescaped(text: str) -> str:
    marks = {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}
    plain = re.sub(r"\\(u([0-9a-fA-F]{4})|.)", lambda m: chr(int(m[2], 16)) if m[2] else marks.get(m[1], m[1]), text)
    return plain.encode("utf-16-be", "surrogatepass").decode("utf-16-be")


def _environment(export: Export) -> tuple[dict[str, str], dict[str, str]]:
    lines = [line for line in export.files["lmi.env"].splitlines() if not line.startswith("#")]
    variables = dict(line.split("=", 1) for line in lines)
    options = {name[7:].lower(): value for name, value in variables.items() if name.startswith("OPTION_")}
    return options, {name: value for name, value in variables.items() if not name.startswith("OPTION_")}


def _lmi(options: dict[str, str]) -> dict[str, Any]:
    """Name options as vLLM does, and write them as LMI's `construct_vllm_args_list` does."""
    options.pop("model_id", None)
    theirs = {"tensor_parallel_degree": "tensor_parallel_size", "max_rolling_batch_size": "max_num_seqs"}
    words: list[str] = []
    for name, value in options.items():
        name = theirs.get(name, name)  # noqa: PLW2901
        if value in ("true", "false"):
            words.append(f"--{name}" if value == "true" else f"--no-{name}")
        else:
            words += [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]
    found = _vllm(words)
    if found.get("tensor-parallel-size") == 1:
        del found["tensor-parallel-size"]
    return found


def _vllm(words: list[str]) -> dict[str, Any]:
    return {name: value for name, value in _options.read(words).items() if name not in BESIDE}


def _composed(text: str) -> str:
    assert not re.search(r"\$", text.replace("$$", "")), text
    return text.replace("$$", "$")


def _expanded(text: str) -> str:
    """Expand as Kubernetes does: $$ is a dollar, $(NAME) a variable, and there has to be none."""
    assert "$(" not in text.replace("$$", ""), text
    return text.replace("$$", "$")
