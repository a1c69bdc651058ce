"""Find the blocks of a classifier in the order in which they run, and cut it after one to get a shallower network.

Cutting removes everything after the last kept block and puts a new linear head there. Removed modules become
`nn.Identity`, as dropped blocks do elsewhere, so that no name changes and checkpoints of the whole network still load.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolchain.core import registry
from toolchain.core.errors import ToolchainError

PROBE_SIZE = 224, 192  # height and width of a probe image; not square, so that feature maps differ from token lists
NORM_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
# a sequence with more plain layers is a trunk (VGG), not a block of convolution, norm and activation
MIN_TRUNK_LAYERS = 6


@dataclass(frozen=True)
class Block:
    """A module with parameters, and those that only follow it (norm, activation, pooling): the network can be cut after it."""

    name: str  # of the module with parameters
    module_names: tuple[str, ...]

    @property
    def last_module(self) -> str:
        """Return the name of the module whose output leaves the block."""
        return self.module_names[-1]


def find(model: nn.Module, head: str) -> tuple[Block, ...]:
    """Find the blocks that give feature maps [images, channels, height, width], in order, without those of the head.

    Args:
        model: a classifier.
        head: name of the layer that gives the logits.

    Returns:
        The blocks; none where the network is not a chain of such blocks, as transformers with their tokens are not.
    """
    head_part = head.partition(".")[0]
    blocks = list[Block]()
    for name, module in _list_modules(model):
        if name.partition(".")[0] == head_part:
            continue
        if blocks and (isinstance(module, NORM_LAYERS) or not _has_parameters(module)):
            last = blocks.pop()
            blocks.append(Block(last.name, (*last.module_names, name)))
        elif _has_parameters(module):
            blocks.append(Block(name, (name,)))
    if blocks:  # pooling before the head is a direct child of the model, and belongs to the head
        last = blocks.pop()
        names = list(last.module_names)
        while "." not in names[-1] and not _has_parameters(model.get_submodule(names[-1])):
            names.pop()
        blocks.append(Block(last.name, tuple(names)))
    return tuple(blocks) if _gives_maps_in_order(model, blocks) else ()


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def cut(model: nn.Module, head: str, keep: str, classes: int) -> nn.Module:
    """Cut `model` in place after the block `keep`, and give it a new linear head for `classes`.

    Raises:
        ToolchainError: there is no such block; names the nearest, or says that this network has none.
    """
    blocks = find(model, head)
    removed = blocks[_index(model, blocks, keep) + 1 :]
    if not removed:
        return model
    for name in (name for block in removed for name in block.module_names):
        model.set_submodule(name, nn.Identity())
    head_part = head.partition(".")[0]
    model.set_submodule(head_part, _make_head(model, head_part, classes))
    return model


def modules_between(model: nn.Module, head: str, *, first: str = "", last: str = "") -> tuple[str, ...]:
    """Return the modules from the block `first` to the block `last`, inclusive; "" stands for the start and the end.

    Raises:
        ToolchainError: as `cut`.
    """
    blocks = find(model, head)
    start = _index(model, blocks, first) if first else 0
    end = _index(model, blocks, last) + 1 if last else len(blocks)
    return tuple(name for block in blocks[start:end] for name in block.module_names)


def check_freeze_before_fresh(model: nn.Module, head: str, *, freeze: str, fresh: str) -> None:
    """Check that the frozen blocks end before the first block with random weights.

    Args:
        model: a classifier.
        head: name of the layer that gives the logits.
        freeze: the last frozen block.
        fresh: the first block that starts from random weights.

    Raises:
        ToolchainError: as `cut`; or random weights would be frozen.
    """
    blocks = find(model, head)
    if _index(model, blocks, freeze) >= _index(model, blocks, fresh):
        raise ToolchainError(
            f"[reuse] freeze = {freeze!r} would freeze random weights: blocks from fresh = {fresh!r} on start from random "
            "weights and must be trained; freeze fewer blocks, or move fresh to a later block"
        )


def _index(model: nn.Module, blocks: Sequence[Block], name: str) -> int:
    names = [block.name for block in blocks]
    if name not in names:
        hint = registry.suggest(name, names) if names else f"this {type(model).__name__} is not a chain of blocks"
        raise ToolchainError(f"[reuse] there is no block {name!r}; {hint}")
    return names.index(name)


def _list_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield modules in order; a sequence of blocks is entered, a block is not."""
    for name, child in model.named_children():
        layers = list(child.children())
        is_sequence_of_blocks = isinstance(child, nn.Sequential) and (
            len(layers) > MIN_TRUNK_LAYERS or any(True for layer in layers for _ in layer.children())
        )
        if is_sequence_of_blocks:
            yield from _list_modules(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def _gives_maps_in_order(model: nn.Module, blocks: list[Block]) -> bool:
    """Return whether every block runs once, in this order, and gives a feature map."""
    outputs = list[tuple[str, tuple[int, ...]]]()  # block and shape
    probe = copy.deepcopy(model).to("meta").eval()
    for block in blocks:

        def note_shape(_: nn.Module, __: object, output: object, name: str = block.name) -> None:
            outputs.append((name, tuple(output.shape) if isinstance(output, Tensor) else ()))

        probe.get_submodule(block.last_module).register_forward_hook(note_shape)
    try:
        probe(torch.zeros(1, 3, *PROBE_SIZE, device="meta"))
    except Exception:  # a network that takes square images only, or depends on values: it cannot be cut
        return False
    maps = all(  # height to width about as PROBE_SIZE
        len(shape) == 4 and 1 < shape[3] <= shape[2] <= 1.5 * shape[3] for _, shape in outputs
    )
    return maps and [name for name, _ in outputs] == [block.name for block in blocks]


def _make_head(model: nn.Module, head_part: str, classes: int) -> nn.Module:
    """Return a linear head that fits the present input of `head_part`, with the dropout of the head it replaces."""
    shapes = list[tuple[int, ...]]()
    probe = copy.deepcopy(model).to("meta").eval()

    def note_shape(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shapes.append(tuple(inputs[0].shape))
        raise _HeadReached

    probe.get_submodule(head_part).register_forward_pre_hook(note_shape)
    with contextlib.suppress(_HeadReached):
        probe(torch.zeros(1, 3, *PROBE_SIZE, device="meta"))
    (shape,) = shapes
    replaced = model.get_submodule(head_part)
    linear = nn.Linear(shape[1], classes)
    if isinstance(replaced, nn.Linear):
        return linear
    dropout_rates = [module.p for module in replaced.modules() if isinstance(module, nn.Dropout)]
    pooling = [nn.AdaptiveAvgPool2d(1), nn.Flatten(1)] if len(shape) == 4 else []
    return nn.Sequential(*pooling, *(nn.Dropout(rate) for rate in dropout_rates[:1]), linear)


class _HeadReached(Exception):
    """The probe has reached the head; the rest need not run."""
