"""What a file in `runtimes/` gives: how a target's runtime compiles, opens and inspects an artefact."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from toolchain.core.types import Artefact, Coverage, Precision


class Session(Protocol):
    """A loaded artefact, ready to run."""

    def run(self, images: Any) -> Any:
        """float32 images [batch, 3, height, width] -> logits [batch, classes]."""
        ...


class Runtime(Protocol):
    """One file in `runtimes/`: how a target's runtime compiles, opens and inspects an artefact."""

    def compile(self, onnx_path: Path, folder: Path) -> Artefact: ...

    def library(self) -> Any: ...

    def open(self, path: Path, *, threads: int, precision: Precision, optimized: bool = True) -> Session: ...

    def coverage(self, path: Path, *, precision: Precision) -> Coverage: ...

    def available(self, precision: Precision) -> bool: ...

    def signature(self, path: Path) -> tuple[tuple[int | None, ...], str, bool]: ...

    def batched(self, path: Path, batch: int, folder: Path) -> Path: ...

    def fingerprint(self) -> Mapping[str, str]: ...
