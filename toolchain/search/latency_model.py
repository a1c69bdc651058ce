"""How long a network of given layer sizes takes on a target, learnt from a few timed architectures.

A search over widths and depth asks for the latency of thousands of architectures and can time a few dozen. Layers of one
kind are taken to cost what their multiply-accumulates, the activations they move and they themselves cost, at rates
that the timed architectures give; the rates are never negative. The result of the search is timed again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from scipy import optimize

from toolchain.models.profile import Layer, LayerKind

LAYER_KINDS: tuple[LayerKind, ...] = get_args(LayerKind)


@dataclass(frozen=True)
class TimedArchitecture:
    """An architecture that was timed."""

    layers: tuple[Layer, ...]
    latency: float  # in any unit, the same for all


@dataclass(frozen=True)
class LatencyModel:
    """Rates by kind of layer, as `fit` found them."""

    rates: np.ndarray  # [features]
    relative_error: float  # root mean square of the relative error on what it was fitted to

    def __call__(self, layers: Sequence[Layer]) -> float:
        """Latency of an architecture, in the unit of what was timed."""
        return float(compute_features(layers) @ self.rates)

    def scale(self, factor: float) -> "LatencyModel":
        """The same with all latencies multiplied."""
        return LatencyModel(self.rates * factor, self.relative_error)


def fit(timed: Sequence[TimedArchitecture]) -> LatencyModel:
    """Rates with the least relative error, none below zero (Lawson and Hanson's non-negative least squares)."""
    rows = np.stack([compute_features(one.layers) / one.latency for one in timed])
    scale = np.maximum(rows.max(0), 1e-30)
    rates, _ = optimize.nnls(rows / scale, np.ones(len(timed)))
    rates = rates / scale
    return LatencyModel(rates, float(np.sqrt(np.mean((rows @ rates - 1) ** 2))))


def compute_features(layers: Sequence[Layer]) -> np.ndarray:
    """What an architecture's latency is made of, [features]: per kind, work, values moved and layers; and one for all."""
    found: Mapping[LayerKind, np.ndarray] = {kind: np.zeros(3) for kind in LAYER_KINDS}
    for layer in layers:
        moved = layer.sites * (layer.inputs + layer.outputs)
        found[layer.kind] += np.array([layer.macs, moved, 1.0])
    return np.concatenate([*(found[kind] for kind in LAYER_KINDS), [1.0]])
