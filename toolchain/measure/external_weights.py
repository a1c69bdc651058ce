"""Find the external data files of an ONNX model, and refuse any outside its folder before a runtime opens the model.

The format lets a model name any path, and loaders have followed such paths out of the folder more than once
(CVE-2022-25882, CVE-2024-27318, CVE-2026-27489). Accepted is only the plain name of a regular file beside the model, which
is neither a symbolic link nor a hard link to a file elsewhere.
"""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolchain.core.errors import ToolchainError, first_line
from toolchain.edge import timing_process


def list_companion_files(model: Path) -> list[Path]:
    """Return the further files that a model of any format consists of.

    Raises:
        ToolchainError: as for `list_external_weights`.
    """
    return [*timing_process.find_weight_files(model), *list_external_weights(model)]


def list_external_weights(model: Path) -> tuple[Path, ...]:
    """Return the files in which an ONNX model stores weights outside its own file; none for another format.

    Raises:
        ToolchainError: it is not an ONNX file, or it names anything but a regular file beside it.
    """
    if model.suffix != ".onnx":
        return ()
    import onnx

    try:
        content = onnx.load(model, load_external_data=False)
    except Exception as reason:  # protobuf raises its own types
        raise ToolchainError(f"{model} is not a readable ONNX file: {first_line(reason)}") from reason
    names = {name for tensor in _iterate_tensors(content) for name in _read_locations(tensor)}
    return tuple(_check_location(model, name) for name in sorted(names))


def _check_location(model: Path, name: str) -> Path:
    """Return the path of a weight file beside the model.

    Raises:
        ToolchainError: `name` is not a plain file name, or the file is missing, a link or not a regular file.
    """
    path = model.parent / name
    stored = f"{model} stores weights in {name!r}"
    if not name or name != Path(name).name or "\\" in name or name in {".", ".."}:
        raise ToolchainError(f"{stored}, which is not a plain file name; refused. Store the weights beside the model")
    try:
        status = path.lstat()
    except (OSError, ValueError) as reason:
        raise ToolchainError(f"{stored}, which is not beside it. Copy that file into {model.parent}") from reason
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise ToolchainError(
            f"{stored}, which is a link or not a regular file; refused. Copy the file itself into {model.parent}"
        )
    return path


def _iterate_tensors(message: Any) -> Iterator[Any]:
    """Yield every tensor anywhere in a protobuf message: in nodes, subgraphs and functions, sparse ones too."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for child in value if hasattr(value, "add") else [value]:  # a repeated field, or a single message
                yield from _iterate_tensors(child)


def _read_locations(tensor: Any) -> Iterator[str]:
    """Yield the names of the files that a tensor is stored in; "", which is refused, where it is external but names none."""
    locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
    if tensor.data_location == type(tensor).EXTERNAL or tensor.external_data:
        yield from locations or [""]
