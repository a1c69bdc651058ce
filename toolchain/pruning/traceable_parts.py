"""A model as the parts that it calls: what is left to look at where the model cannot be traced as a whole."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TraceablePart:
    """A module of a model, and what it was called with."""

    name: str  # in the model; "" is the whole
    module: nn.Module
    example_input: Tensor

    def full_name(self, child: str) -> str:
        """The name in the model of a module that is called `child` in this part."""
        return ".".join(name for name in (self.name, child) if name)


class FixedBoundary(nn.Module):
    """A part between two bare parameters: what is bound to them comes from outside or goes there, and has to stay."""

    def __init__(self, part: TraceablePart) -> None:
        super().__init__()
        self.wrapped = part.module
        with torch.no_grad():
            answer = part.module(part.example_input)
        self.input_offset, self.output_offset = (
            nn.Parameter(torch.zeros(_bare(tensor))) for tensor in (part.example_input, answer)
        )

    def forward(self, x: Tensor) -> Tensor:
        """As the part answers."""
        answer: Tensor = self.wrapped(x + self.input_offset) + self.output_offset
        return answer


def _bare(tensor: Tensor) -> torch.Size:
    """A shape to be added to a tensor, of other than three dimensions: those Torch-Pruning takes for tokens."""
    return tensor.shape[1:] if tensor.dim() == 3 else tensor.shape


def split(part: TraceablePart) -> list[TraceablePart]:
    """The outermost modules inside of a part that hold further modules, each called once, with one tensor.

    One that is called more often, or with something else, is looked into in its turn.
    """
    calls, inputs = _called(part)
    found: list[TraceablePart] = []
    for name, child in part.module.named_modules():
        if not name or any(_inside(name, known, part) for known in found):
            continue
        if any(True for _ in child.children()) and all(calls[m] == 1 for m in child.modules()) and child in inputs:
            found.append(TraceablePart(part.full_name(name), child, inputs[child]))
    return found


def _inside(name: str, known: TraceablePart, part: TraceablePart) -> bool:
    return part.full_name(name).startswith(f"{known.name}.")


def _called(part: TraceablePart) -> tuple[Counter[nn.Module], dict[nn.Module, Tensor]]:
    """How often each module is called, and with which tensor where it is one tensor."""
    calls, inputs = Counter[nn.Module](), dict[nn.Module, Tensor]()

    def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], _: Any) -> None:
        calls[module] += 1
        if len(given) == 1 and not named and isinstance(given[0], Tensor):
            inputs[module] = given[0]

    hook: Callable[..., None] = note
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in part.module.modules()]
    with torch.no_grad():
        part.module(part.example_input)
    for handle in handles:
        handle.remove()
    return calls, inputs
