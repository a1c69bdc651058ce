"""Which range of values an activation's integers cover, and corrections for what rounding shifts.

Works on the graph of `quantizer.prepare`: ranges from histograms of the calibration images, by percentile or by least
squared error; corrections by running the graph in float and rounded side by side.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import Argument, map_arg

from toolchain.config.recipe import CalibrationMethod
from toolchain.quantization import fx_graph, pt2e

HISTOGRAM_BINS = 2048
TAIL_SHARE = 1e-4  # share of the values that a percentile leaves outside, at each end that is not an edge
SHRINK_FACTORS = torch.linspace(0.1, 1.0, 46)  # of either end, tried in all pairs for the least squared error
INTEGER_STEPS = 255  # between the ends of eight bits
MAX_STRETCH = 1.5  # by which a correction may stretch a channel; rounding alone does no more


@dataclass
class Histogram:
    """What one activation was over the calibration images."""

    low: float
    high: float
    counts: Tensor  # [BINS] values by size between low and high


def collect_histograms(graph: GraphModule, batches: Iterable[Tensor]) -> dict[str, Histogram]:
    """Histograms of every activation that is rounded, in float, in two passes.

    Args:
        graph: as `quantizer.prepare` gives it; left as it was, but for its switches, which end as `ranges=False,
            rounding=False`.
        batches: normalised images, float32 [n, 3, height, width]; gone through twice.
    """
    kept = list(batches)
    pt2e.configure_fake_quantize(graph, ranges=False, rounding=False)
    points = pt2e.find_activation_quantizers(graph)
    seen: dict[str, Histogram] = {}

    def reach(name: str, value: Tensor) -> None:
        low, high = (float(bound) for bound in torch.aminmax(value))
        old = seen.get(name)
        seen[name] = (
            Histogram(min(low, old.low), max(high, old.high), old.counts)
            if old
            else Histogram(low, high, torch.zeros(HISTOGRAM_BINS))
        )

    def fill(name: str, value: Tensor) -> None:
        one = seen[name]
        if one.high > one.low:
            one.counts += torch.histc(value.float(), HISTOGRAM_BINS, one.low, one.high)

    for look in (reach, fill):
        hooks = [
            point.register_forward_pre_hook(lambda _, inputs, name=name, look=look: look(name, inputs[0]))
            for name, point in points.items()
        ]
        with torch.inference_mode():
            for batch in kept:
                graph(batch)
        for hook in hooks:
            hook.remove()
    return seen


def calibrate(graph: GraphModule, seen: dict[str, Histogram], method: CalibrationMethod) -> None:
    """Sets every activation's range from what was seen; "minmax" covers all of it."""
    ends = {"minmax": lambda one: (one.low, one.high), "percentile": percentile_range, "mse": mse_range}[method]
    points = pt2e.find_activation_quantizers(graph)
    for name, one in seen.items():
        low, high = ends(one)
        pt2e.set_range(points[name], low, high)
    pt2e.configure_fake_quantize(graph, ranges=False, rounding=True)


def percentile_range(seen: Histogram) -> tuple[float, float]:
    """The range without the outermost values: percentile calibration (Wu et al., arXiv 2004.09602)."""
    total = float(seen.counts.sum())
    if total == 0:
        return seen.low, seen.high
    inside = torch.cumsum(seen.counts, 0) / total
    step = (seen.high - seen.low) / HISTOGRAM_BINS
    first = int((inside > TAIL_SHARE).nonzero()[0]) if seen.low < 0 else 0  # a rectifier's zero is an edge, no outlier
    last = int((inside >= 1 - TAIL_SHARE).nonzero()[0])
    return seen.low + first * step, seen.low + (last + 1) * step


def mse_range(seen: Histogram) -> tuple[float, float]:
    """The range whose clipping and rounding together move the values least (Banner et al., arXiv 1810.05723)."""
    if float(seen.counts.sum()) == 0:
        return seen.low, seen.high
    step = (seen.high - seen.low) / HISTOGRAM_BINS
    centres = seen.low + step * (torch.arange(HISTOGRAM_BINS) + 0.5)
    lows = SHRINK_FACTORS * seen.low if seen.low < 0 else torch.zeros(1)  # integers must have a zero
    highs = SHRINK_FACTORS * seen.high if seen.high > 0 else torch.zeros(1)
    best = (float("inf"), seen.low, seen.high)
    for low in lows:
        size = ((highs - low) / INTEGER_STEPS).clamp_min(1e-12)[:, None]
        rounded = ((centres[None] - low) / size).round().clamp(0, INTEGER_STEPS) * size + low
        error = ((rounded - centres[None]).square() * seen.counts[None]).sum(1)
        at = int(error.argmin())
        best = min(best, (float(error[at]), float(low), float(highs[at])))
    return best[1], best[2]


