"""Plan: carried out of a larger module; to be described."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict

from toolchain.core import files
from toolchain.core.types import NetworkName, Precision
from toolchain.models.profile import Layer
from toolchain.pruning.surgery import Surgery
from toolchain.quantization.placement import Placement
from toolchain.search import place
from toolchain.search.latency_search import LatencyFit


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The decisions, and what they were made for."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    schema: int
    recipe: str
    target: str
    runtime: str
    image_size: tuple[int, int]  # of the dense model's pictures: height, width
    asked: Mapping[str, Any]  # settings and budgets that decided how much is cut
    layers: tuple[Layer, ...]  # of the dense model
    weights: str  # key of the weights that ranked the channels
    surgery: Surgery
    placements: Mapping[NetworkName, Placement]
    resized: tuple[int, int] | None = None  # the pruned model's pictures, where they are smaller
    dense: Precision | None = None  # the form that the dense model would ship in, where a budget is a share of it
    fitted: LatencyFit | None = None  # how a latency was met
    ships: Precision | None = None  # the form that shipped: timed anew, two of one speed may change places
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Digest of what is decided."""
        return files.digest(self.surgery, self.placements, self.weights, self.layers, self.resized)


@dataclass(frozen=True)
class ImageSizeTrial:
    """What a size of pictures came to in a short training."""

    size: tuple[int, int]  # height, width
    latency: float | None  # as a share of the dense model's as it would ship, measured
    reached: float  # on validation, of what is aimed at
    images: int


@dataclass(frozen=True)
class CandidatePlan:
    """What a way of planning came to."""

    surgery: Surgery
    latency_fit: LatencyFit | None = None
    reduced_image_size: tuple[int, int] | None = None
    size_trials: tuple[ImageSizeTrial, ...] = ()
    dense_precision: Precision | None = (
        None  # the form that the dense model would ship in, where a budget is a share of it
    )


@dataclass(frozen=True)
class PruningPlan:
    """The plan as data, and the layer sizes it leads from and to."""

    surgery: Surgery
    key: str
    layers_before: Sequence[Layer]
    layers_after: Sequence[Layer]
    latency_fit: LatencyFit | None  # None where latency was no matter
    lock: Lock | None = None  # that all this comes from
    reduced_image_size: tuple[int, int] | None = (
        None  # the pruned model's pictures, height and width, where they are smaller
    )
    size_trials: tuple[ImageSizeTrial, ...] = ()  # sizes of pictures among which a short training chose
    dense_precision: Precision | None = (
        None  # the form that the dense model would ship in, where a budget is a share of it
    )

    @property
    def decided_placements(self) -> Mapping[NetworkName, Placement]:
        """Placements that are decided already."""
        if self.lock:
            return self.lock.placements
        own = self.latency_fit.placement if self.latency_fit else None
        return {"pruned": own} if own else {}

    @property
    def removes_anything(self) -> bool:
        """Whether anything is cut at all."""
        return bool(self.surgery.keep or self.surgery.dropped)

    @property
    def differs_from_dense(self) -> bool:
        """Whether there is another model than the dense one."""
        return self.removes_anything or self.reduced_image_size is not None


def read_latency_fit(row: Mapping[str, Any] | None) -> LatencyFit | None:
    """A `Fitted` from its JSON."""
    if row is None:
        return None
    return LatencyFit(**{**row, "placement": row["placement"] and place.read_placement(row["placement"])})
