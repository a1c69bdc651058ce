"""What is wrong with a calibration, in words: dead and clipped activations, channels that never change, poor images.

One pass over the calibration images and one over validation images, in float, beside the graph: fake quantizations are
stepped over, never run, so that nothing in them can change. Of every image the extremes of every activation are kept,
which is enough to judge the ranges, and little.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from toolchain.core.errors import ToolchainError
from toolchain.quantization.activation_statistics import (
    MIN_IMAGES,
    ActivationExtremes,
    ActivationStatistics,
    collect_statistics,
)

FindingKind = Literal[
    "constant channels", "dead activation", "saturated activation", "too few images", "unlike validation",
    "one image", "identical images",
]  # fmt: skip
MAX_CLIPPED_SHARE = 1e-3  # share of an activation's values; a percentile calibration clips up to 2e-4 on purpose
RANGE_GROWTH = 0.05  # of a range when the images are doubled: 13 of 256 steps
MAX_GROWING_SHARE = (
    0.35  # share of the activations that may grow so much; measured: 0.07 to 0.2 with 256 images, 0.46 with 8
)
MAX_OUTLIER_IMAGES_SHARE = (
    0.05  # share of the validation images that may be clipped a lot: outliers, no fault of the calibration
)
MAX_OUT_OF_RANGE_SHARE = 0.1  # share of the validation images; one in ten is more than a few odd ones
CHANCE_FACTOR = 3  # times what images of the same kind would do
MEDIUM_EFFECT_SIZE = 0.5  # standard deviations between means of images: what Cohen calls a medium effect
MIN_STANDARD_ERRORS = 4  # standard errors: six figures are compared, so 1 false alarm in 2,600 sound sets
CONSTANT_CHANNEL_SHARE = (
    1e-4  # of a layer's range, a fortieth of an eight-bit step: no integer tells it from a constant
)
DEAD_RANGE = 3e-5  # range of 255 steps of 1.2e-7, the smallest scale that torchao gives
MIN_COMPARED_IMAGES = 8  # images with means and deviations worth comparing
MAX_NAMED_MODULES = 3  # modules named of one kind
ADVICE = "put images like them into the training split, from which calibration draws"
RANDOM_HALVES = 16  # random ones to average over; an order of the images would show itself in a single one


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with the calibration."""

    kind: FindingKind
    module: str  # "input" for the images as the network takes them, "" where all of the model is meant
    measured: float
    limit: float
    why: str  # a sentence with figures and what to do


def check(graph: GraphModule, calibration: Iterable[Tensor], validation: Iterable[Tensor]) -> tuple[Finding, ...]:
    """Looks for what is wrong with the ranges of a calibrated graph.

    Args:
        graph: as `quantizer.prepare` and calibration left it; not changed.
        calibration: the images it was calibrated on, normalised, float32 [n, 3, height, width] a batch.
        validation: the same of validation images, drawn from all of the split: several hundred are enough.

    Raises:
        ToolchainError: as `check_weights`; there are no images; a range or a value is NaN or infinite.
    """
    check_weights(graph)
    return find_problems(
        collect_statistics(graph, calibration, "calibration"), collect_statistics(graph, validation, "validation")
    )


def check_weights(graph: GraphModule) -> None:
    """Worth a call of its own before calibration, which fails on such weights with no name.

    Raises:
        ToolchainError: a weight or bias is NaN or infinite.
    """
    for name, weight in graph.named_parameters():
        if not bool(weight.isfinite().all()):
            (module, _, which), count = name.rpartition("."), int((~weight.isfinite()).sum())
            raise ToolchainError(
                f"{module}: {count:,} of {weight.numel():,} values of its {which} are NaN or infinite; a scale needs "
                "finite ones: start from another checkpoint, or train again with a lower learning_rate"
            )


# --- collecting ---------------------------------------------------------------------------------------------


# --- judging ------------------------------------------------------------------------------------------------


