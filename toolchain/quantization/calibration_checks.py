"""Checks of a calibration: dead and clipped activations, constant channels, and images that are too few or unrepresentative.

The checks compare the activations of the calibration images with those of validation images. Each problem becomes a
`Finding`: a sentence for the user with the measured figures and the next step.
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
# share of the activations that may grow by RANGE_GROWTH; measured: 0.07 to 0.2 with 256 images, 0.46 with 8
MAX_GROWING_SHARE = 0.35
# share of the validation images that may be clipped heavily: outliers, which no calibration can cover
MAX_OUTLIER_IMAGES_SHARE = 0.05
MAX_OUT_OF_RANGE_SHARE = 0.1  # share of the validation images; one in ten is more than a few outliers
CHANCE_FACTOR = 3  # times the share that images of the same distribution reach by chance
MEDIUM_EFFECT_SIZE = 0.5  # standard deviations between the means of two image sets: Cohen's medium effect
MIN_STANDARD_ERRORS = 4  # six figures are compared, so a sound calibration gives 1 false alarm in 2,600
CONSTANT_CHANNEL_SHARE = 1e-4  # of a layer's range, a fortieth of an 8-bit step: in int8 the channel is a constant
DEAD_RANGE = 3e-5  # range of 255 steps of 1.2e-7, the smallest scale that torchao gives
MIN_COMPARED_IMAGES = 8  # fewer images give no usable means and standard deviations
MAX_NAMED_MODULES = 3  # modules named in findings of one kind
ADVICE = "add images like them to the training split, from which the calibration images are taken"
RANDOM_HALVES = 16  # averaged over; a single half could depend on the order of the images


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem of the calibration."""

    kind: FindingKind
    module: str  # "input" for the images as the network takes them, "" for the whole model
    measured: float
    limit: float
    why: str  # the message: figures and the next step


ActivationPair = tuple[ActivationExtremes, ActivationExtremes]  # one activation: calibration images, validation images


def check(graph: GraphModule, calibration: Iterable[Tensor], validation: Iterable[Tensor]) -> tuple[Finding, ...]:
    """Return the problems of a calibrated graph's ranges.

    Args:
        graph: as `pt2e.prepare` and calibration left it; not changed.
        calibration: batches of the images it was calibrated on, normalised, float32 [n, 3, height, width].
        validation: the same of validation images, sampled from the whole split: several hundred are enough.

    Raises:
        ToolchainError: as `check_weights`; there are no images; a range or a value is NaN or infinite.
    """
    check_weights(graph)
    return find_problems(
        collect_statistics(graph, calibration, "calibration"), collect_statistics(graph, validation, "validation")
    )


def check_weights(graph: GraphModule) -> None:
    """Raise an error that names the first weight that is not finite.

    Call it before calibration too, which fails on such weights without naming them.

    Raises:
        ToolchainError: a weight or bias is NaN or infinite.
    """
    for name, weight in graph.named_parameters():
        if not bool(weight.isfinite().all()):
            (module, _, parameter), count = name.rpartition("."), int((~weight.isfinite()).sum())
            raise ToolchainError(
                f"{module}: {count:,} of {weight.numel():,} values of its {parameter} are NaN or infinite; a scale needs "
                "finite ones: start from another checkpoint, or train again with a lower learning_rate"
            )


def find_problems(calibration: ActivationStatistics, validation: ActivationStatistics) -> tuple[Finding, ...]:
    """Return the problems that the statistics of both image sets show, most severe first."""
    if calibration.all_identical:
        return (_identical_images(calibration),)  # all other problems would follow from it
    pairs = [
        (seen, unseen)
        for seen, unseen in zip(calibration.activations, validation.activations, strict=True)
        if seen.clip_bounds
        and not seen.derived
        and len(seen.image_low) == calibration.image_count
        and len(unseen.image_low) == validation.image_count
    ]
    findings = [
        *_dead_activations(calibration),
        *_constant_channels(calibration),
        *_different_inputs(calibration, validation),
    ]
    if pairs:
        findings += [
            *_images_out_of_range(pairs),
            *_growing_ranges([seen for seen, _ in pairs]),
            *_saturated_activations(pairs),
        ]
    return tuple(findings)


