"""The values of a pruning plan: the plan of one run, the lock that replays it, and the trials that it was chosen from.

`search_pruning` makes the plan, `lock_file` writes and reads it beside the report, `report` shows it.
"""

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
    """The decisions of a run, with the model, target and settings that they were made for. Written as JSON."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    schema: int
    recipe: str
    target: str
    runtime: str
    image_size: tuple[int, int]  # of the dense model's images: height, width
    asked: Mapping[str, Any]  # settings and budgets that decide how much is pruned
    layers: tuple[Layer, ...]  # of the dense model
    weights: str  # key of the weights that ranked the channels
    surgery: Surgery
    placements: Mapping[NetworkName, Placement]
    resized: tuple[int, int] | None = None  # height and width of the pruned model's images, where they are smaller
    dense: Precision | None = None  # precision that the dense model would ship in, where a budget is relative to it
    fitted: LatencyFit | None = None  # how the latency budget was met
    ships: Precision | None = None  # what shipped, kept because a new timing may order two close ones differently
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Digest of the decisions."""
        return files.digest(self.surgery, self.placements, self.weights, self.layers, self.resized)


@dataclass(frozen=True)
class ImageSizeTrial:
    """The result of a short training at one image size."""

    size: tuple[int, int]  # height, width
    latency: float | None  # measured, as a share of the latency of the dense model as it would ship
    reached: float  # validation score that the training optimizes
    images: int  # validation images


@dataclass(frozen=True)
class CandidatePlan:
    """A plan for one image size, or the one that was chosen among several sizes."""

    surgery: Surgery
    latency_fit: LatencyFit | None = None
    reduced_image_size: tuple[int, int] | None = None
    size_trials: tuple[ImageSizeTrial, ...] = ()
    dense_precision: Precision | None = None  # as it would ship, where a budget is relative to the dense model


@dataclass(frozen=True)
class PruningPlan:
    """The plan that the run follows, with the layer sizes before and after."""

    surgery: Surgery
    key: str
    layers_before: Sequence[Layer]
    layers_after: Sequence[Layer]
    latency_fit: LatencyFit | None  # None without a latency budget
    lock: Lock | None = None  # the lock that was replayed
    reduced_image_size: tuple[int, int] | None = None  # height and width of the pruned model's images, where smaller
    size_trials: tuple[ImageSizeTrial, ...] = ()  # image sizes that a short training compared
    dense_precision: Precision | None = None  # as it would ship, where a budget is relative to the dense model

    @property
    def decided_placements(self) -> Mapping[NetworkName, Placement]:
        """Q/DQ placements that need no search, by network."""
        if self.lock:
            return self.lock.placements
        placement = self.latency_fit.placement if self.latency_fit else None
        return {"pruned": placement} if placement else {}

    @property
    def removes_anything(self) -> bool:
        """Whether channels or blocks are removed."""
        return bool(self.surgery.keep or self.surgery.dropped)

    @property
    def differs_from_dense(self) -> bool:
        """Whether the planned model differs from the dense one, by its channels, blocks or image size."""
        return self.removes_anything or self.reduced_image_size is not None


def keep_everything(lock: Lock | None) -> PruningPlan:
    """Return the plan of a model that cannot be pruned; a lock may name its Q/DQ placement."""
    return PruningPlan(surgery=Surgery(), key="", layers_before=(), layers_after=(), latency_fit=None, lock=lock)


def read_latency_fit(row: Mapping[str, Any] | None) -> LatencyFit | None:
    """Return a `LatencyFit` from its JSON; None from null."""
    if row is None:
        return None
    return LatencyFit(**{**row, "placement": row["placement"] and place.read_placement(row["placement"])})
