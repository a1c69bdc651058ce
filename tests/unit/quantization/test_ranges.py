"""Activation ranges: outliers do not stretch them, and the zero of a rectifier stays inside."""

import pytest
import torch
from torch import Tensor, nn

from toolchain.config.target import QuantScheme
from toolchain.quantization import pt2e, ranges
from toolchain.quantization.placement import Placement

IMAGE = torch.zeros(1, 3, 8, 8)


def histogram(values: Tensor) -> ranges.Histogram:
    low, high = float(values.min()), float(values.max())
    return ranges.Histogram(low, high, torch.histc(values, ranges.HISTOGRAM_BINS, low, high))


def test_a_percentile_leaves_an_outlier_outside() -> None:
    values = torch.cat([torch.randn(100_000), torch.tensor([80.0])])
    low, high = ranges.percentile_range(histogram(values))
    assert -5 < low < -3
    assert 3 < high < 5


def test_a_rectifiers_zero_is_no_outlier() -> None:
    values = torch.randn(100_000).clamp_min(0)
    assert ranges.percentile_range(histogram(values))[0] == 0
    assert ranges.mse_range(histogram(values))[0] == 0


def test_the_least_squared_error_beats_the_full_range_and_matches_a_brute_force_search() -> None:
    torch.manual_seed(0)
    values = torch.randn(50_000) ** 3  # heavy tails

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        rounded = ((values - low) / step).round().clamp(0, 255) * step + low
        return float((rounded - values).square().mean())

    mse_range = ranges.mse_range(histogram(values))
    low, high = float(values.min()), float(values.max())
    shares = torch.linspace(0.1, 1, 30).tolist()
    best = min(error(s * low, t * high) for s in shares for t in shares)
    assert error(*mse_range) < 0.95 * error(low, high)
    assert error(*mse_range) <= 1.02 * best


def test_evenly_spread_values_are_not_clipped() -> None:
    mse_range = ranges.mse_range(histogram(torch.rand(50_000) * 2 - 1))
    assert mse_range == pytest.approx((-1, 1), abs=0.02)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    ).eval()


def prepared(net: nn.Module, images: Tensor):
    graph, _ = pt2e.prepare(net, IMAGE, Placement(), QuantScheme())
    return graph, ranges.collect_histograms(graph, images.split(40))


def test_collecting_sees_the_extremes_of_all_batches_and_no_rounding(net: nn.Module) -> None:
    images = torch.randn(64, 3, 8, 8)
    images[50, 0, 0, 0] = 30.0
    _, histograms = prepared(net, images)
    assert max(histogram.high for histogram in histograms.values()) >= 30.0
    assert all(float(histogram.counts.sum()) > 0 for histogram in histograms.values())


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_every_method_gives_a_model_close_to_the_float_one(net: nn.Module, method: str) -> None:
    images = torch.randn(64, 3, 8, 8)
    graph, histograms = prepared(net, images)
    ranges.calibrate(graph, histograms, method)
    assert (graph(images) - net(images)).abs().max() < 0.1
    torch.testing.assert_close(pt2e.convert(graph, IMAGE)(images), graph(images), atol=1e-6, rtol=1e-6)