def _identical_images(calibration: ActivationStatistics) -> Finding:
    count = calibration.image_count
    problem = "there is one calibration image" if count == 1 else f"all {count:,} calibration images are the same"
    why = f"{problem}: its ranges fit no other image; calibrate on at least {MIN_IMAGES} different images, better 256"
    kind: FindingKind = "one image" if count == 1 else "identical images"
    return Finding(kind=kind, module="input", measured=1, limit=MIN_IMAGES, why=why)


def _dead_activations(calibration: ActivationStatistics) -> list[Finding]:
    findings = []
    for activation in calibration.activations:
        if activation.derived or not activation.clip_bounds or not len(activation.image_low):
            continue
        low, module = float(activation.image_low.min()), activation.module
        spread = float(activation.image_high.max() - activation.image_low.min())
        if spread <= DEAD_RANGE:
            why = (
                f"{module}: its values are all {low:.3g} on {calibration.image_count:,} calibration images, so its scale "
                "is meaningless; the activation is dead: look at the layers before it, or prune it"
            )
            findings.append(Finding(kind="dead activation", module=module, measured=spread, limit=DEAD_RANGE, why=why))
    return _select_worst(findings, largest=False)


def _constant_channels(calibration: ActivationStatistics) -> list[Finding]:
    if calibration.image_count < MIN_IMAGES:
        return []
    findings = []
    for activation in calibration.activations:
        if not activation.layer or not activation.channel_high.ndim:  # no layer's output, or never measured
            continue
        layer, channels = activation.layer, len(activation.channel_high)
        layer_range = activation.channel_high.max() - activation.channel_low.min()
        channel_ranges = activation.channel_high - activation.channel_low
        constant = int((channel_ranges <= CONSTANT_CHANNEL_SHARE * layer_range).sum())
        if constant:
            why = (
                f"{layer}: {constant:,} of its {channels:,} output channels never change over "
                f"{calibration.image_count:,} calibration images: they cost time and carry no information; prune them"
            )
            share = constant / channels
            findings.append(Finding(kind="constant channels", module=layer, measured=share, limit=0, why=why))
    return _select_worst(findings)


def _saturated_activations(pairs: Sequence[ActivationPair]) -> list[Finding]:
    """Return the activations that are clipped more than on the calibration images: some methods clip on purpose."""
    findings = []
    for seen, unseen in pairs:
        share, calibration_share = float(unseen.clipped_share.mean()), float(seen.clipped_share.mean())
        limit = max(MAX_CLIPPED_SHARE, 2 * calibration_share)
        clipped_images, images = int((unseen.clipped_share > 0).sum()), len(unseen.clipped_share)
        outlier_share = max(MAX_OUTLIER_IMAGES_SHARE, CHANCE_FACTOR * _chance_share(len(seen.image_low)))
        if share > limit and clipped_images >= 3 and clipped_images / images > outlier_share:
            why = (
                f"{unseen.module}: {_percent(share)} of its values on the validation images lie outside the calibrated "
                f"range and are clipped ({_percent(calibration_share)} on the calibration images), in "
                f"{clipped_images:,} of {images:,} images; calibrate on images like them, or leave it in float"
            )
            findings.append(
                Finding(kind="saturated activation", module=unseen.module, measured=share, limit=limit, why=why)
            )
    return _select_worst(findings)


def _chance_share(images: int) -> float:
    """Return the share of new images of the same distribution that exceed the extremes of so many, at either end."""
    return 2 / (images + 1)


def _images_out_of_range(pairs: Sequence[ActivationPair]) -> list[Finding]:
    """Return a finding where many validation images exceed the range of all calibration images."""
    out_of_range = torch.stack(
        [
            (unseen.image_low < seen.image_low.min()) | (unseen.image_high > seen.image_high.max())
            for seen, unseen in pairs
        ]
    )  # [activations, validation images]
    images, share = len(pairs[0][0].image_low), float(out_of_range.float().mean())
    expected = _chance_share(images)
    limit = max(MAX_OUT_OF_RANGE_SHARE, CHANCE_FACTOR * expected)
    if share <= limit:
        return []
    why = (
        f"{_percent(share)} of the {out_of_range.shape[1]:,} validation images go beyond the range of all {images:,} "
        f"calibration images, on average over {len(pairs):,} activations; {_percent(expected)} would if they were of the "
        f"same kind: {ADVICE}"
    )
    return [Finding(kind="unlike validation", module="", measured=share, limit=limit, why=why)]


