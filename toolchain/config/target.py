"""Target: carried out of a larger module; to be described."""

from dataclasses import dataclass, field
from typing import Literal

from toolchain.config.packaging import PackageSpec
from toolchain.config.recipe import STRICT, Budget
from toolchain.core.types import Precision


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """Fractions of the reference's figure; 0.05 = 5 %. None: not gated."""

    __pydantic_config__ = {"extra": "forbid"}
    regression_threshold: float = 0.05  # of latency: this much slower is always caught, from half of it on it is tested
    accuracy_drop: float | None = 0.005  # 0.01 = 1 point, over the same test images
    size_growth: float | None = 0.02  # of the model files
    memory_growth: float | None = 0.10  # of the peak resident memory of a process that holds the model alone


Isa = Literal["x86-64-vnni", "x86-64-avx2", "arm64"]  # how a core multiplies integers


@dataclass(frozen=True, kw_only=True)
class QuantScheme:
    """Integer types of the target's kernels. Weights are symmetric and per output channel."""

    __pydantic_config__ = STRICT
    activations: Literal["uint8", "int8"] = "uint8"
    weight_bits: Literal[7, 8] = 8


@dataclass(frozen=True, kw_only=True)
class Target:
    """One deployment target."""

    __pydantic_config__ = STRICT
    name: str
    description: str = ""
    runtime: str
    threads: int = 1
    isa: Isa = "x86-64-vnni"
    fit_like: str = ""  # target whose placement is borrowed where this machine lacks `isa` and cannot measure one
    alignment: int = 16  # channel counts the kernels like
    precisions: tuple[Precision, ...] = ("f32", "int8")  # what may ship, and what is measured
    scheme: QuantScheme = field(default_factory=QuantScheme)
    budget: Budget = field(default_factory=Budget)
    package: PackageSpec = field(default_factory=PackageSpec, compare=False)
    gate: GateLimits = field(default_factory=GateLimits, compare=False)  # decides nothing that is made here
    device: str = field(default="", compare=False)  # board to time on, "ssh:user@host"; its name decides nothing
