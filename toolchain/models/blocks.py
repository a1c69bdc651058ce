"""The blocks of a classifier in the order in which they run, where it can be cut, and the shallower network that is left.

A cut leaves everything behind the last kept block out and puts a new linear head there. Modules that are left out become
`nn.Identity`, as dropped blocks do elsewhere, so that no name shifts and checkpoints of the whole network load.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolchain.core import registry
from toolchain.core.errors import ToolchainError

PROBE_SIZE = 224, 192  # height and width of a picture that tells maps from lists of tokens
NORM_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
MIN_TRUNK_LAYERS = (
    6  # plain layers in a row from which on a sequence is a trunk (VGG), not a block of layer, norm and activation
)


@dataclass(frozen=True)
class Block:
    """One place to cut behind: a module that learns, and what only follows it (norm, activation, pooling)."""

    name: str  # of the module that learns
    module_names: tuple[str, ...]

    @property
    def last_module(self) -> str:
        """The module whose output leaves the block."""
        return self.module_names[-1]


def find(model: nn.Module, head: str) -> tuple[Block, ...]:
    """Blocks that give maps [images, channels, height, width], in order, without what the head's own part does.

    Empty where the network is not a chain of such blocks, as transformers with their tokens are not.

    Args:
        head: name of the layer that gives the class scores.
    """
    part = head.partition(".")[0]
    found = list[Block]()
    for name, module in _row(model):
        if name.partition(".")[0] == part:
            continue
        learns = any(True for _ in module.parameters())
        if found and (isinstance(module, NORM_LAYERS) or not learns):
            last = found.pop()
            found.append(Block(last.name, (*last.module_names, name)))
        elif learns:
            found.append(Block(name, (name,)))
    if found:  # the pooling before the head stands at the top and belongs to it
        last = found.pop()
        members = list(last.module_names)
        while "." not in members[-1] and not any(True for _ in model.get_submodule(members[-1]).parameters()):
            members.pop()
        found.append(Block(last.name, tuple(members)))
    return tuple(found) if _maps(model, found) else ()


def cut(model: nn.Module, head: str, keep: str, classes: int) -> nn.Module:
    """Cuts `model` in place behind the block `keep` and gives it a fresh linear head for `classes`.

    Raises:
        ToolchainError: there is no such block; names the nearest, or says that this network has none.
    """
    blocks = find(model, head)
    behind = blocks[_index(model, blocks, keep) + 1 :]
    if not behind:
        return model
    for member in (member for block in behind for member in block.module_names):
        model.set_submodule(member, nn.Identity())
    part = head.partition(".")[0]
    model.set_submodule(part, _head(model, part, classes))
    return model


def modules_between(model: nn.Module, head: str, *, first: str = "", last: str = "") -> tuple[str, ...]:
    """Modules from the block `first` to the block `last`, both among them; "": from the start, or to the end.

    Raises:
        ToolchainError: as `cut`.
    """
    blocks = find(model, head)
    start = _index(model, blocks, first) if first else 0
    end = _index(model, blocks, last) + 1 if last else len(blocks)
    return tuple(member for block in blocks[start:end] for member in block.module_names)


def check_freeze_before_fresh(model: nn.Module, head: str, *, freeze: str, fresh: str) -> None:
    """Asserts that what stays as it is ends before what starts anew.

    Raises:
        ToolchainError: as `cut`; or random weights would stay random.
    """
    blocks = find(model, head)
    if _index(model, blocks, freeze) >= _index(model, blocks, fresh):
        raise ToolchainError(
            f"[reuse] freeze = {freeze!r} reaches into what starts anew from fresh = {fresh!r}: random weights would stay "
            "random; freeze less, or start anew later"
        )


def _index(model: nn.Module, blocks: Sequence[Block], name: str) -> int:
    names = [block.name for block in blocks]
    if name not in names:
        said = registry.suggest(name, names) if names else f"this {type(model).__name__} is no chain of blocks"
        raise ToolchainError(f"[reuse] there is no block {name!r}; {said}")
    return names.index(name)


def _row(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules in order; sequences of blocks are opened, blocks are not."""
    for name, child in model.named_children():
        inner = list(child.children())
        opened = isinstance(child, nn.Sequential) and (
            len(inner) > MIN_TRUNK_LAYERS or any(True for i in inner for _ in i.children())
        )
        if opened:
            yield from _row(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def _maps(model: nn.Module, blocks: list[Block]) -> bool:
    """Whether every block runs once, in this order, and gives a map."""
    shapes = list[tuple[str, tuple[int, ...]]]()
    sketch = copy.deepcopy(model).to("meta").eval()
    for block in blocks:

        def note(_: nn.Module, __: object, output: object, name: str = block.name) -> None:
            shapes.append((name, tuple(output.shape) if isinstance(output, Tensor) else ()))

        sketch.get_submodule(block.last_module).register_forward_hook(note)
    try:
        sketch(torch.zeros(1, 3, *PROBE_SIZE, device="meta"))
    except Exception:  # a network that takes squares only, or asks for values: no place to cut
        return False
    flat = all(len(shape) == 4 and 1 < shape[3] <= shape[2] <= 1.5 * shape[3] for _, shape in shapes)  # as PROBED is
    return flat and [name for name, _ in shapes] == [block.name for block in blocks]


def _head(model: nn.Module, part: str, classes: int) -> nn.Module:
    """A linear head on what reaches `part` now."""
    seen = list[tuple[int, ...]]()
    sketch = copy.deepcopy(model).to("meta").eval()

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(tuple(given[0].shape))
        raise _Reached

    sketch.get_submodule(part).register_forward_pre_hook(note)
    with contextlib.suppress(_Reached):
        sketch(torch.zeros(1, 3, *PROBE_SIZE, device="meta"))
    own = model.get_submodule(part)
    layer = nn.Linear(seen[0][1], classes)
    if isinstance(own, nn.Linear):
        return layer
    rates = [module.p for module in own.modules() if isinstance(module, nn.Dropout)]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(1)] if len(seen[0]) == 4 else []
    return nn.Sequential(*pooled, *(nn.Dropout(rate) for rate in rates[:1]), layer)


class _Reached(Exception):
    """The head's part was reached; what lies behind it is not run."""
