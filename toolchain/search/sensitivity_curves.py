"""The values of the pruning sensitivity analysis: accuracy against the pruned share, by pruning group or residual block."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from toolchain.core.types import Interval

CurveKind = Literal["channels", "block"]
MissingReason = Literal["", "protected", "too narrow", "no time", "does not run"]


@dataclass(frozen=True)
class SensitivityPoint:
    """Accuracy with one group narrowed, or one block dropped."""

    share: float  # of the channels that are removed, 0..1
    accuracy: Interval
    drop: Interval  # from the dense model, paired over the same images


@dataclass(frozen=True)
class SensitivityCurve:
    """The points of one pruning group, or of one residual block."""

    name: str  # the layer that produces the channels, or the block
    kind: CurveKind
    channels: int  # 0 for a block
    layers: tuple[str, ...]  # layers whose output channels are coupled
    cut: float  # share that the plan removes, 0..1
    points: tuple[SensitivityPoint, ...]  # by increasing share
    why: MissingReason  # why there are no points

    @property
    def severity(self) -> tuple[float, float]:
        """What curves are ordered by: the accuracy drop at half of the channels, then the largest drop.

        Between the measured shares, and beyond them, the drop is taken as linear. For a block, the drop without it.
        """
        shares, drops = [0.0, *(p.share for p in self.points)], [0.0, *(p.drop.estimate for p in self.points)]
        if not self.points or self.kind == "block":
            return drops[-1] if self.points else -np.inf, 0.0
        return float(np.interp(0.5, shares, drops)) * max(1.0, 0.5 / shares[-1]), max(drops)


@dataclass(frozen=True)
class Sensitivity:
    """All curves, the most sensitive first."""

    dense: Interval  # accuracy of the dense model on the same images
    curves: tuple[SensitivityCurve, ...]


def read_sensitivity(row: Mapping[str, Any]) -> Sensitivity:
    """Return the analysis from its JSON."""
    return Sensitivity(Interval(**row["dense"]), tuple(_read_curve(curve) for curve in row["curves"]))


def _read_curve(row: Mapping[str, Any]) -> SensitivityCurve:
    points = tuple(
        SensitivityPoint(point["share"], Interval(**point["accuracy"]), Interval(**point["drop"]))
        for point in row["points"]
    )
    return SensitivityCurve(**{**row, "points": points, "layers": tuple(row["layers"])})
