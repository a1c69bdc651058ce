"""Names of the user's own models: a function in a Python file or package, `net.py:build` or `package.module:build`, or an
ONNX file, `net.onnx`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

REFERENCE = re.compile(r"(?P<source>.+\.py|[A-Za-z_]\w*(\.\w+)*):(?P<function>[A-Za-z_]\w*)")
ONNX_SUFFIX = ".onnx"
LIBRARY_PREFIXES = ("timm:", "hf:", "auto:", "random:", "zoo:")


@dataclass(frozen=True)
class PythonModel:
    """A reference to a function of the user's."""

    name: str  # as it was given
    source: str  # a file, or the dotted name of a module
    function: str

    @property
    def folder(self) -> Path:
        """Return the folder that the user's imports start from."""
        return Path(self.source).resolve().parent if self.source.endswith(".py") else Path.cwd()


def parse(name: str) -> PythonModel | None:
    """Return the function that a model's name refers to; None for the models of libraries."""
    match = None if name.startswith(LIBRARY_PREFIXES) else REFERENCE.fullmatch(name)
    return PythonModel(name, match["source"], match["function"]) if match else None


def is_onnx_file(name: str) -> bool:
    """Return whether a model's name is that of an ONNX file."""
    return name.lower().endswith(ONNX_SUFFIX)


def public_name(name: str) -> str:
    """Return a model's name without the folder of a file, which is private and differs between checkouts."""
    reference = parse(name)
    in_file = is_onnx_file(name) or (reference is not None and reference.source.endswith(".py"))
    return Path(name).name if in_file else name