# --- means and spreads --------------------------------------------------------------------------------------


def correct_layers(graph: GraphModule, images: Tensor, *, spread: bool) -> int:
    """Gives each layer's output its float mean again, and its float spread if asked, layer by layer in running order.

    Every layer sees inputs that are corrected already. The mean goes into the bias (bias correction: Nagel et al.,
    arXiv 1906.04721, with means observed on images instead of computed). The spread is what re-estimating batch norm
    restores where it is not folded yet (Sun et al., arXiv 1909.13720): a factor on a channel's weights, which changes
    their scale and none of their integers. Changes `graph`.

    Args:
        graph: calibrated, rounding switched on.
        images: normalised, float32 [n, 3, height, width].
        spread: correct standard deviations as well as means.

    Returns:
        how many layers were corrected; those without a bias are not.
    """
    plain: dict[Node, object] = {}
    rounded: dict[Node, object] = {}
    left = {node: len(node.users) for node in graph.graph.nodes}
    corrected = 0
    with torch.inference_mode():
        for node in graph.graph.nodes:
            plain[node], rounded[node] = _both(graph, node, plain, rounded, images)
            if node.target in fx_graph.LAYER_TARGETS and len(node.args) > 2 and isinstance(node.args[2], Node):
                _correct(graph, node, plain, rounded, spread)
                corrected += 1
            for source in node.all_input_nodes:  # values of all images at once: keep none longer than it is read
                left[source] -= 1
                if left[source] == 0:
                    del plain[source], rounded[source]
    return corrected


def _both(
    graph: GraphModule, node: Node, plain: dict[Node, object], rounded: dict[Node, object], images: Tensor
) -> tuple[object, object]:
    """One node's value in float and rounded."""
    if node.op == "placeholder":
        return images, images
    if node.op == "get_attr":
        value = _attribute(graph, str(node.target))
        return value, value

    def inputs(values: dict[Node, object]) -> tuple[tuple[Argument, ...], dict[str, Argument]]:
        return map_arg(node.args, values.__getitem__), map_arg(node.kwargs, values.__getitem__)  # type: ignore[arg-type]

    if node.op == "output":
        return None, None
    if fx_graph.is_fake_quantize(graph, node):
        return inputs(plain)[0][0], graph.get_submodule(str(node.target))(*inputs(rounded)[0])
    run = graph.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    assert callable(run)
    found = []
    for values in (plain, rounded):
        arguments, named = inputs(values)
        found.append(run(*arguments, **named))
    return found[0], found[1]


def _correct(
    graph: GraphModule, node: Node, plain: dict[Node, object], rounded: dict[Node, object], spread: bool
) -> None:
    wanted, given = plain[node], rounded[node]
    assert isinstance(wanted, Tensor)
    assert isinstance(given, Tensor)
    others, shape = [0, *range(2, wanted.ndim)], (1, -1, *([1] * (wanted.ndim - 2)))
    bias = _attribute(graph, str(node.args[2].target))  # type: ignore[union-attr]
    if spread:
        factor = _factor(wanted.std(others), given.std(others))
        weight = _weight(graph, node)
        weight.data.mul_(factor.reshape(-1, *([1] * (weight.ndim - 1))))
        given = (given - bias.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
    shift = (wanted - given).mean(others)
    rounded[node] = given + shift.reshape(shape)
    bias.data.add_(shift)


def _factor(wanted: Tensor, given: Tensor) -> Tensor:
    """By how much each channel's weights grow; a channel that hardly varies says nothing and keeps its own."""
    factor = (wanted / given.clamp_min(1e-12)).clamp(1 / MAX_STRETCH, MAX_STRETCH)
    return torch.where(torch.minimum(wanted, given) > 1e-3 * wanted.max(), factor, torch.ones_like(factor))


def _weight(graph: GraphModule, layer: Node) -> Tensor:
    """The float weight behind a layer's rounding."""
    source = layer.args[1]
    while isinstance(source, Node) and source.op != "get_attr":
        source = source.all_input_nodes[0]
    assert isinstance(source, Node)
    return _attribute(graph, str(source.target))


def _attribute(graph: nn.Module, path: str) -> Tensor:
    parent, _, name = path.rpartition(".")
    value: Tensor = getattr(graph.get_submodule(parent) if parent else graph, name)
    return value
