"""Which machine this is: what every figure that was measured on it depends on."""

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
    """Processor, its vector instructions, cores and system: this machine's, or a board's."""
    return boards.connect(device).machine if device else processor.describe()


def vector_extensions(device: str = "") -> str:
    """The vector instructions that decide how integers are multiplied."""
    return str(describe(device)["isa"])


def runtime_version(target: Target) -> Mapping[str, str]:
    """Version of the target's runtime where it is timed."""
    if target.device:
        found: Mapping[str, str] = boards.connect(target.device).ask("versions", {"runtime": target.runtime})
        return found
    version: Mapping[str, str] = load_runtime(target.runtime).fingerprint()
    return version


def integer_isa(device: str = "") -> Isa:
    """What a target file calls this machine's, or a board's, way of multiplying integers."""
    found = describe(device)
    architecture = str(found["system"]).split()[-1].lower()
    if architecture in {"aarch64", "arm64"}:
        return "arm64"
    if architecture not in {"x86_64", "amd64"}:
        raise ToolchainError(
            f"{device or 'this machine'} is {architecture}; there are targets for x86-64 and arm64 only"
        )
    return "x86-64-vnni" if processor.VNNI_FLAGS & set(vector_extensions(device).split()) else "x86-64-avx2"


def runs_same_kernels(wanted: Isa) -> bool:
    """Whether this machine at least executes the same kernels' code paths: what fuses, not how fast it is."""
    return wanted == integer_isa() or (wanted.startswith("x86-64") and integer_isa().startswith("x86-64"))


def has_precision(target: Target, precision: Precision) -> bool:
    """Whether the processor that the target is timed on computes in that precision."""
    if target.device:
        asked = {"runtime": target.runtime, "precision": precision}
        return bool(boards.connect(target.device).ask("available", asked))
    return bool(load_runtime(target.runtime).available(precision))


def available_precisions(target: Target) -> list[Precision]:
    """Return the target's precisions that the processor it is timed on computes in; says which it does not."""
    available_here = [precision for precision in target.precisions if has_precision(target, precision)]
    for precision in target.precisions:
        if precision not in available_here:
            progress.log(f"export: {target.device or 'this machine'} has no {precision}; left out")
    return available_here


def versions(target: Target) -> dict[str, str]:
    """Versions of everything that decides the result."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {**found, **runtime_version(target)}
