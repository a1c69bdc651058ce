"""TensorFlow's padding survives pruning and quantization, and is the convolution's own padding in both runtimes."""

import collections
import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from toolchain.config.recipe import PruneSpec
from toolchain.config.target import QuantScheme
from toolchain.core import registry
from toolchain.core.types import Precision
from toolchain.export import to_onnx
from toolchain.models import padding
from toolchain.pruning import search_space, surgery
from toolchain.quantization import pt2e
from toolchain.quantization.placement import Placement

IMAGE = torch.zeros(1, 3, 32, 24)


class Net(nn.Module):
    """Strided convolutions after the input and after a ReLU whose output is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            padding.pad_like_tensorflow(nn.Conv2d(3, 32, 3, 2, 1, bias=False)), nn.BatchNorm2d(32), nn.ReLU6()
        )
        self.second = nn.Sequential(
            padding.pad_like_tensorflow(nn.Conv2d(32, 48, 3, 2, 1, bias=False)), nn.BatchNorm2d(48), nn.ReLU6()
        )
        self.aside = nn.Sequential(nn.Conv2d(32, 48, 3, 2, 1), nn.ReLU6())
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head((self.second(x) + self.aside(x)).mean((2, 3)))


def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.train()(torch.randn(16, 3, 32, 24))
    criterion = registry.load_module("criteria", "magnitude").score
    plan = search_space.plan_for_ratio(
        model.eval(), IMAGE, head="head", spec=PruneSpec(ratio=0.3), alignment=16, criterion=criterion
    )
    small = surgery.apply(model, plan)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    return small


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_no_padding_of_its_own_is_left_and_both_runtimes_agree(precision: Precision, tmp_path: Path) -> None:
    model = net()
    torch.manual_seed(1)
    x = torch.randn(16, 3, 32, 24)
    module: nn.Module = copy.deepcopy(model)
    if precision == "int8":
        graph, _ = pt2e.prepare(model, IMAGE, Placement(), QuantScheme())
        with torch.no_grad():
            graph(x)
        pt2e.configure_fake_quantize(graph, ranges=False, rounding=True)
        module, model = pt2e.convert(graph, IMAGE), graph
    to_onnx.export_file(module, IMAGE, tmp_path / "m.onnx")
    kinds = collections.Counter(node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node)
    assert kinds["Conv"] == 3
    assert kinds["Pad"] == 0
    expected = model(x).detach().numpy()
    for runtime in ("onnxruntime", "openvino"):
        runtime_module = registry.load_module("runtimes", runtime)
        artefact = runtime_module.compile(tmp_path / "m.onnx", tmp_path / runtime)
        session = runtime_module.open(artefact.path, threads=1, precision=precision)
        outputs = np.concatenate([session.run(x[i : i + 1].numpy()) for i in range(len(x))])
        step = np.ptp(expected) / 255 if precision == "int8" else 1e-5
        assert np.abs(outputs - expected).max() <= 3 * step
        if precision == "int8":
            assert runtime_module.coverage(artefact.path, precision="int8").integer == 4
