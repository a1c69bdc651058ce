"""Describe the machine or board that a target is timed on: every measurement depends on its processor and its versions."""

import importlib.metadata
from collections.abc import Mapping

from toolchain.config.target import Isa, Target
from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Precision
from toolchain.edge import processor
from toolchain.export.runtime import load_runtime
from toolchain.measure import boards

LIBRARIES = ("torch", "torchvision", "torchao", "torch-pruning", "onnx", "onnxscript", "numpy", "pillow")


def describe(device: str = "") -> Mapping[str, str | int]:
    """Return processor, vector instructions, cores and operating system of a board, or of this machine where none is named."""
    return boards.connect(device).machine if device else processor.describe()


def vector_extensions(device: str = "") -> str:
    """Return the vector instructions that decide how int8 values are multiplied, separated by spaces."""
    return str(describe(device)["isa"])


def runtime_version(target: Target) -> Mapping[str, str]:
    """Return name and version of the target's runtime, on the board where the target has one."""
    if target.device:
        board_version: Mapping[str, str] = boards.connect(target.device).ask("versions", {"runtime": target.runtime})
        return board_version
    version: Mapping[str, str] = load_runtime(target.runtime).fingerprint()
    return version


def integer_isa(device: str = "") -> Isa:
    """Return the instruction set of a board or of this machine, as target files name it.

    Raises:
        ToolchainError: targets support no such processor, or the board cannot be reached.
    """
    description = describe(device)
    architecture = str(description["system"]).split()[-1].lower()
    if architecture in {"aarch64", "arm64"}:
        return "arm64"
    if architecture not in {"x86_64", "amd64"}:
        raise ToolchainError(
            f"{device or 'this machine'} has an unsupported processor: {architecture}. Supported: x86-64 and arm64"
        )
    return "x86-64-vnni" if processor.VNNI_FLAGS & set(vector_extensions(device).split()) else "x86-64-avx2"


def runs_same_kernels(isa: Isa) -> bool:
    """Return whether the runtime fuses the same layers here as on a target of that instruction set; latency may differ."""
    return isa == integer_isa() or (isa.startswith("x86-64") and integer_isa().startswith("x86-64"))


def has_precision(target: Target, precision: Precision) -> bool:
    """Return whether the processor that the target is timed on computes in a precision."""
    if target.device:
        request = {"runtime": target.runtime, "precision": precision}
        return bool(boards.connect(target.device).ask("available", request))
    return bool(load_runtime(target.runtime).available(precision))


def available_precisions(target: Target) -> list[Precision]:
    """Return the target's precisions that the processor it is timed on computes in, and log the others."""
    available = [precision for precision in target.precisions if has_precision(target, precision)]
    for precision in target.precisions:
        if precision not in available:
            progress.log(
                f"export: {target.device or 'this machine'} does not compute in {precision}; {precision} is left out"
            )
    return available


def versions(target: Target) -> dict[str, str]:
    """Return the versions of the libraries and of the target's runtime, on which every result depends."""
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {**libraries, **runtime_version(target)}
