"""Return layers of a quantized network to float.

A network that was only calibrated has corrected weights and biases: each makes up for the rounding of the layers before it. Where
some of them no longer round, the corrections are computed anew, from the weights of the float model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from toolchain.config.target import QuantScheme
from toolchain.data import loader
from toolchain.quantization import bias_correction, fx_graph, pt2e
from toolchain.quantization.placement import Placement
from toolchain.quantization.quantize import Network, QuantizedModel, count_correction_images


@dataclass(frozen=True)
class FloatRestorer:
    """A quantized network, and what its corrections are computed from."""

    quantized: QuantizedModel
    float_weights: Mapping[str, Tensor]  # before correction, by their name in the graph; empty: nothing was corrected
    images: Tensor  # normalised, float32 [n, 3, height, width]
    match_std: bool  # whether standard deviations were corrected, too

    def restore(self, chosen: Placement) -> GraphModule:
        """Return the network with only `chosen` quantized; `chosen` has more in float than the network's own placement."""
        graph = fx_graph.restrict_to_placement(self.quantized.graph, chosen)
        if self.float_weights:
            graph.load_state_dict(
                {name: self.float_weights[name] for name, _ in graph.named_parameters() if name in self.float_weights},
                strict=False,
            )
            bias_correction.correct_layers(graph, self.images, match_std=self.match_std)
        return graph


def prepare(network: Network, quantized: QuantizedModel, scheme: QuantScheme) -> FloatRestorer:
    """Return what layers of `network` are returned to float with.

    Args:
        network: the float model and its dataset.
        quantized: its quantized form; one that was trained keeps its weights.
        scheme: integer types.
    """
    dataset = network.dataset
    starts = quantized.trained.record.get("starts") or [{"correction": "none"}]
    correction = starts[0]["correction"] if quantized.method == "ptq" else "none"
    images = torch.cat(
        [images for images, _ in loader.ordered_batches(dataset.calibration_images, dataset.preprocess, 64)]
    )
    weights: Mapping[str, Tensor] = {}
    if correction != "none":
        graph, _ = pt2e.prepare(network.trained.model, dataset.example_input, quantized.placement, scheme)
        weights = dict(graph.named_parameters())
    return FloatRestorer(quantized, weights, images[: count_correction_images(images)], correction == "norm")
