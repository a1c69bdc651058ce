"""Weights that an ONNX file keeps in other files: found, and held to the model's own folder, before any runtime opens it.

The format lets a model name any path, and loaders have followed it out of the folder more than once (CVE-2022-25882,
CVE-2024-27318, CVE-2026-27489). Here a name is a plain name of a regular file beside the model, neither a link nor one
of two names of a file elsewhere.
"""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolchain.core.errors import ToolchainError, first_line
from toolchain.edge import timing_process


def list_companion_files(model: Path) -> list[Path]:
    """Further files that a model of any kind consists of.

    Raises:
        ToolchainError: as `files` does.
    """
    return [*timing_process.find_weight_files(model), *list_external_weights(model)]


def list_external_weights(model: Path) -> tuple[Path, ...]:
    """Files beside an ONNX model that it keeps weights in; none for another kind of model.

    Raises:
        ToolchainError: it is no ONNX file, or names something else than a regular file beside it.
    """
    if model.suffix != ".onnx":
        return ()
    import onnx

    try:
        content = onnx.load(model, load_external_data=False)
    except Exception as reason:  # protobuf's own kinds
        raise ToolchainError(f"{model} is not a readable ONNX file: {first_line(reason)}") from reason
    names = {name for tensor in _tensors(content) for name in _locations(tensor)}
    return tuple(_beside(model, name) for name in sorted(names))


def _beside(model: Path, name: str) -> Path:
    path = model.parent / name
    if not name or name != Path(name).name or "\\" in name or name in {".", ".."}:
        raise ToolchainError(f"{model} keeps weights in {name!r}, which is not a plain file name; refused")
    try:
        found = path.lstat()
    except (OSError, ValueError) as reason:
        raise ToolchainError(f"{model} keeps weights in {name!r}, which is not beside it") from reason
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise ToolchainError(f"{model} keeps weights in {name!r}, which is a link or no regular file; refused")
    return path


def _locations(tensor: Any) -> Iterator[str]:
    """Where a tensor lies; one that says "elsewhere" and not where is as wrong as one that leads away."""
    named = [entry.value for entry in tensor.external_data if entry.key == "location"]
    if tensor.data_location == type(tensor).EXTERNAL or tensor.external_data:
        yield from named or [""]


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor anywhere in a protobuf message: in nodes, subgraphs, functions, sparse ones too."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for one in value if hasattr(value, "add") else [value]:  # repeated, or one
                yield from _tensors(one)
