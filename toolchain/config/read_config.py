"""Read TOML files as checked values: Recipe, Target, Domain, Shortlist.

Pydantic checks types and unknown keys against the dataclasses of this package; `validation.py` checks what types cannot
express. Every error names the file, the key, what was given and what is accepted.
"""

import codecs
import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from toolchain.config import model_reference, pixel_settings, validation
from toolchain.config.dataset import Domain
from toolchain.config.recipe import ModelSpec, Recipe
from toolchain.config.shortlist import Shortlist
from toolchain.config.target import Target
from toolchain.core import registry
from toolchain.core.errors import ToolchainError

SCHEMA = 1
ENCODING_MARKS = (  # the longest first
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
SAVE_AS_UTF8 = "save it as UTF-8 (in Notepad: Save as, Encoding: UTF-8)"
CLASS_BY_KIND: Mapping[registry.ConfigKind, type] = {
    "recipes": Recipe, "targets": Target, "calibration": Domain, "shortlists": Shortlist,
}  # fmt: skip


def read_recipe(name: str) -> Recipe:
    """Read a recipe by name, or by path to a .toml file."""
    recipe: Recipe = _read("recipes", name)
    teacher = recipe.teacher and _resolve_model(recipe.teacher, name)
    return dataclasses.replace(recipe, model=_resolve_model(recipe.model, name), teacher=teacher)


def read_target(name: str) -> Target:
    """Read a target by name, or by path to a .toml file."""
    target: Target = _read("targets", name)
    return target


def read_domain(name: str) -> Domain:
    """Read a dataset description by name, or by path to a .toml file."""
    domain: Domain = _read("calibration", name)
    return domain


def read_shortlist(name: str) -> Shortlist:
    """Read a shortlist by name, or by path to a .toml file."""
    shortlist: Shortlist = _read("shortlists", name)
    candidates = (
        dataclasses.replace(candidate, model=_resolve_model(candidate.model, name))
        for candidate in shortlist.candidates
    )
    return dataclasses.replace(shortlist, candidates=tuple(candidates))


def _resolve_model(model: ModelSpec, file_name: str) -> ModelSpec:
    """Look for a model's files beside the TOML file that names them, and bring mean and std to pixels in 0..1.

    A path is left as it is where there is no such file.
    """
    model = pixel_settings.to_unit_range(model)
    folder = Path(file_name).parent
    if not file_name.endswith(".toml"):
        return model
    if model.weights and (folder / model.weights).is_file():
        model = dataclasses.replace(model, weights=str(folder / model.weights))
    if model.labels and (folder / model.labels).is_file():
        model = dataclasses.replace(model, labels=str(folder / model.labels))
    if model_reference.is_onnx_file(model.name) and (folder / model.name).is_file():
        return dataclasses.replace(model, name=str(folder / model.name))
    reference = model_reference.parse(model.name)
    if reference and (folder / reference.source).is_file():
        model = dataclasses.replace(model, name=f"{folder / reference.source}:{reference.function}")
    return model


def json_schema(cls: Any) -> dict[str, Any]:
    """Return the JSON schema of a dataclass, for editors and programs in other languages."""
    return TypeAdapter(cls).json_schema()


def _read(kind: registry.ConfigKind, name: str) -> Any:
    path = registry.find_file(kind, name)
    text = _read_text(path)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as reason:
        raise ToolchainError(f"{path} is not valid TOML: {reason}") from reason
    schema = content.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise ToolchainError(f"{path}: schema = {schema!r}; this version reads schema = {SCHEMA}")
    content.setdefault("name", path.stem)
    pixel_settings.mark_given(content)
    return validate(kind, content, str(path))


def _read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte-order mark, which Windows' editors write.

    Raises:
        ToolchainError: the file cannot be read, or has another encoding.
    """
    try:
        content = path.read_bytes()
        encoding = next((name for mark, name in ENCODING_MARKS if content.startswith(mark)), "")
        if encoding or b"\0" in content[:4]:  # every second byte of plain English in UTF-16
            raise ToolchainError(f"{path} is {encoding or 'UTF-16'} text; TOML is UTF-8: {SAVE_AS_UTF8}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as reason:
        line = reason.object.count(b"\n", 0, reason.start) + 1
        raise ToolchainError(
            f"{path} is not UTF-8 text, which TOML has to be (byte 0x{reason.object[reason.start]:02x} in line {line}): {SAVE_AS_UTF8}"
        ) from reason
    except OSError as reason:
        raise ToolchainError(f"cannot read {path}: {reason.strerror}") from reason


def validate(kind: registry.ConfigKind, content: Mapping[str, Any], where: str) -> Any:
    """Turn a mapping into a checked value.

    Args:
        kind: of file, which decides the class and the rules.
        content: keys and values as in the file.
        where: the file, for messages.

    Raises:
        ToolchainError: names the first error: file, key, what was given and what is accepted.
    """
    value = to_dataclass(CLASS_BY_KIND[kind], content, where)
    for ok, message in validation.RULES_BY_KIND[kind](value):
        if not ok:
            raise ToolchainError(f"{where}: {message}")
    return value


def to_dataclass(cls: Any, content: Mapping[str, Any], where: str) -> Any:
    """Turn a mapping into the dataclass `cls`; types and keys are checked.

    Raises:
        ToolchainError: names the first key that is missing, unknown or of the wrong type.
    """
    try:
        return TypeAdapter(cls).validate_python(content)
    except ValidationError as reason:
        raise ToolchainError(f"{where}: {_explain(reason, cls)}") from reason


def _explain(error: ValidationError, cls: Any) -> str:
    """Return the first of pydantic's errors in the words of the TOML file."""
    unknown = {"unexpected_keyword_argument", "extra_forbidden"}
    # unknown keys first: a mistyped key is often the reason why another one is missing
    first = min(error.errors(), key=lambda detail: detail["type"] not in unknown)
    keys, table = _find_table(first["loc"], cls)
    key = ".".join(keys)
    if first["type"] in unknown:
        accepted = [field.name for field in dataclasses.fields(table)]
        return f"unknown key {key}; {registry.suggest(keys[-1], accepted)}"
    if first["type"] == "missing":
        return f"{key} is missing"
    # for a union, pydantic reports one error per alternative; list what all of them accept
    alternatives = [detail for detail in error.errors() if detail["loc"][: len(keys)] == first["loc"][: len(keys)]]
    accepted = list(
        dict.fromkeys(str(detail["ctx"]["expected"]) for detail in alternatives if "expected" in detail.get("ctx", {}))
    )
    if "dataclass_type" in first["type"]:
        expected = f"input should be {' or '.join(accepted)}, or a table" if accepted else "this is a table"
        return f"{key} = {first['input']!r}: {expected}, written as [{key}]"
    expected = f"input should be {' or '.join(accepted)}" if accepted else first["msg"].lower()
    return f"{key} = {first['input']!r}: {expected}"


def _find_table(location: tuple[int | str, ...], cls: Any) -> tuple[list[str], Any]:
    """Return the keys of a pydantic error location, without the names of union alternatives, and the last key's dataclass."""
    keys, inner = list[str](), cls
    for part in map(str, location):
        if "[" in part or (keys and part == getattr(inner, "__name__", "")):
            continue
        keys.append(part)
        cls = inner
        if dataclasses.is_dataclass(cls) and not part.isdigit():
            inner = _dataclass_of_key(cls, part)
    return keys, cls


def _dataclass_of_key(cls: Any, key: str) -> Any:
    """Return the type of a field; for `X | None` and `tuple[X, ...]` the dataclass X; None for an unknown key."""
    annotation = {field.name: field.type for field in dataclasses.fields(cls)}.get(key)
    return next((part for part in typing.get_args(annotation) if dataclasses.is_dataclass(part)), annotation)
