"""The deployment target that a user writes (`targets/*.toml`): runtime, instructions, integer types, limits of the gate."""

from dataclasses import dataclass, field
from typing import Literal

from toolchain.config.packaging import PackageSpec
from toolchain.config.recipe import STRICT, Budget
from toolchain.core.types import Precision


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """What the gate allows, as fractions of the baseline's value; 0.05 = 5 %. None: not checked."""

    __pydantic_config__ = {"extra": "forbid"}
    regression_threshold: float = (
        0.05  # of latency: a slowdown this large always fails; from half of it on, it is tested
    )
    accuracy_drop: float | None = 0.005  # 0.01 = 1 point, over the same test images
    size_growth: float | None = 0.02  # of the model files
    memory_growth: float | None = 0.10  # of the peak resident memory of a process that holds the model alone


Isa = Literal["x86-64-vnni", "x86-64-avx2", "arm64"]  # instructions for integer multiplication


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
    fit_like: str = ""  # target whose placement is used if this machine lacks `isa` and cannot time one
    alignment: int = 16  # channel counts are multiples of it, for which the kernels are fast
    precisions: tuple[Precision, ...] = ("f32", "int8")  # that are measured and may ship
    scheme: QuantScheme = field(default_factory=QuantScheme)
    budget: Budget = field(default_factory=Budget)
    package: PackageSpec = field(default_factory=PackageSpec, compare=False)
    gate: GateLimits = field(default_factory=GateLimits, compare=False)  # does not affect the model
    device: str = field(default="", compare=False)  # board to measure latency on, "ssh:user@host"; not in cache keys
