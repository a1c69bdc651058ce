"""Where nothing ships: the budgets at which a variant would, each with the flag that sets it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolchain.export.export_variants import Variant
from toolchain.gates import budget_checks
from toolchain.gates.verdict import Verdict

ROUNDING = 1.02  # of a loosened budget: a repeated measurement may come out that much worse


@dataclass(frozen=True, kw_only=True)
class NearestBudget:
    """A variant and the loosened budgets that it would ship at, judged on validation."""

    variant: str
    flags: tuple[str, ...]  # of `toolchain export`, such as "--latency 0.73x"
    loosened: float  # the largest budget after loosening over before; 1.2: a fifth more
    measured: Mapping[str, float]  # by check, in the check's unit

    @property
    def loses_accuracy(self) -> bool:
        """Whether a limit on accuracy has to be loosened."""
        return any(check in self.measured for check in ("accuracy_drop", "balanced_drop"))

    def describe(self) -> str:
        """Return the variant and its flags in a sentence."""
        return f"{self.variant} would ship with {' '.join(self.flags)}"


def find(ranked: Sequence[Variant], verdicts: Mapping[str, Sequence[Verdict]]) -> tuple[NearestBudget, ...]:
    """Return the budgets at which each variant would ship: those that keep the accuracy first, then the least loosened.

    Args:
        ranked: variants that miss something, the fastest first.
        verdicts: on validation, by variant.
    """
    nearest = (_loosen(variant.name, verdicts[variant.name]) for variant in ranked)
    return tuple(
        sorted((entry for entry in nearest if entry), key=lambda entry: (entry.loses_accuracy, entry.loosened))
    )


def _loosen(name: str, verdicts: Sequence[Verdict]) -> NearestBudget | None:
    """Return what a variant would ship at; None where the artefact itself is refused."""
    if any(verdict.outcome == "fail" and verdict.check not in budget_checks.CHECKS for verdict in verdicts):
        return None
    missed = [verdict for verdict in verdicts if budget_checks.misses_budget(verdict)]
    factors = [_factor(verdict) for verdict in missed]
    return NearestBudget(
        variant=name,
        flags=tuple(_format_flag(verdict) for verdict in missed),
        loosened=max(factors, default=1.0),
        measured={verdict.check: verdict.measured for verdict in missed if verdict.measured is not None},
    )


def _factor(verdict: Verdict) -> float:
    assert verdict.measured is not None
    assert verdict.limit is not None
    if verdict.check in budget_checks.HIGHER_IS_BETTER:
        return verdict.limit / verdict.measured
    return verdict.measured / verdict.limit if verdict.limit > 0 else math.inf


def _format_flag(verdict: Verdict) -> str:
    """Return the flag that sets the loosened limit, rounded to the side that lets the variant pass."""
    assert verdict.measured is not None
    if verdict.check == "latency":
        return f"--latency {math.ceil(100 * verdict.measured * ROUNDING) / 100:.2f}x"
    if verdict.check == "speedup":
        return f"--budget speedup={math.floor(100 * verdict.measured / ROUNDING) / 100:.2f}"
    if verdict.check == "size":
        return f"--budget size={math.ceil(verdict.measured / 1000)}kB"
    if verdict.check == "size_bytes":
        return f"--budget size_bytes={int(verdict.measured)}"
    return f"--budget {verdict.check}={math.ceil(1000 * verdict.measured) / 1000:.3f}"
