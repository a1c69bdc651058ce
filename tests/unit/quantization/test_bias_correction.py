"""Bias correction: the means and standard deviations that quantization shifts are those of the float model again."""

import torch
from torch import Tensor, nn
from unit.quantization.test_ranges import net, prepared

from toolchain.quantization import bias_correction, ranges

__all__ = ["net"]


def weights(graph: nn.Module) -> list[str]:
    return [name for name, parameter in graph.named_parameters() if parameter.ndim > 1]


def weight_integers(graph: nn.Module, name: str) -> Tensor:
    rows = graph.get_parameter(name).detach().flatten(1)
    return (rows / rows.abs().amax(1, keepdim=True) * 127).round()


def test_bias_correction_restores_the_mean_that_rounding_shifts(net: nn.Module) -> None:
    images = torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        net[2].weight[:, :, 0, 0] *= 40  # one large weight a channel: the others round coarsely, to one side
        net[2].weight.add_(0.01)
    graph, histograms = prepared(net, images)
    ranges.calibrate(graph, histograms, "minmax")
    with torch.no_grad():
        wanted = net(images).mean(0)
        before = (graph(images).mean(0) - wanted).abs().max()
        assert bias_correction.correct_layers(graph, images, match_std=False) == 3
        after = (graph(images).mean(0) - wanted).abs().max()
    assert after < before / 4


def test_a_corrected_standard_deviation_is_that_of_the_float_model_and_changes_no_int8_weight(net: nn.Module) -> None:
    images = torch.randn(64, 3, 8, 8)
    graph, histograms = prepared(net, images)
    for histogram in histograms.values():
        histogram.high /= 3  # clipping reduces the standard deviation
    ranges.calibrate(graph, histograms, "minmax")
    integers = [weight_integers(graph, name) for name in weights(graph)]
    with torch.no_grad():
        wanted = net(images).std(0)
        before = (graph(images).std(0) / wanted - 1).abs().mean()
        bias_correction.correct_layers(graph, images, match_std=True)
        after = (graph(images).std(0) / wanted - 1).abs().mean()
    assert after < before / 2
    for old, name in zip(integers, weights(graph), strict=True):
        assert torch.equal(old, weight_integers(graph, name))


def test_bias_correction_leaves_the_float_model_alone(net: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images = torch.randn(16, 3, 8, 8)
    graph, histograms = prepared(net, images)
    ranges.calibrate(graph, histograms, "minmax")
    bias_correction.correct_layers(graph, images, match_std=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
