"""Checks exports by the schemas that other packages bring; run by the Python of envs/exports.lock, which has them: schemas.py KIND FILE…

Exits 1 with `FILE is refused` on stderr for a file that isn't what the package reads.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
import unittest.mock
from pathlib import Path
from typing import Any

import yaml


def compose(text: str) -> None:
    """The Compose specification's own JSON schema, as check-jsonschema ships it."""
    import check_jsonschema
    import jsonschema

    folder = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    validator(schema).validate(yaml.safe_load(text))


def kserve(text: str) -> None:
    """KServe's client models, which drop what they don't know: so what comes back has to be what went in."""
    if "kserve" not in sys.modules:
        found = importlib.util.find_spec("kserve")
        assert found is not None
        # The package's own __init__ imports its model server, which the models don't need.
        package = types.ModuleType("kserve")
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules["kserve"] = package
    import kubernetes
    from kserve import models

    for name in dir(models):
        if name[0].isupper():
            setattr(kubernetes.client.models, name, getattr(models, name))

    class Response:
        data = json.dumps(yaml.safe_load(text))

    client = kubernetes.client.ApiClient()
    read = client.deserialize(Response, "V1beta1InferenceService")
    _same(client.sanitize_for_serialization(read), yaml.safe_load(text), "")


def ray(text: str) -> None:
    """Ray Serve's schema of a config file, and Ray's own model of an LLM deployment."""
    # What reads buckets; no config needs it, and it takes as much room as all the rest.
    sys.modules["pyarrow"] = sys.modules["pyarrow.fs"] = unittest.mock.MagicMock()
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
    from ray.serve.schema import ServeDeploySchema

    document = yaml.safe_load(text)
    applications = ServeDeploySchema.model_validate(document).applications
    for application, known in zip(document["applications"], applications, strict=True):
        # It ignores what it doesn't know.
        assert known.model_fields_set == set(application), known.model_fields_set ^ set(application)
        for config in application["args"]["llm_configs"]:
            read = LLMConfig.model_validate(config)
            assert read.engine_kwargs == config["engine_kwargs"], read
            assert not {"model", "served_model_name", "distributed_executor_backend"} & set(read.engine_kwargs)


def properties(text: str) -> None:
    """Print as JSON what a reader of .properties files makes of it."""
    import javaproperties

    print(json.dumps(javaproperties.loads(text)))


def vllm(text: str) -> None:
    """vLLM's own parser, run by an environment that has vLLM: `text` is JSON, a command line and a YAML file that say the same."""
    import dataclasses

    try:
        from vllm.entrypoints.openai.cli_args import FrontendArgs, make_arg_parser
    except ImportError:
        from vllm.entrypoints.launchers.cli_args import FrontendArgs, make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    asked = json.loads(text)
    by_hand, by_file = (
        vars(make_arg_parser(FlexibleArgumentParser()).parse_args(words))
        for words in (["--model", *asked["words"]], ["--config", asked["config"]])
    )
    by_file.pop("config", None), by_hand.pop("config", None)
    different = {name for name in by_hand if by_hand[name] != by_file[name]}
    assert not different, different
    unknown = {field.name.replace("_", "-") for field in dataclasses.fields(FrontendArgs)} - set(asked["frontend"])
    assert not unknown, f"arguments of the front end that _options.FRONTEND lacks: {sorted(unknown)}"


def _same(found: Any, meant: Any, where: str) -> None:
    """Raise AssertionError, and say where, if two JSON values differ."""
    if isinstance(meant, dict) and isinstance(found, dict):
        assert set(found) == set(meant), f"{where}: {set(found) ^ set(meant)}"
        for key, value in meant.items():
            _same(found[key], value, f"{where}.{key}")
    elif isinstance(meant, list) and isinstance(found, list):
        assert len(found) == len(meant), where
        for number, (left, right) in enumerate(zip(found, meant, strict=True)):
            _same(left, right, f"{where}[{number}]")
    else:
        assert found == meant, f"{where}: {found!r} is not {meant!r}"


if __name__ == "__main__":
    kind, *files = sys.argv[1:]
    check = {"compose": compose, "kserve": kserve, "ray": ray, "properties": properties, "vllm": vllm}[kind]
    for file in files:
        try:
            check(Path(file).read_text(encoding="utf-8"))
        except Exception as error:  # jsonschema's and pydantic's have only their name in common
            if type(error).__name__ not in ("AssertionError", "ValidationError"):
                raise
            sys.exit(f"{file} is refused: {str(error)[:500]}")
