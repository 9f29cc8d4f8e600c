"""Recipes as files: TOML, YAML or JSON in, and out again."""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from quicksilver import engines, techniques
from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.technique import Technique

SUFFIXES = (".toml", ".yaml", ".yml", ".json")
KEYS = ("model", "techniques", "engine", "settings")


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a .toml, .yaml or .json file.

    A model that begins with `./` or `../`, and any relative path of a technique, starts at the file's folder. Raises
    BadInputError, which names the file and, for a typo, the nearest key, technique, field or engine.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise BadInputError(
            f"{path} is not a recipe: its name has to end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise _missing(path) from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is not UTF-8 text.") from error
    except OSError as error:
        raise BadInputError(f"{path} can't be read: {(error.strerror or str(error)).lower()}.") from error
    try:
        return from_document(_parse(text, path.suffix.lower()), path.parent)
    except BadInputError as error:
        raise type(error)(f"{path}: {error}") from error


def dump_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe to a .toml, .yaml or .json file that `load_recipe` reads back as the same recipe."""
    path.write_text(dump_text(recipe, path.suffix), encoding="utf-8")


def dump_text(recipe: Recipe, suffix: str = ".toml") -> str:
    """Write a recipe as the text of a .toml, .yaml or .json file, without what is at its default."""
    document = to_document(recipe)
    if suffix.lower() == ".toml":
        return "\n".join(_toml(document)) + "\n"
    if suffix.lower() in (".yaml", ".yml"):
        return str(yaml.safe_dump(document, sort_keys=False))
    if suffix.lower() == ".json":
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    raise BadInputError(f"A recipe can be written as {', '.join(SUFFIXES)}, not as {suffix!r}.")


def from_document(document: Any, folder: Path | None = None) -> Recipe:
    """Make a recipe of a JSON-like document. Raises BadInputError; `folder` is where `./` and `../` start."""
    if not isinstance(document, Mapping):
        raise BadInputError(f"a recipe is a table with {', '.join(KEYS)}, and this is {_kind(document)}.")
    for key in document:
        if key not in KEYS:
            raise unknown("recipe key", str(key), KEYS)
    model = document.get("model")
    if not isinstance(model, str) or not model.strip():
        raise BadInputError("a recipe needs a model: a catalogue name, a path or a hub id.")
    engine = document.get("engine", "openvino")
    if engine not in engines.names():
        raise unknown("engine", str(engine), engines.names())
    stack = document.get("techniques")
    if isinstance(stack, str) or not isinstance(stack, Sequence | None):
        raise BadInputError(f"techniques is a list of names or tables, and this is {_kind(stack)}.")
    return Recipe(
        model=str((folder / model).resolve()) if folder and model.startswith(("./", "../")) else model,
        techniques=tuple(_technique(entry, folder) for entry in stack or ()),
        engine=engine,
        settings=_settings(document.get("settings")),
    )


def to_document(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as a JSON-like document without what is at its default; relative paths are made absolute."""
    model = str(Path(recipe.model).absolute()) if recipe.model.startswith(("./", "../")) else recipe.model
    document: dict[str, Any] = {"model": model, "engine": recipe.engine}
    if recipe.techniques:
        document["techniques"] = [_entry(technique) for technique in recipe.techniques]
    if settings := recipe.settings.model_dump(mode="json", exclude_defaults=True, exclude_none=True):
        document["settings"] = settings
    return document


def parse_set(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read `technique.field=value` and `settings.field=value` into tables; values are written as in YAML.

    Raises BadInputError for a pair of another form.
    """
    tables: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        found = re.fullmatch(r"([\w-]+)\.(\w+)=(.*)", pair, re.DOTALL)
        if found is None:
            raise BadInputError(f"{pair!r} has to look like awq.group_size=64, or settings.threads=2.")
        name, key, text = found.groups()
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        tables.setdefault(name.replace("_", "-"), {})[key] = value
    return tables


def from_flags(model: str, names: Sequence[str], pairs: Sequence[str] = (), engine: str = "openvino") -> Recipe:
    """Make a recipe of technique names in their order and `technique.field=value` pairs. Raises BadInputError."""
    tables = parse_set(pairs)
    settings = tables.pop("settings", None)
    plain = [techniques.find(name).name() for name in names]
    for name in tables:
        if name not in plain:
            techniques.find(name)
            raise BadInputError(
                f"A field of {name} is set, and {name} is not among the techniques; add --technique {name}."
            )
    stack = [{"name": name, **tables.get(name, {})} for name in plain]
    return from_document({"model": model, "techniques": stack, "engine": engine, "settings": settings})


def _technique(entry: Any, folder: Path | None) -> Technique:
    if not isinstance(entry, str | Mapping):
        raise BadInputError(f"a technique is a name or a table with a name, and this is {_kind(entry)}.")
    technique = techniques.make(entry)
    if folder is None:
        return technique
    paths = {key: value for key, value in technique if isinstance(value, Path)}
    return technique.model_copy(update={key: (folder / value.expanduser()).resolve() for key, value in paths.items()})


def _entry(technique: Technique) -> str | dict[str, Any]:
    changed = technique.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    paths = {key: str(value.expanduser().absolute()) for key, value in technique if isinstance(value, Path)}
    return {"name": technique.name(), **changed, **paths} if changed else technique.name()


def _settings(document: Any) -> Settings:
    if document is None:
        return Settings()
    if not isinstance(document, Mapping):
        raise BadInputError(f"settings is a table, and this is {_kind(document)}.")
    for key in document:
        if key not in Settings.model_fields:
            raise unknown("engine setting", str(key), Settings.model_fields)
    try:
        return Settings.model_validate(dict(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInputError(f"settings: {where}: {first['msg']}.") from error


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where the usual loader would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _parse(text: str, suffix: str) -> Any:
    try:
        if suffix == ".toml":
            return tomllib.loads(text)
        if suffix == ".json":
            return json.loads(text)
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise BadInputError(f"this is not YAML: {error.problem}{where}.") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it nests too deeply"
        raise BadInputError(f"this is not {suffix[1:].upper()}: {reason.rstrip('.')}.") from error


def _missing(path: Path) -> BadInputError:
    folder = path.parent
    files = [entry.name for entry in folder.iterdir() if entry.suffix in SUFFIXES] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, files, n=1, cutoff=0.6)
    hint = f"; did you mean {str(path.with_name(near[0]))!r}?" if near else "."
    return BadInputError(f"There is no recipe at {path}{hint}")


def _kind(value: Any) -> str:
    names = {dict: "a table", list: "a list", str: "a text", bool: "a yes or no", type(None): "nothing"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _toml(document: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a recipe's document as TOML: values first, then a table for each technique, then the settings."""
    stack = document.get("techniques", [])
    yield from (f"{key} = {_toml_value(document[key])}" for key in ("model", "engine") if key in document)
    for entry in stack:
        yield from ("", "[[techniques]]")
        table = {"name": entry} if isinstance(entry, str) else entry
        yield from (f"{_toml_key(key)} = {_toml_value(value)}" for key, value in table.items())
    if "settings" in document:
        yield from ("", "[settings]")
        yield from (f"{_toml_key(key)} = {_toml_value(value)}" for key, value in document["settings"].items())


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return str(value)
    # JSON's escapes are TOML's; TOML wants one more character escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