def find_problems(calibration: ActivationStatistics, validation: ActivationStatistics) -> tuple[Finding, ...]:
    """What the figures say, gravest first; a pure function."""
    if calibration.all_identical:
        return (_one_image(calibration),)  # all else follows from it
    pairs = zip(calibration.activations, validation.activations, strict=True)
    both = [(old, new) for old, new in pairs if old.clip_bounds and not old.derived]
    both = [
        (a, b)
        for a, b in both
        if len(a.image_low) == calibration.image_count and len(b.image_low) == validation.image_count
    ]
    found = [*_dead(calibration), *_constant(calibration), *_unlike_inputs(calibration, validation)]
    if both:
        found += [*_beyond(both), *_growing([old for old, _ in both]), *_saturated(both)]
    return tuple(found)


def _one_image(seen: ActivationStatistics) -> Finding:
    one = seen.image_count == 1
    what = "there is one calibration image" if one else f"all {seen.image_count:,} calibration images are the same"
    why = f"{what}: ranges drawn from it fit no other; calibrate on at least {MIN_IMAGES} different images, better 256"
    kind: FindingKind = "one image" if one else "identical images"
    return Finding(kind=kind, module="input", measured=1, limit=MIN_IMAGES, why=why)


def _dead(seen: ActivationStatistics) -> list[Finding]:
    found = []
    for one in seen.activations:
        spread = (
            float(one.image_high.max() - one.image_low.min()) if one.clip_bounds and len(one.image_low) else torch.inf
        )
        if spread <= DEAD_RANGE and not one.derived:
            why = (
                f"{one.module}: its values are all {float(one.image_low.min()):.3g} on {seen.image_count:,} calibration images, so "
                "its scale means nothing; it is dead: look at the layers before it, or prune it"
            )
            found.append(Finding(kind="dead activation", module=one.module, measured=spread, limit=DEAD_RANGE, why=why))
    return _worst(found, largest=False)


def _constant(seen: ActivationStatistics) -> list[Finding]:
    found = []
    for one in seen.activations:
        reach = one.channel_high.max() - one.channel_low.min()
        still = int((one.channel_high - one.channel_low <= CONSTANT_CHANNEL_SHARE * reach).sum())
        if one.layer and still and seen.image_count >= MIN_IMAGES:
            why = (
                f"{one.layer}: {still:,} of its {len(one.channel_high):,} output channels never change over "
                f"{seen.image_count:,} calibration images: they cost time and tell nothing; prune them"
            )
            share = still / len(one.channel_high)
            found.append(Finding(kind="constant channels", module=one.layer, measured=share, limit=0, why=why))
    return _worst(found)


def _saturated(both: Sequence[tuple[ActivationExtremes, ActivationExtremes]]) -> list[Finding]:
    """Only what is clipped more than on the calibration images counts: some methods clip on purpose."""
    found = []
    for old, one in both:
        share, before, total = float(one.clipped_share.mean()), float(old.clipped_share.mean()), len(one.clipped_share)
        limit = max(MAX_CLIPPED_SHARE, 2 * before)
        images = int((one.clipped_share > 0).sum())
        several = images >= 3 and images / total > max(
            MAX_OUTLIER_IMAGES_SHARE, CHANCE_FACTOR * _chance(len(old.image_low))
        )
        if share > limit and several:
            why = (
                f"{one.module}: {_percent(share)} of its values on the validation images lie outside the calibrated "
                f"range and are clipped ({_percent(before)} on the calibration images), in {images:,} of {total:,} "
                "images; calibrate on images like them, or leave it in float"
            )
            found.append(Finding(kind="saturated activation", module=one.module, measured=share, limit=limit, why=why))
    return _worst(found)


def _chance(images: int) -> float:
    """How often another image of the same kind goes beyond the extremes of so many, at either end."""
    return 2 / (images + 1)


