"""Small changes of a Q/DQ placement, tried one after another: layers, blocks and operations to float or back to int8."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import get_args

from toolchain.pruning import width_search
from toolchain.quantization.placement import PlaceableOperation, Placement, leave_in_float

PlacementChange = Callable[[Placement], Placement]
OPERATION_KINDS: tuple[PlaceableOperation, ...] = get_args(PlaceableOperation)
RANDOM_PAIRS = 400  # pairs of single changes, drawn at random


def move_to_float(module: str) -> PlacementChange:
    """Return the change that moves one more module to float."""
    return lambda placement: leave_in_float(placement, (module,))


def toggle_operation(kind: PlaceableOperation) -> PlacementChange:
    """Return the change that moves one kind of operation from int8 to float, or back."""

    def change(placement: Placement) -> Placement:
        in_float = set(placement.float_operations) ^ {kind}
        return dataclasses.replace(placement, float_operations=tuple(k for k in OPERATION_KINDS if k in in_float))

    return change


def _return_to_int8(module: str) -> PlacementChange:
    return lambda placement: dataclasses.replace(
        placement, float_modules=tuple(name for name in placement.float_modules if name != module)
    )


def _apply_both(first: PlacementChange, second: PlacementChange) -> PlacementChange:
    return lambda placement: second(first(placement))


def propose(
    placement: Placement, layers: Sequence[str], blocks: Sequence[str], seed: int
) -> Iterator[tuple[str, PlacementChange]]:
    """Yield changes of a placement with their labels, the most promising first.

    First the neighbours of what is in float, which need no new Q/DQ pairs, and the kinds of operation; then pairs of
    adjacent blocks, which need as many Q/DQ pairs as one block; then all other single changes; then random pairs of any.

    Args:
        placement: the placement to change.
        layers: modules of the layers that may be in float or int8, in running order.
        blocks: module names that divide the layers, as from `placement.split_into_blocks`.
        seed: of the random order.
    """
    generator = random.Random(seed)
    in_float = {layer for layer in layers if not placement.quantizes(layer)}
    distant: list[tuple[str, PlacementChange]] = []
    adjacent: list[tuple[str, PlacementChange]] = []
    for name in dict.fromkeys((*blocks, *layers)):
        positions = [index for index, layer in enumerate(layers) if width_search.is_inside(layer, name)]
        if name in placement.float_modules:
            adjacent.append((f"{name} in int8", _return_to_int8(name)))
        elif not in_float.issuperset(layers[index] for index in positions):
            first, last = positions[0], positions[-1]
            neighbours = {*layers[max(first - 1, 0) : first], *layers[last + 1 : last + 2]}
            (adjacent if neighbours & in_float else distant).append((f"{name} in float", move_to_float(name)))
    adjacent += [(f"{kind} toggled", toggle_operation(kind)) for kind in OPERATION_KINDS if in_float]
    block_pairs = [
        (f"{first_block} and {second_block} in float", _apply_both(move_to_float(first_block), move_to_float(second_block)))
        for first_block, second_block in pairwise(blocks)
    ]  # fmt: skip
    generator.shuffle(distant)
    yield from (*adjacent, *block_pairs, *distant)
    singles = [*adjacent, *distant]
    for _ in range(RANDOM_PAIRS if len(singles) > 1 else 0):
        (label, change), (other_label, other_change) = generator.sample(singles, 2)
        yield f"{label} + {other_label}", _apply_both(change, other_change)
