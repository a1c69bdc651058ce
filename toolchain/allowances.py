"""How much worse than the accepted reference a candidate may be: the limits of `toolchain gate`, a table of a target file."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """Fractions of the reference's figure; 0.05 = 5 %. None: not gated."""

    __pydantic_config__ = {"extra": "forbid"}
    regression_threshold: float = 0.05  # of latency: this much slower is always caught, from half of it on it is tested
    accuracy_drop: float | None = 0.005  # 0.01 = 1 point, over the same test images
    size_growth: float | None = 0.02  # of the model files
    memory_growth: float | None = 0.10  # of the peak resident memory of a process that holds the model alone
