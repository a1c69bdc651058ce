"""Put a new head for other classes on a model whose builder does not ask how many there are."""

import torch
from torch import nn

from toolchain.core import progress
from toolchain.core.errors import ToolchainError


def replace_head(model: nn.Module, classes: int) -> nn.Module:
    """Replace the last linear layer or convolution of a model by one with `classes` outputs, in place; return the model.

    A model whose last layer has as many outputs already is left as it is.

    Raises:
        ToolchainError: the model has no such layer.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not layers:
        raise ToolchainError(
            f"{type(model).__name__} has no linear layer or convolution that could be its head, so it gets no head for "
            f"{classes} classes; let its function take `classes`"
        )
    name, layer = layers[-1]
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if outputs == classes:
        return model
    with_bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        head: nn.Module = nn.Linear(layer.in_features, classes, bias=with_bias)
    elif layer.groups == 1 and layer.kernel_size == (1, 1):
        head = nn.Conv2d(layer.in_channels, classes, 1, bias=with_bias)
    else:
        raise ToolchainError(
            f"the last layer of {type(model).__name__}, {name}, is a {layer.kernel_size[0]}x{layer.kernel_size[1]} convolution "
            f"with {outputs} outputs, which is no head for {classes} classes; let its function take `classes`"
        )
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, head)
    progress.log(f"model: {name} has {outputs} outputs; a new head for {classes} classes takes its place")
    return model.to(next(iter(model.parameters())).dtype)


def check_logits(logits: object, classes: int) -> None:
    """Check the output of a classifier for one image.

    Raises:
        ToolchainError: it is not one tensor of logits [1, classes].
    """
    if isinstance(logits, torch.Tensor) and tuple(logits.shape) == (1, classes):
        return
    if isinstance(logits, dict):
        given = f"a dictionary with {', '.join(map(str, list(logits)[:4]))}"
    elif isinstance(logits, tuple | list):
        given = f"a {type(logits).__name__} of {len(logits)}"
    else:
        given = f"{list(logits.shape)}" if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
    raise ToolchainError(
        f"the model gives {given} for one image; a classifier gives one tensor of logits [1, {classes}], one per class"
    )
