"""Activation ranges from calibration images: a histogram of every quantized activation, and a range from it by minimum
and maximum, by percentile or by least squared error. Works on the fake-quantized graph that `pt2e.prepare` returns.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from toolchain.config.recipe import CalibrationMethod
from toolchain.quantization import pt2e

HISTOGRAM_BINS = 2048
TAIL_SHARE = 1e-4  # share of the values that a percentile leaves outside, at each end that is not a hard edge
SHRINK_FACTORS = torch.linspace(0.1, 1.0, 46)  # of each end; all pairs are tried for the least squared error
INTEGER_STEPS = 255  # between the ends of an 8-bit range


@dataclass
class Histogram:
    """The distribution of one activation over the calibration images."""

    low: float
    high: float
    counts: Tensor  # [HISTOGRAM_BINS] number of values, in equal bins between low and high


def widen_bounds(histograms: dict[str, Histogram], name: str, value: Tensor) -> None:
    """Widen a histogram's bounds, in the first pass over the images, to the values of one tensor."""
    low, high = (float(bound) for bound in torch.aminmax(value))
    old = histograms.get(name)
    histograms[name] = (
        Histogram(min(low, old.low), max(high, old.high), old.counts)
        if old
        else Histogram(low, high, torch.zeros(HISTOGRAM_BINS))
    )


def count_values(histograms: dict[str, Histogram], name: str, value: Tensor) -> None:
    """Count the values of one tensor, in the second pass over the images."""
    histogram = histograms[name]
    if histogram.high > histogram.low:
        histogram.counts += torch.histc(value.float(), HISTOGRAM_BINS, histogram.low, histogram.high)


OBSERVERS = (widen_bounds, count_values)  # one a pass over the images


def collect_histograms(graph: GraphModule, batches: Iterable[Tensor]) -> dict[str, Histogram]:
    """Return a histogram of every quantized activation, measured in float in two passes over the images.

    Args:
        graph: as `pt2e.prepare` returns it; unchanged but for its switches, which end as `ranges=False, rounding=False`.
        batches: normalised images, float32 [n, 3, height, width]; all are kept in memory, for the second pass.

    Returns:
        histograms by the name of the activation's fake quantization in the graph.
    """
    kept_batches = list(batches)
    pt2e.configure_fake_quantize(graph, ranges=False, rounding=False)
    quantizers = pt2e.find_activation_quantizers(graph)
    histograms: dict[str, Histogram] = {}

    for observe in OBSERVERS:
        hooks = [
            quantizer.register_forward_pre_hook(
                lambda _, inputs, name=name, observe=observe: observe(histograms, name, inputs[0])
            )
            for name, quantizer in quantizers.items()
        ]
        with torch.inference_mode():
            for batch in kept_batches:
                graph(batch)
        for hook in hooks:
            hook.remove()
    return histograms


def calibrate(graph: GraphModule, histograms: dict[str, Histogram], method: CalibrationMethod) -> None:
    """Set every activation's range from its histogram and switch rounding on; "minmax" covers all values.

    Args:
        graph: as `pt2e.prepare` returns it; its ranges change.
        histograms: as `collect_histograms` returns them.
        method: how a range is chosen.
    """
    quantizers = pt2e.find_activation_quantizers(graph)
    for name, (low, high) in choose_ranges(histograms, method).items():
        pt2e.set_range(quantizers[name], low, high)
    pt2e.configure_fake_quantize(graph, ranges=False, rounding=True)


def choose_ranges(histograms: Mapping[str, Histogram], method: CalibrationMethod) -> dict[str, tuple[float, float]]:
    """Return each histogram's range, lowest and highest value, by its name."""
    choose_range = {"minmax": _minmax_range, "percentile": percentile_range, "mse": mse_range}[method]
    return {name: choose_range(histogram) for name, histogram in histograms.items()}


def _minmax_range(histogram: Histogram) -> tuple[float, float]:
    return histogram.low, histogram.high


def percentile_range(histogram: Histogram) -> tuple[float, float]:
    """Return the range without the outermost values: percentile calibration (Wu et al., arXiv 2004.09602)."""
    total = float(histogram.counts.sum())
    if total == 0:
        return histogram.low, histogram.high
    cumulative = torch.cumsum(histogram.counts, 0) / total
    step = (histogram.high - histogram.low) / HISTOGRAM_BINS
    # the zero of a rectifier is a hard edge, no outlier: it stays inside
    first = int((cumulative > TAIL_SHARE).nonzero()[0]) if histogram.low < 0 else 0
    last = int((cumulative >= 1 - TAIL_SHARE).nonzero()[0])
    return histogram.low + first * step, histogram.low + (last + 1) * step


def mse_range(histogram: Histogram) -> tuple[float, float]:
    """Return the range with the least squared error of clipping and rounding (Banner et al., arXiv 1810.05723)."""
    if float(histogram.counts.sum()) == 0:
        return histogram.low, histogram.high
    step = (histogram.high - histogram.low) / HISTOGRAM_BINS
    centres = histogram.low + step * (torch.arange(HISTOGRAM_BINS) + 0.5)
    # zero must be an integer of the range, so the range always contains it
    lows = SHRINK_FACTORS * histogram.low if histogram.low < 0 else torch.zeros(1)
    highs = SHRINK_FACTORS * histogram.high if histogram.high > 0 else torch.zeros(1)
    best = (float("inf"), histogram.low, histogram.high)
    for low in lows:
        scale = ((highs - low) / INTEGER_STEPS).clamp_min(1e-12)[:, None]
        rounded = ((centres[None] - low) / scale).round().clamp(0, INTEGER_STEPS) * scale + low
        error = ((rounded - centres[None]).square() * histogram.counts[None]).sum(1)
        index = int(error.argmin())
        best = min(best, (float(error[index]), float(low), float(highs[index])))
    return best[1], best[2]
