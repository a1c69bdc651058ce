"""TOML files to checked values: Recipe, Target, Domain, Shortlist.

The shapes are dataclasses, most of `values.py`; pydantic checks types and unknown keys, `rules.py` what
types cannot say. Every complaint names the file, the key, what was given and what is accepted.
"""

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from toolchain.config import validation
from toolchain.config.dataset import Domain
from toolchain.config.recipe import ModelSpec, Recipe
from toolchain.config.shortlist import Shortlist
from toolchain.config.target import Target
from toolchain.core import registry
from toolchain.core.errors import ToolchainError

SCHEMA = 1
CLASS_BY_KIND: Mapping[registry.ConfigKind, type] = {
    "recipes": Recipe, "targets": Target, "calibration": Domain, "shortlists": Shortlist,
}  # fmt: skip


def read_recipe(name: str) -> Recipe:
    """Reads a recipe by name, or by path to a .toml file."""
    value: Recipe = _read("recipes", name)
    teacher = value.teacher and _located(value.teacher, name)
    return dataclasses.replace(value, model=_located(value.model, name), teacher=teacher)


def _located(model: ModelSpec, recipe_name: str) -> ModelSpec:
    return dataclasses.replace(model, weights=_beside(model.weights, recipe_name))


def read_target(name: str) -> Target:
    """Reads a target by name."""
    value: Target = _read("targets", name)
    return value


def read_domain(name: str) -> Domain:
    """Reads a domain by name."""
    value: Domain = _read("calibration", name)
    return value


def read_shortlist(name: str) -> Shortlist:
    """Reads a shortlist by name, or by path to a .toml file."""
    value: Shortlist = _read("shortlists", name)
    located = (dataclasses.replace(one, model=_located(one.model, name)) for one in value.candidates)
    return dataclasses.replace(value, candidates=tuple(located))


def json_schema(shape: Any) -> dict[str, Any]:
    """JSON schema of a dataclass, for editors and readers in other languages."""
    return TypeAdapter(shape).json_schema()


def _read(kind: registry.ConfigKind, name: str) -> Any:
    path = registry.find_file(kind, name)
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as reason:
        raise ToolchainError(f"{path} is not valid TOML: {reason}") from reason
    schema = content.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise ToolchainError(f"{path}: schema = {schema!r}; this version reads schema = {SCHEMA}")
    content.setdefault("name", path.stem)
    return validate(kind, content, str(path))


def validate(kind: registry.ConfigKind, content: Mapping[str, Any], where: str) -> Any:
    """Turns a mapping into its value.

    Raises:
        ToolchainError: the first thing wrong: file, key, what it got, what is accepted.
    """
    value = to_dataclass(CLASS_BY_KIND[kind], content, where)
    for ok, complaint in validation.RULES_BY_KIND[kind](value):
        if not ok:
            raise ToolchainError(f"{where}: {complaint}")
    return value


def to_dataclass(shape: Any, content: Mapping[str, Any], where: str) -> Any:
    """A mapping as the dataclass `shape`.

    Raises:
        ToolchainError: the first thing that is not as the dataclass says.
    """
    try:
        return TypeAdapter(shape).validate_python(content)
    except ValidationError as reason:
        raise ToolchainError(f"{where}: {_explain(reason, shape)}") from reason


def _explain(error: ValidationError, shape: Any) -> str:
    unknown = {"unexpected_keyword_argument", "extra_forbidden"}
    # a mistyped key is often why another is missing
    first = min(error.errors(), key=lambda found: found["type"] not in unknown)
    keys, shape = _walked(first["loc"], shape)
    if first["type"] in unknown:
        accepted = [f.name for f in dataclasses.fields(shape)]
        return f"unknown key {'.'.join(keys)}; {registry.suggest(keys[-1], accepted)}"
    if first["type"] == "missing":
        return f"{'.'.join(keys)} is missing"
    # of a value that may be one of several kinds every kind complains; what each would take is told together
    ways = [found for found in error.errors() if found["loc"][: len(keys)] == first["loc"][: len(keys)]]
    accepted = list(
        dict.fromkeys(str(found["ctx"]["expected"]) for found in ways if "expected" in found.get("ctx", {}))
    )
    if "dataclass_type" in first["type"]:
        words = f"input should be {' or '.join(accepted)}, or a table" if accepted else "this is a table"
        return f"{'.'.join(keys)} = {first['input']!r}: {words}, written as [{'.'.join(keys)}]"
    return f"{'.'.join(keys)} = {first['input']!r}: " + (
        f"input should be {' or '.join(accepted)}" if accepted else first["msg"].lower()
    )


def _walked(places: tuple[int | str, ...], shape: Any) -> tuple[list[str], Any]:
    """The keys that lead to a place, without the names of the kinds that were tried there, and the last one's table."""
    keys, inner = list[str](), shape
    for part in map(str, places):
        if "[" in part or (keys and part == getattr(inner, "__name__", "")):
            continue
        keys.append(part)
        shape = inner
        if dataclasses.is_dataclass(shape) and not part.isdigit():
            inner = _table(shape, part)
    return keys, shape


def _table(shape: Any, key: str) -> Any:
    """The dataclass behind a key: its type, or the one inside of `X | None` and `tuple[X, ...]`; None behind none."""
    kind = {f.name: f.type for f in dataclasses.fields(shape)}.get(key)
    return next((part for part in typing.get_args(kind) if dataclasses.is_dataclass(part)), kind)


def _beside(weights: str, recipe_name: str) -> str:
    """A local weights file is looked for beside the recipe, then in the working directory."""
    local = Path(recipe_name).parent / weights
    return str(local) if recipe_name.endswith(".toml") and weights and local.is_file() else weights
