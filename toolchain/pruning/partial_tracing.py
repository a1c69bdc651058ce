"""The traceable parts of a model that cannot be traced for pruning as a whole.

Each part is a module that is called once, with one tensor. Channels inside a part can be pruned; the channels of its
input and output have to stay.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TraceablePart:
    """A module of a model, with an example of the input that it is called with."""

    name: str  # in the model; "" is the whole model
    module: nn.Module
    example_input: Tensor

    def full_name(self, child: str) -> str:
        """Return the name in the model of a module that is called `child` in this part."""
        return ".".join(name for name in (self.name, child) if name)


class FixedBoundary(nn.Module):
    """A part with a bare parameter added to its input and to its output.

    The dependency graph ties the channels of input and output to these parameters, which shows that they belong to the
    rest of the model and have to stay.
    """

    def __init__(self, part: TraceablePart) -> None:
        """Wrap a part; its module is run once to get the shape of the output."""
        super().__init__()
        self.wrapped = part.module
        with torch.no_grad():
            output = part.module(part.example_input)
        self.input_offset, self.output_offset = (
            nn.Parameter(torch.zeros(_offset_shape(tensor))) for tensor in (part.example_input, output)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the part's output; the offsets are zero."""
        output: Tensor = self.wrapped(x + self.input_offset) + self.output_offset
        return output


def _offset_shape(tensor: Tensor) -> torch.Size:
    """Return a shape that can be added to the tensor; not three-dimensional, which Torch-Pruning takes for tokens."""
    return tensor.shape[1:] if tensor.dim() == 3 else tensor.shape


def split(part: TraceablePart) -> list[TraceablePart]:
    """Return the outermost modules inside a part that hold further modules and are called once, with one tensor.

    A module that is called more often, or with something else, is split in its turn.
    """
    calls, inputs = _record_calls(part)
    parts: list[TraceablePart] = []
    for name, child in part.module.named_modules():
        if not name or any(part.full_name(name).startswith(f"{outer.name}.") for outer in parts):
            continue
        if any(True for _ in child.children()) and all(calls[m] == 1 for m in child.modules()) and child in inputs:
            parts.append(TraceablePart(part.full_name(name), child, inputs[child]))
    return parts


def _record_calls(part: TraceablePart) -> tuple[Counter[nn.Module], dict[nn.Module, Tensor]]:
    """Return how often each module is called, and the input of those that are called with a single tensor."""
    calls, inputs = Counter[nn.Module](), dict[nn.Module, Tensor]()

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        calls[module] += 1
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            inputs[module] = args[0]

    hook: Callable[..., None] = record
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in part.module.modules()]
    with torch.no_grad():
        part.module(part.example_input)
    for handle in handles:
        handle.remove()
    return calls, inputs
