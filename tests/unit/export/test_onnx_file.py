"""A model that is only an ONNX file: what is read, what is refused, and that calibration agrees with the torch path."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from toolchain.config import read_config
from toolchain.core.errors import ToolchainError
from toolchain.export import (
    insert_qdq,
    onnx_bias_correction,
    onnx_file,
    onnx_graph,
    onnx_interface,
    onnx_model,
    onnx_ranges,
)
from toolchain.export.onnx_model import OnnxModule
from toolchain.export.passes import foreign_graph
from toolchain.quantization import bias_correction, pt2e, ranges
from toolchain.quantization.placement import Placement

SIZE = (16, 16)


class Net(nn.Module):
    """Convolutions with batch norm, a residual addition, a hard-swish and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.mix = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.gate = nn.Hardswish()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.gate(x + self.mix(x))
        return self.head(x.mean((2, 3)))


def trained_net() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    return net.eval()


def export(net: nn.Module, path: Path, *, dynamo: bool = True, half: bool = False, **settings: object) -> Path:
    image = torch.randn(1, 3, *SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = (image.half() if half else image,)
        if dynamo:
            settings = {"verbose": False, "external_data": False, **settings}
        torch.onnx.export(net, arguments, str(path), dynamo=dynamo, **settings)
    return path


def read(path: Path, folder: Path) -> tuple[OnnxModule, dict[str, object]]:
    folder.mkdir(exist_ok=True)
    facts = onnx_model.read(path, SIZE, folder)
    return onnx_model.open_read(folder), facts


def edit(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def to_channels_last(model: onnx.ModelProto) -> None:
    """The input as TensorFlow's exporters give it: channels last, then a transposition."""
    graph = model.graph
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["planes" if value == name else value for value in node.input]
    graph.node.insert(0, helper.make_node("Transpose", [name], ["planes"], perm=[0, 3, 1, 2]))
    graph.input[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None, None, 3]))


def to_uint8(model: onnx.ModelProto) -> None:
    graph = model.graph
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["scaled" if value == name else value for value in node.input]
    graph.initializer.append(numpy_helper.from_array(np.float32(1 / 255), "scale"))
    graph.node.insert(0, helper.make_node("Cast", [name], ["pixels_as_float"], to=TensorProto.FLOAT))
    graph.node.insert(1, helper.make_node("Mul", ["pixels_as_float", "scale"], ["scaled"]))
    graph.input[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, [1, 3, *SIZE]))


def with_softmax(model: onnx.ModelProto) -> None:
    output = model.graph.output[0]
    model.graph.node.append(helper.make_node("Softmax", [output.name], ["probabilities"], axis=-1))
    output.name = "probabilities"


def with_listed_initializers(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


DYNAMIC = {"dynamic_axes": {"pixels": {0: "n", 2: "h", 3: "w"}}, "input_names": ["pixels"]}
FORMS: dict[str, tuple[dict[str, object], Callable[[onnx.ModelProto], None] | None]] = {
    "dynamo": ({}, None),
    "opset 11": ({"dynamo": False, "opset_version": 11}, None),
    "opset 17": ({"dynamo": False, "opset_version": 17}, None),
    "opset 23": ({"opset_version": 23}, None),
    "dynamic batch and size": ({"dynamo": False, **DYNAMIC}, None),
    "batch norm not folded": (
        {"dynamo": False, "training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False},
        None,
    ),
    "second file": ({"external_data": True}, None),
    "channels last": ({}, to_channels_last),
    "softmax": ({}, with_softmax),
    "initializers as inputs": ({}, with_listed_initializers),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_into_the_same_float_graph(form: str, tmp_path: Path) -> None:
    settings, change = FORMS[form]
    net = trained_net()
    path = export(net, tmp_path / "net.onnx", **settings)
    if change:
        edit(path, change)
    model, facts = read(path, tmp_path / "read")
    images = torch.randn(3, 3, *SIZE)
    with torch.no_grad():
        assert torch.allclose(model(images), net(images), atol=1e-4)
    kinds = [node.op_type for node in model.graph.graph]
    assert kinds.count("Conv") == 2 and "BatchNormalization" not in kinds and "HardSwish" not in kinds
    assert ("HardSigmoid" in kinds) and "Transpose" not in kinds and "Softmax" not in kinds
    assert facts["classes"] == 4 and bool(facts["warnings"]) is (form == "softmax")
    assert model.macs == 8 * 27 * 256 + 8 * 9 * 256 + 32


def test_half_precision_is_widened(tmp_path: Path) -> None:
    path = export(trained_net().half(), tmp_path / "net.onnx", half=True)
    model, facts = read(path, tmp_path / "read")
    assert model(torch.randn(1, 3, *SIZE)).dtype is torch.float32
    assert {value.dtype.name for value in model.graph.graph.initializers.values()} <= {"FLOAT", "INT64"}
    assert any("float32" in change for change in facts["changes"])


def test_uint8_input_takes_pixels_from_0_to_255(tmp_path: Path) -> None:
    net = trained_net()
    path = edit(export(net, tmp_path / "net.onnx"), to_uint8)
    model, _ = read(path, tmp_path / "read")
    pixels = torch.randint(0, 256, (2, 3, *SIZE)).float()
    with torch.no_grad():
        assert torch.allclose(model(pixels), net(pixels / 255), atol=1e-4)


def quantized(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "QLinearConv"


def custom(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain, model.graph.node[1].op_type = "com.acme", "Sharpen"
    model.opset_import.append(helper.make_opsetid("com.acme", 1))


def two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 1, *SIZE]))


def two_outputs(model: onnx.ModelProto) -> None:
    node = model.graph.node[0]
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [1, 8, *SIZE]))


