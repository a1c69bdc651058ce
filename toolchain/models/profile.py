"""Profile: carried out of a larger module; to be described."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


def is_depthwise(module: nn.Module) -> bool:
    """Whether every channel has a filter of its own."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


LayerKind = Literal["depthwise", "grouped", "pointwise", "spatial", "linear"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Size of one convolution or linear layer, for the width table and the multiply-accumulate count."""

    name: str
    kind: LayerKind
    inputs: int
    outputs: int
    sites: int  # of the output: height times width, times the tokens of a sequence
    macs: int
    parameters: int


def measure_layers(model: nn.Module, image: Tensor) -> tuple[Layer, ...]:
    """Sizes and multiply-accumulates of every convolution and linear layer for one image [1, 3, height, width]."""
    found: list[Layer] = []

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            assert isinstance(module, nn.Conv2d | nn.Linear)
            weight = module.weight
            sites = output[0].numel() // weight.shape[0]
            bias = 0 if module.bias is None else module.bias.numel()
            inputs = module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
            macs = weight.numel() * sites
            found.append(
                Layer(
                    name=name, kind=_kind(module), inputs=inputs, outputs=weight.shape[0], sites=sites, macs=macs,
                    parameters=weight.numel() + bias,
                )
            )  # fmt: skip

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]  # fmt: skip
    training = model.training
    with torch.no_grad():
        model.eval()(image)
    model.train(training)
    for handle in handles:
        handle.remove()
    return tuple(found)


def _kind(module: nn.Conv2d | nn.Linear) -> LayerKind:
    if isinstance(module, nn.Linear):
        return "linear"
    if module.groups > 1:
        return "depthwise" if is_depthwise(module) else "grouped"
    return "pointwise" if module.weight[0, 0].numel() == 1 else "spatial"


def total_parameters(sizes: Sequence[Layer]) -> float:
    """Parameters of an architecture's convolutions and linear layers."""
    return float(sum(layer.parameters for layer in sizes))


def total_macs(sizes: Sequence[Layer]) -> float:
    """Multiply-accumulates of an architecture."""
    return float(sum(layer.macs for layer in sizes))