def _beyond(both: Sequence[tuple[ActivationExtremes, ActivationExtremes]]) -> list[Finding]:
    """Whether many validation images go beyond all of the calibration images."""
    beyond = torch.stack(
        [(new.image_low < old.image_low.min()) | (new.image_high > old.image_high.max()) for old, new in both]
    )
    images, share = len(both[0][0].image_low), float(beyond.float().mean())
    expected = _chance(images)
    limit = max(MAX_OUT_OF_RANGE_SHARE, CHANCE_FACTOR * expected)
    if share <= limit:
        return []
    why = (
        f"{_percent(share)} of the {beyond.shape[1]:,} validation images go beyond the range of all {images:,} "
        f"calibration images, on average over {len(both):,} activations; {_percent(expected)} would if they were of the "
        f"same kind: {ADVICE}"
    )
    return [Finding(kind="unlike validation", module="", measured=share, limit=limit, why=why)]


def _unlike_inputs(seen: ActivationStatistics, new: ActivationStatistics) -> list[Finding]:
    """Brightness and contrast of the images: standardised mean difference of either set (Cohen's d)."""
    if min(seen.image_count, new.image_count) < MIN_COMPARED_IMAGES:
        return []
    one, other = seen.input_moments, new.input_moments
    spread = ((one.var(0) + other.var(0)) / 2).sqrt().clamp_min(1e-6)
    apart = ((other.mean(0) - one.mean(0)) / spread).abs()
    limit = max(MEDIUM_EFFECT_SIZE, MIN_STANDARD_ERRORS * (1 / seen.image_count + 1 / new.image_count) ** 0.5)
    worst, measured = int(apart.argmax()), float(apart.max())
    if measured <= limit:
        return []
    channels = one.shape[1] // 2
    what = f"{'brightness' if worst < channels else 'contrast'} of colour channel {worst % channels + 1}"
    why = (
        f"the validation images differ from the calibration images: {what} is {float(other.mean(0)[worst]):.3g} against "
        f"{float(one.mean(0)[worst]):.3g} (normalised), {measured:.1f} standard deviations apart: {ADVICE}"
    )
    return [Finding(kind="unlike validation", module="input", measured=measured, limit=limit, why=why)]


def _growing(seen: Sequence[ActivationExtremes]) -> list[Finding]:
    """Whether ranges still grow when half the images become all of them."""
    low, high = torch.stack([one.image_low for one in seen]), torch.stack([one.image_high for one in seen])
    images, random = low.shape[1], torch.Generator().manual_seed(0)
    whole, grown = _reach(low, high), torch.zeros(len(low))
    for _ in range(RANDOM_HALVES):
        half = torch.randperm(images, generator=random)[: images // 2]
        grown += (whole / _reach(low[:, half], high[:, half]) - 1) / RANDOM_HALVES
    share = float((grown > RANGE_GROWTH).float().mean())
    limit = MAX_GROWING_SHARE + 2 / len(seen) if images >= MIN_IMAGES else 0  # a small net's logits always grow
    if share <= limit:
        return []
    why = (
        f"{images:,} calibration images are too few: from {images // 2:,} to {images:,} of them the range of "
        f"{_percent(share)} of {len(low):,} activations grows by more than {_percent(RANGE_GROWTH)} (in the middle by "
        f"{_percent(float(grown.median()))}); more images help, several hundred are usual"
    )
    return [Finding(kind="too few images", module="", measured=share, limit=limit, why=why)]


def _reach(low: Tensor, high: Tensor) -> Tensor:
    """What integers must cover: the range with zero in it."""
    return (high.amax(1).clamp_min(0) - low.amin(1).clamp_max(0)).clamp_min(DEAD_RANGE)


def _worst(found: Sequence[Finding], *, largest: bool = True) -> list[Finding]:
    """The few worst, one a module."""
    best: dict[str, Finding] = {}
    for one in sorted(found, key=lambda one: one.measured, reverse=largest):
        best.setdefault(one.module, one)
    by_module = list(best.values())
    if len(by_module) <= MAX_NAMED_MODULES:
        return by_module
    last = by_module[MAX_NAMED_MODULES - 1]
    more = f"{last.why} (and {len(by_module) - MAX_NAMED_MODULES:,} more likewise)"
    return [*by_module[: MAX_NAMED_MODULES - 1], dataclasses.replace(last, why=more)]


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