def map_output(model: onnx.ModelProto) -> None:
    name = model.graph.node[0].output[0]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, *SIZE]))


REFUSED = {
    "quantized": (quantized, "already quantized .QLinearConv.*float ONNX file"),
    "custom": (custom, "not in the ONNX standard: com.acme::Sharpen"),
    "two inputs": (two_inputs, "2 inputs .x, mask.; it must have one"),
    "two outputs": (two_outputs, "2 outputs .*one output .1, classes"),
    "map": (map_output, "only classification .*--model net.py:build"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(case: str, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    path = edit(export(trained_net(), tmp_path / "net.onnx"), change)
    with pytest.raises(ToolchainError, match=message):
        read(path, tmp_path / "read")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13000000\n"
ALIENS = {
    "empty": (b"", "empty .0 bytes"),
    "zeros": (bytes(5000), "zero bytes only"),
    "lfs": (LFS, "Git LFS pointer of 13 MB"),
    "html": (b"<!DOCTYPE html><html>", "web page"),
    "torch": (b"PK\x03\x04" + bytes(50), "zip archive.*net.py:build"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(50), "TensorFlow Lite"),
    "text": (b"hello there\n" * 9, "plain text that starts with 'hello there'"),
}


@pytest.mark.parametrize("case", ALIENS)
def test_a_file_that_is_something_else_is_named(case: str, tmp_path: Path) -> None:
    content, message = ALIENS[case]
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(ToolchainError, match=message):
        onnx_file.load(path)


def test_cut_and_missing_files_are_named(tmp_path: Path) -> None:
    path = export(trained_net(), tmp_path / "net.onnx")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ToolchainError, match="cut off or damaged"):
        onnx_file.load(path)
    with pytest.raises(ToolchainError, match="does not exist"):
        onnx_file.load(tmp_path / "other.onnx")
    path = export(trained_net(), tmp_path / "outside.onnx", external_data=True)
    weights = tmp_path / "outside.onnx.data"
    weights.write_bytes(LFS)
    with pytest.raises(ToolchainError, match="Git LFS pointer"):
        onnx_file.load(path)
    weights.unlink()
    with pytest.raises(ToolchainError, match="second file, outside.onnx.data"):
        onnx_file.load(path)


def test_a_fixed_size_is_told_from_a_free_one(tmp_path: Path) -> None:
    fixed = onnx_file.load(export(trained_net(), tmp_path / "a.onnx"))[0]
    assert onnx_interface.read_input(fixed, tmp_path).size == SIZE
    free = onnx_file.load(export(trained_net(), tmp_path / "b.onnx", dynamo=False, **DYNAMIC))[0]
    assert onnx_interface.read_input(free, tmp_path).size == (None, None)


def test_paths_of_the_older_exporter_give_the_names_of_modules() -> None:
    join = foreign_graph._module_of_path
    assert join("/features/features.1/conv/conv.0/conv.0.0/Conv") == "features.1.conv.0.0"
    assert join("/layer1/layer1.0/conv1/Conv") == "layer1.0.conv1"
    assert join("Conv_3") == "Conv_3"


# --- calibration, compared with the torch path ----------------------------------------------------------------

SCHEME = read_config.read_target("cpu").scheme
PLACEMENT = Placement(float_operations=())


@pytest.fixture
def both(tmp_path: Path) -> tuple[OnnxModule, torch.fx.GraphModule, list[Tensor]]:
    net = trained_net()
    model, _ = read(export(net, tmp_path / "net.onnx", dynamo=False), tmp_path / "read")
    images = [torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    graph, _ = pt2e.prepare(net, images[0], PLACEMENT, SCHEME)
    return model, graph, images


def onnx_ranges_of(
    model: OnnxModule, images: list[Tensor], folder: Path, method: str
) -> dict[str, tuple[float, float]]:
    groups = insert_qdq.group_quantized_values(model.graph, PLACEMENT)
    histograms = onnx_ranges.collect_histograms(model, groups, images, folder)
    return ranges.choose_ranges(histograms, method)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_ranges_are_those_of_the_torch_path(
    method: str, both: tuple[OnnxModule, torch.fx.GraphModule, list[Tensor]], tmp_path: Path
) -> None:
    model, graph, images = both
    torch_ranges = ranges.choose_ranges(ranges.collect_histograms(graph, images), method)
    found = np.asarray(sorted(onnx_ranges_of(model, images, tmp_path, method).values()))
    expected = np.asarray(sorted(torch_ranges.values()))
    assert found.shape == expected.shape
    assert np.allclose(found, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("correction", ["none", "bias", "norm"])
def test_logits_are_those_of_the_torch_path(
    correction: str, both: tuple[OnnxModule, torch.fx.GraphModule, list[Tensor]], tmp_path: Path
) -> None:
    model, graph, images = both
    ranges.calibrate(graph, ranges.collect_histograms(graph, images), "minmax")
    qdq = insert_qdq.insert(model.graph, PLACEMENT, SCHEME, onnx_ranges_of(model, images, tmp_path, "minmax"))
    if correction != "none":
        match_std = correction == "norm"
        bias_correction.correct_layers(graph, torch.cat(images), match_std=match_std)
        expected = onnx_bias_correction.measure_float(model, images, tmp_path)
        assert onnx_bias_correction.correct_layers(qdq, expected, images, tmp_path, match_std=match_std) == 3
    path = tmp_path / "qdq.onnx"
    onnx_graph.save_model(qdq, path)
    with torch.no_grad():
        difference = OnnxModule(qdq, path)(torch.cat(images)) - graph(torch.cat(images))
        step = float(np.ptp(graph(torch.cat(images)).numpy())) / 255
    assert float(difference.abs().max()) < 2.5 * step
    assert float(difference.abs().mean()) < 0.5 * step
