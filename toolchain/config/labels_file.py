"""Read the class names of a trained model's head: a text file with one name a line, or JSON, in the order of the outputs."""

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from toolchain.core.errors import ToolchainError

ACCEPTED = (
    "accepted: a text file with one name a line in the order of the model's outputs, or JSON: [names] or {name: index}"
)


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names, in the order of the model's outputs.

    Args:
        path: UTF-8 text, with or without a byte order mark; or a .json file with a list, name -> index or index -> name.

    Raises:
        ToolchainError: the file does not exist or is not of that form, a name is empty, or there are fewer than two.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as reason:
        problem = reason.strerror if isinstance(reason, OSError) else "it is not UTF-8 text"
        raise ToolchainError(f"labels file {path} cannot be read: {problem}; {ACCEPTED}") from reason
    if path.suffix == ".json":
        try:
            names = order_names(json.loads(text))
        except ValueError as reason:
            raise ToolchainError(f"labels file {path} is not valid JSON; {ACCEPTED}") from reason
    else:
        names = [line.strip() for line in text.splitlines()]
        while names and not names[-1]:
            names.pop()
    if names is None or any(not isinstance(name, str) for name in names):
        raise ToolchainError(f"labels file {path} holds no list of names; {ACCEPTED}")
    return check_names(names, f"labels file {path}")


def order_names(value: object) -> list[str] | None:
    """Return the names of a list, of name -> index or of index -> name, in order; None where it is none of these."""
    if isinstance(value, list | tuple):
        return [str(name) for name in value]
    if not isinstance(value, Mapping) or not value:
        return None
    pairs = [
        (position, name)
        for key, entry in value.items()
        for position, name in ([(entry, key)] if isinstance(entry, int) else [(_to_index(key), entry)])
    ]
    if any(not isinstance(name, str) for _, name in pairs) or {i for i, _ in pairs} != set(range(len(pairs))):
        return None
    return [str(name) for _, name in sorted(pairs)]


def _to_index(key: object) -> int:
    return int(key) if isinstance(key, int) or (isinstance(key, str) and key.isdecimal()) else -1


def check_names(names: list[str], source: str) -> tuple[str, ...]:
    """Return the names in Unicode's composed form; names that stand twice get their index, as ImageNet's two cranes.

    Raises:
        ToolchainError: a name is empty, or there are fewer than two.
    """
    composed = [unicodedata.normalize("NFC", name) for name in names]
    if "" in composed:
        raise ToolchainError(
            f"{source} has no name in line {composed.index('') + 1}; every output of the model needs one"
        )
    if len(composed) < 2:
        raise ToolchainError(f"{source} has {len(composed)} names; a classifier needs at least two")
    counts = Counter(composed)
    return tuple(f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(composed))
