"""A plan applied to the dense model's ONNX graph gives the logits of the pruned model, without tracing it again."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from toolchain.config.recipe import PruneSpec
from toolchain.config.target import QuantScheme
from toolchain.export import onnx_graph, prune_graph, to_onnx
from toolchain.pruning import search_space, surgery
from toolchain.pruning.criteria import magnitude
from toolchain.pruning.width_search import Subnetwork
from toolchain.quantization import pt2e

IMAGE = torch.zeros(1, 3, 12, 12)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = nn.Conv2d(32, 64, 1), nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.back = nn.Conv2d(64, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(torch.relu(self.deep(torch.relu(self.wide(x)))))


class Flat(nn.Module):
    """The number of channels is written into the graph: torch exports a flatten as a reshape to constants."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 32, 3, 2, 1), nn.Sequential(Block(), Block())
        self.last, self.head = nn.Conv2d(32, 64, 1), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.last(self.body(torch.relu(self.stem(x)))))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def test_a_pruned_graph_gives_the_logits_of_the_pruned_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Flat().eval()
    graph = to_onnx.export_graph(pt2e.prepare(model, IMAGE, None, QuantScheme())[0], IMAGE)
    blocks = prune_graph.find_droppable_blocks(graph)
    assert blocks == ("body.0", "body.1")
    options = search_space.build_search_space(
        model, IMAGE, head="head", spec=PruneSpec(), alignment=16, criterion=magnitude.score, blocks=blocks
    )
    kept = tuple(options.allowed_widths(index)[0] for index in range(len(options.groups)))
    plan = surgery.build(model, options, Subnetwork(kept, frozenset({"body.0"})))
    assert plan.keep["head.weight"].keys() == {1}
    onnx_graph.save_model(prune_graph.apply_surgery(graph, plan), tmp_path / "small.onnx")
    image = torch.randn(1, 3, 12, 12)
    with torch.no_grad():
        expected = surgery.apply(model, plan)(image).numpy()
    logits = onnxruntime.InferenceSession(tmp_path / "small.onnx").run(None, {"input": image.numpy()})[0]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
