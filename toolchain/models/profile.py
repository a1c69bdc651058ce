"""Measure the size of every convolution and linear layer: channels, output positions, multiply-accumulates, parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

LayerKind = Literal["depthwise", "grouped", "pointwise", "spatial", "linear"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Size of one convolution or linear layer, for the width table and the multiply-accumulate count."""

    name: str
    kind: LayerKind
    inputs: int  # channels or features
    outputs: int
    sites: int  # output positions: height x width, times the tokens of a sequence
    macs: int  # multiply-accumulates per image
    parameters: int


def is_depthwise(module: nn.Module) -> bool:
    """Return whether every channel has its own filter."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def measure_layers(model: nn.Module, image: Tensor) -> tuple[Layer, ...]:
    """Measure every convolution and linear layer, in the order in which they run.

    Args:
        model: run once in evaluation mode; its training mode is restored.
        image: one example, float32 [1, 3, height, width].

    Returns:
        One entry per call of a layer.
    """
    layers: list[Layer] = []

    def make_hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            assert isinstance(module, nn.Conv2d | nn.Linear)
            weight = module.weight
            sites = output[0].numel() // weight.shape[0]
            layers.append(
                Layer(
                    name=name,
                    kind=_layer_kind(module),
                    inputs=module.in_channels if isinstance(module, nn.Conv2d) else module.in_features,
                    outputs=weight.shape[0],
                    sites=sites,
                    macs=weight.numel() * sites,
                    parameters=weight.numel() + (0 if module.bias is None else module.bias.numel()),
                )
            )

        return hook

    handles = [
        module.register_forward_hook(make_hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    training = model.training
    with torch.no_grad():
        model.eval()(image)
    model.train(training)
    for handle in handles:
        handle.remove()
    return tuple(layers)


def _layer_kind(module: nn.Conv2d | nn.Linear) -> LayerKind:
    if isinstance(module, nn.Linear):
        return "linear"
    if module.groups > 1:
        return "depthwise" if is_depthwise(module) else "grouped"
    return "pointwise" if module.weight[0, 0].numel() == 1 else "spatial"


def total_parameters(layers: Sequence[Layer]) -> float:
    """Return the number of parameters of all convolutions and linear layers."""
    return float(sum(layer.parameters for layer in layers))


def total_macs(layers: Sequence[Layer]) -> float:
    """Return the multiply-accumulates per image of all convolutions and linear layers."""
    return float(sum(layer.macs for layer in layers))
