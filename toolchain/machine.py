"""Which machine this is: what every figure that was measured on it depends on."""

import importlib.metadata
import platform
from pathlib import Path

import psutil

from toolchain import discover
from toolchain.values import Isa, Target

ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp")
LIBRARIES = ("torch", "torchvision", "torchao", "torch-pruning", "onnx", "onnxscript", "numpy", "pillow")
VNNI = {"avx512_vnni", "avx_vnni"}


def describe() -> dict[str, str | int]:
    """Processor, its vector instructions, cores and system; part of the key of everything timed."""
    model = platform.processor() or platform.machine()
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in lines.items()}
        model, flags = fields.get("model name", model), set(fields.get("flags", fields.get("Features", "")).split())
    isa = " ".join(flag for flag in ISA_FLAGS if flag in flags)
    system = f"{platform.system()} {platform.machine()}"
    return {"cpu": model, "isa": isa, "cores": psutil.cpu_count() or 1, "system": system}


def isa() -> str:
    """The vector instructions that decide how integers are multiplied."""
    return str(describe()["isa"])


def kind() -> Isa:
    """What a target file calls this machine's way of multiplying integers."""
    if platform.machine().lower() in {"aarch64", "arm64"}:
        return "arm64"
    return "x86-64-vnni" if VNNI & set(isa().split()) else "x86-64-avx2"


def same_family(wanted: Isa) -> bool:
    """Whether this machine at least executes the same kernels' code paths: what fuses, not how fast it is."""
    return wanted == kind() or (wanted.startswith("x86-64") and kind().startswith("x86-64"))


def versions(target: Target) -> dict[str, str]:
    """Versions of everything that decides the result."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {**found, **discover.module("runtimes", target.runtime).fingerprint()}
