"""Ranges and biases: outliers do not stretch them, rectifiers' edges stay, and what rounding shifts is taken back."""

import pytest
import torch
from torch import Tensor, nn

from toolchain.config.target import QuantScheme
from toolchain.quantization import pt2e, ranges
from toolchain.quantization.placement import Placement

IMAGE = torch.zeros(1, 3, 8, 8)


def seen(values: Tensor) -> ranges.Histogram:
    low, high = float(values.min()), float(values.max())
    return ranges.Histogram(low, high, torch.histc(values, ranges.HISTOGRAM_BINS, low, high))


def weights(graph: nn.Module) -> list[str]:
    return [name for name, one in graph.named_parameters() if one.ndim > 1]


def weight_integers(graph: nn.Module, name: str) -> Tensor:
    rows = graph.get_parameter(name).detach().flatten(1)
    return (rows / rows.abs().amax(1, keepdim=True) * 127).round()


def test_a_percentile_leaves_an_outlier_outside() -> None:
    values = torch.cat([torch.randn(100_000), torch.tensor([80.0])])
    low, high = ranges.percentile_range(seen(values))
    assert -5 < low < -3
    assert 3 < high < 5


def test_a_rectifiers_zero_is_no_outlier() -> None:
    values = torch.randn(100_000).clamp_min(0)
    assert ranges.percentile_range(seen(values))[0] == 0
    assert ranges.mse_range(seen(values))[0] == 0


def test_the_least_error_beats_the_whole_range_and_the_ends_of_a_brute_force_search() -> None:
    torch.manual_seed(0)
    values = torch.randn(50_000) ** 3  # heavy tails

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        rounded = ((values - low) / step).round().clamp(0, 255) * step + low
        return float((rounded - values).square().mean())

    found = ranges.mse_range(seen(values))
    low, high = float(values.min()), float(values.max())
    shares = torch.linspace(0.1, 1, 30).tolist()
    best = min(error(s * low, t * high) for s in shares for t in shares)
    assert error(*found) < 0.95 * error(low, high)
    assert error(*found) <= 1.02 * best


def test_evenly_spread_values_are_not_clipped() -> None:
    found = ranges.mse_range(seen(torch.rand(50_000) * 2 - 1))
    assert found == pytest.approx((-1, 1), abs=0.02)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    ).eval()


def prepared(net: nn.Module, images: Tensor):
    graph, _ = pt2e.prepare(net, IMAGE, Placement(), QuantScheme())
    found = ranges.collect_histograms(graph, images.split(40))
    return graph, found


def test_collecting_sees_the_extremes_of_all_batches_and_no_rounding(net: nn.Module) -> None:
    images = torch.randn(64, 3, 8, 8)
    images[50, 0, 0, 0] = 30.0
    _, found = prepared(net, images)
    assert max(one.high for one in found.values()) >= 30.0
    assert all(float(one.counts.sum()) > 0 for one in found.values())


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_every_method_gives_a_model_close_to_the_float_one(net: nn.Module, method: str) -> None:
    images = torch.randn(64, 3, 8, 8)
    graph, found = prepared(net, images)
    ranges.calibrate(graph, found, method)
    assert (graph(images) - net(images)).abs().max() < 0.1
    torch.testing.assert_close(pt2e.convert(graph, IMAGE)(images), graph(images), atol=1e-6, rtol=1e-6)


def test_corrected_biases_take_the_mean_shift_of_rounding_back(net: nn.Module) -> None:
    images = torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        net[2].weight[:, :, 0, 0] *= 40  # one large weight a channel: the others round coarsely, to one side
        net[2].weight.add_(0.01)
    graph, found = prepared(net, images)
    ranges.calibrate(graph, found, "minmax")
    with torch.no_grad():
        wanted = net(images).mean(0)
        before = (graph(images).mean(0) - wanted).abs().max()
        assert ranges.correct_layers(graph, images, spread=False) == 3
        after = (graph(images).mean(0) - wanted).abs().max()
    assert after < before / 4


def test_a_corrected_spread_is_that_of_the_float_model_and_costs_no_integer(net: nn.Module) -> None:
    images = torch.randn(64, 3, 8, 8)
    graph, found = prepared(net, images)
    for one in found.values():
        one.high /= 3  # clipping takes spread away
    ranges.calibrate(graph, found, "minmax")
    integers = [weight_integers(graph, name) for name in weights(graph)]
    with torch.no_grad():
        wanted = net(images).std(0)
        before = (graph(images).std(0) / wanted - 1).abs().mean()
        ranges.correct_layers(graph, images, spread=True)
        after = (graph(images).std(0) / wanted - 1).abs().mean()
    assert after < before / 2
    for old, name in zip(integers, weights(graph), strict=True):
        assert torch.equal(old, weight_integers(graph, name))


def test_correcting_biases_leaves_the_float_model_alone(net: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images = torch.randn(16, 3, 8, 8)
    graph, found = prepared(net, images)
    ranges.calibrate(graph, found, "minmax")
    ranges.correct_layers(graph, images, spread=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
