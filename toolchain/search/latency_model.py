"""A model of an architecture's latency on a target by its layer sizes, fitted to a few architectures that were timed.

A search over widths and depth asks for the latency of thousands of architectures and can time a few dozen. The cost of a
layer is modelled by its multiply-accumulates, the activations it reads and writes, and a constant, with rates for each
kind of layer that are fitted to the timed architectures and never negative. The search times its result again.
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
    """An architecture and its measured latency."""

    layers: tuple[Layer, ...]
    latency: float  # in any unit, the same for all architectures of a fit


@dataclass(frozen=True)
class LatencyModel:
    """Rates by kind of layer, from `fit`."""

    rates: np.ndarray  # [features]
    relative_error: float  # root mean square of the relative error on the fitted architectures

    def __call__(self, layers: Sequence[Layer]) -> float:
        """Predict the latency of an architecture, in the unit of the fitted ones."""
        return float(compute_features(layers) @ self.rates)

    def scale(self, factor: float) -> "LatencyModel":
        """Return the model with all latencies multiplied by a factor."""
        return LatencyModel(self.rates * factor, self.relative_error)


def fit(timed: Sequence[TimedArchitecture]) -> LatencyModel:
    """Fit rates with the least squared relative error, none below zero.

    Source: non-negative least squares by Lawson and Hanson.
    """
    rows = np.stack([compute_features(architecture.layers) / architecture.latency for architecture in timed])
    scale = np.maximum(rows.max(0), 1e-30)
    rates, _ = optimize.nnls(rows / scale, np.ones(len(timed)))
    rates = rates / scale
    return LatencyModel(rates, float(np.sqrt(np.mean((rows @ rates - 1) ** 2))))


def compute_features(layers: Sequence[Layer]) -> np.ndarray:
    """Return the features [features] of an architecture.

    Per kind of layer: multiply-accumulates, activations read and written, number of layers. At the end a constant 1.
    """
    sums: Mapping[LayerKind, np.ndarray] = {kind: np.zeros(3) for kind in LAYER_KINDS}
    for layer in layers:
        activations = layer.sites * (layer.inputs + layer.outputs)
        sums[layer.kind] += np.array([layer.macs, activations, 1.0])
    return np.concatenate([*(sums[kind] for kind in LAYER_KINDS), [1.0]])
