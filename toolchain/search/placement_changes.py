"""Small changes of a Placement, to be tried one after the other: layers and blocks in float or back, operations."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import get_args

from toolchain.pruning import width_search
from toolchain.quantization import placement
from toolchain.quantization.placement import PlaceableOperation, Placement

PlacementChange = Callable[[Placement], Placement]
OPERATION_KINDS: tuple[PlaceableOperation, ...] = get_args(PlaceableOperation)
RANDOM_PAIRS = 400  # of single changes, drawn at random


def move_to_float(module: str) -> PlacementChange:
    """One more module in float."""
    return lambda one: placement.leave_in_float(one, (module,))


def toggle_operation(kind: PlaceableOperation) -> PlacementChange:
    """One kind of operation the other way round."""

    def change(one: Placement) -> Placement:
        floats = set(one.float_operations) ^ {kind}
        return dataclasses.replace(one, float_operations=tuple(k for k in OPERATION_KINDS if k in floats))

    return change


def _return(module: str) -> PlacementChange:
    """One module back in integers."""
    return lambda one: dataclasses.replace(one, float_modules=tuple(m for m in one.float_modules if m != module))


def _both(first: PlacementChange, second: PlacementChange) -> PlacementChange:
    return lambda one: second(first(one))


def propose(
    one: Placement, layers: Sequence[str], blocks: Sequence[str], seed: int
) -> Iterator[tuple[str, PlacementChange]]:
    """Changes with what they are called, those first that are likely to help.

    What is next to something in float already needs no new Q/DQ pairs; two blocks in a row need as many as one; then
    all other single ones, and at last pairs of any, in random order.

    Args:
        layers: modules that may be in either, in running order.
        blocks: names of parts of the model, as `placement.blocks`.
    """
    dice = random.Random(seed)
    floating = {layer for layer in layers if not one.quantizes(layer)}
    singles: list[tuple[str, PlacementChange]] = []
    beside: list[tuple[str, PlacementChange]] = []
    for name in dict.fromkeys((*blocks, *layers)):
        places = [index for index, layer in enumerate(layers) if width_search.is_inside(layer, name)]
        if name in one.float_modules:
            beside.append((f"{name} in integers", _return(name)))
        elif not floating.issuperset(layers[index] for index in places):
            around = {*layers[max(places[0] - 1, 0) : places[0]], *layers[places[-1] + 1 : places[-1] + 2]}
            (beside if around & floating else singles).append((f"{name} in float", move_to_float(name)))
    beside += [(f"{kind} the other way", toggle_operation(kind)) for kind in OPERATION_KINDS if floating]
    rows = [(f"{a} and {b} in float", _both(move_to_float(a), move_to_float(b))) for a, b in pairwise(blocks)]
    dice.shuffle(singles)
    yield from (*beside, *rows, *singles)
    every = [*beside, *singles]
    for _ in range(RANDOM_PAIRS if len(every) > 1 else 0):
        (first, change), (second, other) = dice.sample(every, 2)
        yield f"{first} + {second}", _both(change, other)
