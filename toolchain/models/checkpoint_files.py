"""Read checkpoint files by their content, whatever their suffix, without running code: the state dicts in them, as float32."""

import argparse
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from toolchain.config import labels_file
from toolchain.core.errors import ToolchainError, first_line
from toolchain.models import foreign_files, pickled_classes

DEEPEST_NESTING = 4  # dictionaries in dictionaries
CLASS_NAME_KEYS = ("classes", "class_names", "names", "labels", "class_to_idx", "idx_to_class", "id2label", "label2id")
LARGEST_SAFETENSORS_HEADER = 100_000_000  # bytes, the format's own limit
LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # torch.save before 1.6
ZIP_START = b"PK\x03\x04"
SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # of NumPy 1 and 2
# what training scripts save beside the tensors, settings and metrics; making one runs no code of the file
HARMLESS_CLASSES: tuple[type, ...] = (
    argparse.Namespace, pathlib.PosixPath, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType,
)  # fmt: skip
HARMLESS_NAMES = {*SCALAR_NAMES, *(f"{cls.__module__}.{cls.__qualname__}" for cls in HARMLESS_CLASSES)}


def read_state_dicts(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read the state dicts of a safetensors file, or of a file that torch.save wrote.

    Half precision and other short floating-point types are widened to float32.

    Returns:
        Tensors by name, by the keys that lead to them, joined by dots: "" for the content itself, "state_dict" and the
        like for dictionaries in it. The likeliest comes first: the content itself, then the largest dictionary.

    Raises:
        ToolchainError: the file is something else (says what), is cut off, or could run code.
    """
    content = _read_content(path)
    if not isinstance(content, Mapping):
        raise ToolchainError(f"{path} holds a {type(content).__name__}; expected is a state_dict, tensors by name")
    state_dicts = {key: tensors for key, tensors in _walk(content, "", 0) if tensors}
    if not state_dicts:
        keys = ", ".join(map(str, list(content)[:4])) or "none"
        raise ToolchainError(f"{path} holds no tensors (its keys: {keys}); expected is a state_dict, tensors by name")
    first = sorted(state_dicts, key=lambda key: (key != "", "." in key, -len(state_dicts[key])))
    return {key: state_dicts[key] for key in first}


def read_class_names(path: Path) -> tuple[str, list[str]] | None:
    """Return the class names that a checkpoint holds beside its tensors, in their order, with their key; None for none.

    Raises:
        ToolchainError: as `read_state_dicts`.
    """
    if not path.is_file():
        return None
    content = _read_content(path)
    for key in CLASS_NAME_KEYS if isinstance(content, Mapping) else ():
        if names := labels_file.order_names(content.get(key)):
            return key, names
    return None


def _walk(content: Mapping[Any, Any], key: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the tensors of a dictionary and of all dictionaries in it, with their keys."""
    yield key, {str(name): _widen(value) for name, value in content.items() if isinstance(value, Tensor)}
    for name, value in content.items():
        if isinstance(value, Mapping) and depth < DEEPEST_NESTING:
            yield from _walk(value, f"{key}.{name}" if key else str(name), depth + 1)


def _widen(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


def _read_content(path: Path) -> Any:
    head = foreign_files.read_head(path)
    try:
        if _is_safetensors(head):
            _check_length(path, int.from_bytes(head[:8], "little"))
            return load_file(path)
        if head.startswith(ZIP_START):
            _check_archive(path)
        elif head[:1] != b"\x80" or LEGACY_MAGIC not in head[:64]:
            raise foreign_files.explain(path, head)
        return _load_without_code(path)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError, TypeError) as reason:
        if isinstance(reason, EOFError) or "unexpected EOF" in str(reason):
            raise foreign_files.explain_cut(path) from reason
        raise ToolchainError(
            f"{path} is not a readable checkpoint: {first_line(reason)}; {foreign_files.GET_AGAIN}"
        ) from reason


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LARGEST_SAFETENSORS_HEADER


def _check_length(path: Path, header_bytes: int) -> None:
    """Raise if a safetensors file ends before its last tensor does."""
    size = path.stat().st_size
    if size < 8 + header_bytes:
        raise foreign_files.explain_cut(path)
    with path.open("rb") as file:
        header = json.loads(file.read(8 + header_bytes)[8:])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + header_bytes + max(ends, default=0)
    if size < expected:
        raise foreign_files.explain_cut(path, expected)


def _check_archive(path: Path) -> None:
    """Raise if a zip archive is cut off, or is none that torch.save wrote."""
    if not zipfile.is_zipfile(path):  # its list of files stands at the end
        raise foreign_files.explain_cut(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    records = {name.partition("/")[2] for name in names}
    if "data.pkl" not in records or "constants.pkl" in records:
        raise foreign_files.explain_archive(path, names)


def _load_without_code(path: Path) -> Any:
    """Return the content of a file of torch.save, which may hold tensors, plain values and HARMLESS_CLASSES only."""
    scalar: Any = np.float64(0).__reduce__()[0]  # the function that NumPy's numbers are pickled with
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [*HARMLESS_CLASSES]
    allowed += [(scalar, name) for name in SCALAR_NAMES]
    try:  # from an open file: of a path, torch would look at the suffix
        with path.open("rb") as file, torch.serialization.safe_globals(allowed):
            return torch.load(file, "cpu", weights_only=True)
    except Exception as reason:
        if "weights_only" not in str(reason).lower() and "Unpickl" not in type(reason).__name__:
            raise
        raise _explain_refusal(path) from reason


def _explain_refusal(path: Path) -> ToolchainError:
    """Return the error for a file that torch did not read with `weights_only`."""
    try:
        classes = pickled_classes.list_classes(path)
    except (ValueError, EOFError):
        return foreign_files.explain_cut(path)
    if classes.model:
        entry = f"[{classes.key!r}]" if classes.key else ""
        line = foreign_files.save_line(path, f"torch.load({{path}}, 'cpu', weights_only=False){entry}.state_dict()")
        return ToolchainError(
            f"{path} holds a whole model ({classes.model}) and could run code when it is read, so it is not read; if you "
            f"trust it, save its state_dict where this class can be imported, and give that file: {line}"
        )
    names = [name for name in classes.names if name not in HARMLESS_NAMES]
    held = f" ({', '.join(names[:3])})" if names else ""
    return ToolchainError(
        f"{path} holds more than tensors{held} and could run code when it is read, so it is not read; save the state_dict "
        "alone, as safetensors or with torch.save(model.state_dict(), file), and give that file"
    )