def _different_inputs(calibration: ActivationStatistics, validation: ActivationStatistics) -> list[Finding]:
    """Compare brightness and contrast of both image sets: standardised mean difference (Cohen's d)."""
    if min(calibration.image_count, validation.image_count) < MIN_COMPARED_IMAGES:
        return []
    seen, unseen = calibration.input_moments, validation.input_moments
    deviation = ((seen.var(0) + unseen.var(0)) / 2).sqrt().clamp_min(1e-6)
    effect_sizes = ((unseen.mean(0) - seen.mean(0)) / deviation).abs()
    standard_error = (1 / calibration.image_count + 1 / validation.image_count) ** 0.5
    limit = max(MEDIUM_EFFECT_SIZE, MIN_STANDARD_ERRORS * standard_error)
    worst, measured = int(effect_sizes.argmax()), float(effect_sizes.max())
    if measured <= limit:
        return []
    channels = seen.shape[1] // 2
    moment = f"{'brightness' if worst < channels else 'contrast'} of colour channel {worst % channels + 1}"
    why = (
        f"the validation images differ from the calibration images: {moment} is {float(unseen.mean(0)[worst]):.3g} against "
        f"{float(seen.mean(0)[worst]):.3g} (normalised), {measured:.1f} standard deviations apart: {ADVICE}"
    )
    return [Finding(kind="unlike validation", module="input", measured=measured, limit=limit, why=why)]


def _growing_ranges(activations: Sequence[ActivationExtremes]) -> list[Finding]:
    """Return a finding where ranges still grow when half the calibration images become all of them."""
    low = torch.stack([activation.image_low for activation in activations])  # [activations, images]
    high = torch.stack([activation.image_high for activation in activations])
    images, generator = low.shape[1], torch.Generator().manual_seed(0)
    full_range, growth = _range_with_zero(low, high), torch.zeros(len(low))
    for _ in range(RANDOM_HALVES):
        half = torch.randperm(images, generator=generator)[: images // 2]
        growth += (full_range / _range_with_zero(low[:, half], high[:, half]) - 1) / RANDOM_HALVES
    share = float((growth > RANGE_GROWTH).float().mean())
    # two activations more may grow in a small network, whose logits always do
    limit = MAX_GROWING_SHARE + 2 / len(activations) if images >= MIN_IMAGES else 0
    if share <= limit:
        return []
    why = (
        f"{images:,} calibration images are too few: from {images // 2:,} to {images:,} of them the range of "
        f"{_percent(share)} of {len(low):,} activations grows by more than {_percent(RANGE_GROWTH)} (median "
        f"{_percent(float(growth.median()))}); more images help, several hundred are usual"
    )
    return [Finding(kind="too few images", module="", measured=share, limit=limit, why=why)]


def _range_with_zero(low: Tensor, high: Tensor) -> Tensor:
    """Return the size [activations] of each quantization range, which always contains zero."""
    return (high.amax(1).clamp_min(0) - low.amin(1).clamp_max(0)).clamp_min(DEAD_RANGE)


def _select_worst(findings: Sequence[Finding], *, largest: bool = True) -> list[Finding]:
    """Return the few worst findings, one a module; the last one says how many more there are."""
    worst_by_module: dict[str, Finding] = {}
    for finding in sorted(findings, key=lambda finding: finding.measured, reverse=largest):
        worst_by_module.setdefault(finding.module, finding)
    worst = list(worst_by_module.values())
    if len(worst) <= MAX_NAMED_MODULES:
        return worst
    last = worst[MAX_NAMED_MODULES - 1]
    why = f"{last.why} (and {len(worst) - MAX_NAMED_MODULES:,} more modules)"
    return [*worst[: MAX_NAMED_MODULES - 1], dataclasses.replace(last, why=why)]


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
