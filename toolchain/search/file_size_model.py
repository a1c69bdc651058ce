"""A model of the compiled size of an architecture's files, fitted to a few that were compiled.

A search for a size budget asks for the size of thousands of architectures; compiling one takes about a second.
"""

from collections.abc import Sequence

import numpy as np
from torch import nn

from toolchain.models import profile
from toolchain.models.profile import Layer
from toolchain.pruning import surgery
from toolchain.pruning.width_search import CostFunction, SearchSpace
from toolchain.search import latency_search
from toolchain.search.architecture_timing import ArchitectureTimer

RANDOM_ARCHITECTURES = 8  # compiled to fit the model, beside the whole and the narrowest


def fit(timer: ArchitectureTimer, dense: nn.Module, space: SearchSpace) -> CostFunction:
    """Return a linear model of file size, in bytes, by parameters, output channels and layers.

    Args:
        timer: compiles architectures in the precision that would ship.
        dense: the model that the architectures are cut from.
        space: what may be removed.
    """
    subnetworks = [
        space.unpruned, space.narrowest, *latency_search.sample_architectures(space, RANDOM_ARCHITECTURES)
    ]  # fmt: skip
    sizes = [float(timer.measure_size_bytes(surgery.build(dense, space, subnetwork))) for subnetwork in subnetworks]
    rows = np.stack([_compute_features(space.remaining_layers(subnetwork)) for subnetwork in subnetworks])
    rates, *_ = np.linalg.lstsq(rows, sizes)
    return lambda layers: float(_compute_features(layers) @ rates)


def _compute_features(layers: Sequence[Layer]) -> np.ndarray:
    return np.array([profile.total_parameters(layers), sum(layer.outputs for layer in layers), len(layers), 1.0])
