"""The `Runtime` protocol of the files in `runtimes/`: how a target's runtime compiles, opens and inspects a model.

A module is a `Runtime` if it has these names. Each module assigns itself to a `Runtime` at its end, so that mypy reports
a name that is missing or has another signature.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from toolchain.config.packaging import ConvertedModel
from toolchain.core import registry
from toolchain.core.types import Artefact, IntegerCoverage, Precision


class Session(Protocol):
    """A loaded model, ready to run."""

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the logits [batch, classes] of images [batch, 3, height, width], float32."""
        ...

    def outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output of the model by its name."""
        ...

    def save_compiled(self, path: Path) -> Path | None:
        """Write the model as this machine compiled it, which opens faster; None where the runtime has no such form."""
        ...


class Runtime(Protocol):
    """One file in `runtimes/`."""

    @property
    def INSTALL(self) -> str:  # noqa: N802 - constants of a module
        """The command that installs the runtime."""
        ...

    @property
    def PRECISIONS(self) -> tuple[Precision, ...]:  # noqa: N802
        """Precisions that a target may name."""
        ...

    @property
    def HAS_UNOPTIMIZED(self) -> bool:  # noqa: N802
        """Whether it can run a graph as it is written, to compare with."""
        ...

    @property
    def FILE_NAMES(self) -> tuple[str, ...]:  # noqa: N802
        """Files that a model consists of, the one that is opened first."""
        ...

    @property
    def FORMS(self) -> tuple[str, ...]:  # noqa: N802
        """Further forms that `pack` makes."""
        ...

    def library(self) -> Any:
        """Import the runtime; ToolchainError with the install command where it is missing."""
        ...

    def compile(self, onnx_path: Path, folder: Path) -> Artefact:
        """Compile an ONNX file into `folder`."""
        ...

    def open(self, path: Path, *, threads: int, precision: Precision, optimized: bool = True) -> Session:
        """Load a model."""
        ...

    def pack(self, path: Path, stem: Path, *, threads: int, precision: Precision, native: bool) -> ConvertedModel:
        """Write a further form of a model to `stem` with the form's suffix."""
        ...

    def coverage(self, path: Path, *, precision: Precision) -> IntegerCoverage:
        """Count the layers that the runtime executes in int8, from its own executed graph."""
        ...

    def signature(self, path: Path) -> tuple[tuple[int | None, ...], str, bool]:
        """Return a model's input shape, its element type, and whether the model is quantized."""
        ...

    def batched(self, path: Path, batch: int, folder: Path) -> Path:
        """Write the model with another fixed batch size into `folder`."""
        ...

    def available(self, precision: Precision) -> bool:
        """Return whether this machine's processor computes in that precision."""
        ...

    def least_version(self, path: Path) -> str:
        """Return the oldest version of the runtime that reads the model."""
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """Return the runtime's name and version."""
        ...


def load_runtime(name: str) -> Runtime:
    """Import a runtime by name.

    Raises:
        ToolchainError: there is none of that name.
    """
    return cast(Runtime, registry.load_module("runtimes", name))
