"""Quantization: the trained model equals the exported one, and all planned layers run in int8 in both runtimes."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from toolchain.config.target import QuantScheme
from toolchain.core import registry
from toolchain.core.errors import ToolchainError
from toolchain.export import onnx_graph, quantized_tensors, to_onnx
from toolchain.export.passes import runtime_fusions
from toolchain.export.runtime import load_runtime
from toolchain.quantization import pt2e
from toolchain.quantization.placement import Placement


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU())
        self.back = nn.Conv2d(16, 16, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.back(self.inner(x))
        return self.head(self.pool(x).flatten(1))


LAYERS = ("stem.0", "inner.0", "back", "head")
IMAGE = torch.zeros(1, 3, 8, 8)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    block = Block()
    block(torch.randn(32, 3, 8, 8) * 2)  # statistics for the batch norms
    return block.eval()


def calibrated(model: nn.Module, placement: Placement | None = None, scheme: QuantScheme | None = None):
    graph, planned = pt2e.prepare(model, IMAGE, placement or Placement(), scheme or QuantScheme())
    pt2e.configure_fake_quantize(graph, ranges=True, rounding=False)
    with torch.no_grad():
        graph(torch.randn(64, 3, 8, 8))
    pt2e.configure_fake_quantize(graph, ranges=False, rounding=True)
    return graph, planned


def exported(graph: nn.Module, folder: Path) -> Path:
    to_onnx.export_file(pt2e.convert(graph, IMAGE), IMAGE, folder / "model.onnx")
    return folder / "model.onnx"


def test_batch_norm_is_folded_before_anything_is_observed(model: nn.Module) -> None:
    graph, _ = pt2e.prepare(model, IMAGE, Placement(), QuantScheme())
    assert not [node for node in graph.graph.nodes if "batch_norm" in str(node.target)]
    pt2e.configure_fake_quantize(graph, ranges=False, rounding=False)
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(graph(x), model(x), atol=1e-5, rtol=1e-5)


def test_every_layer_is_planned_by_its_module_name(model: nn.Module) -> None:
    assert calibrated(model)[1] == LAYERS


def test_converted_model_equals_the_fake_quantized_one_after_training(model: nn.Module) -> None:
    graph, _ = calibrated(model)
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        graph(torch.randn(8, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    x = torch.randn(16, 3, 8, 8)
    trained = graph(x).detach()
    converted = pt2e.convert(graph, IMAGE)
    assert torch.equal(converted(x), trained)


def test_preparing_leaves_the_float_model_alone(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph, _ = calibrated(model)
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1)
    graph(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("runtime", registry.list_modules("runtimes"))
def test_all_planned_layers_run_in_int8(model: nn.Module, runtime: str, tmp_path: Path) -> None:
    graph, planned = calibrated(model)
    runtime_module = load_runtime(runtime)
    artefact = runtime_module.compile(exported(graph, tmp_path), tmp_path / "compiled")
    coverage = runtime_module.coverage(artefact.path, precision="int8")
    assert (coverage.integer, coverage.float_ops) == (len(planned), ())


@pytest.mark.parametrize("runtime", registry.list_modules("runtimes"))
def test_a_module_left_in_float_is_named_as_float(model: nn.Module, runtime: str, tmp_path: Path) -> None:
    graph, planned = calibrated(model, Placement(float_modules=("inner",)))
    runtime_module = load_runtime(runtime)
    artefact = runtime_module.compile(exported(graph, tmp_path), tmp_path / "compiled")
    coverage = runtime_module.coverage(artefact.path, precision="int8")
    assert planned == ("stem.0", "back", "head")
    assert coverage.integer == 3
    assert coverage.float_ops == ("inner.0",)


@pytest.mark.parametrize("runtime", registry.list_modules("runtimes"))
def test_the_runtime_agrees_with_torch_within_two_steps(model: nn.Module, runtime: str, tmp_path: Path) -> None:
    graph, _ = calibrated(model)
    x = torch.randn(20, 3, 8, 8)
    wanted = graph(x).detach().numpy()
    path = exported(graph, tmp_path)
    step = quantized_tensors.read_output_step(path)
    runtime_module = load_runtime(runtime)
    session = runtime_module.open(runtime_module.compile(path, tmp_path / "compiled").path, threads=1, precision="int8")
    given = np.concatenate([session.run(x[i : i + 1].numpy()) for i in range(20)])
    assert step is not None
    assert np.abs(given - wanted).max() <= 2 * step + 1e-6


class Hard(nn.Module):
    """A hard swish, and a hard sigmoid as a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.swish = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Hardswish())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Hardsigmoid())
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.swish(x)
        return self.head((x * self.gate(x)).mean((2, 3)))


@pytest.mark.parametrize("runtime", registry.list_modules("runtimes"))
@pytest.mark.parametrize("chosen", [Placement(float_modules=("",)), Placement(), Placement(float_operations=())])
def test_hard_activations_keep_their_values_in_the_form_a_runtime_fuses(
    runtime: str, chosen: Placement, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    graph, planned = calibrated(Hard().eval(), chosen)
    x = torch.randn(20, 3, 8, 8) * 2
    wanted = graph(x).detach().numpy()
    path = exported(graph, tmp_path)
    assert "HardSigmoid" in {node.op_type for node in onnx.load(path).graph.node}
    runtime_module = load_runtime(runtime)
    artefact = runtime_module.compile(path, tmp_path / "compiled")
    session = runtime_module.open(artefact.path, threads=1, precision="int8" if planned else "f32")
    given = np.concatenate([session.run(x[i : i + 1].numpy()) for i in range(20)])
    step = quantized_tensors.read_output_step(path)
    assert np.abs(given - wanted).max() <= (2 * step + 1e-6 if step else 1e-5)


class Rows(nn.Module):
    """Products over the channels of images that have them last, as in ConvNeXt, with weights of equally many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 1), nn.LayerNorm(16)
        self.wide, self.plain, self.narrow = nn.Linear(16, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.narrow(self.plain(nn.functional.gelu(self.wide(self.norm(x.permute(0, 2, 3, 1))))))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


@pytest.mark.parametrize("runtime", registry.list_modules("runtimes"))
@pytest.mark.parametrize("results", [True, False])
def test_products_over_the_last_of_four_dimensions_run_in_int8(runtime: str, results: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph, planned = calibrated(Rows().eval(), Placement(results=results))
    path = exported(graph, tmp_path)
    runtime_module = load_runtime(runtime)
    artefact = runtime_module.compile(path, tmp_path / "compiled")
    in_float = runtime_module.coverage(artefact.path, precision="int8").float_ops
    assert set(planned) == {"stem", "wide", "plain", "narrow", "head"}
    # ONNX Runtime has no int8 convolution with a float result
    assert in_float == (("stem",) if runtime == "onnxruntime" and not results else ())
    x = torch.randn(20, 3, 8, 8)
    session = runtime_module.open(artefact.path, threads=1, precision="int8")
    given = np.concatenate([session.run(x[i : i + 1].numpy()) for i in range(20)])
    wanted = graph(x).detach().numpy()
    assert np.abs(given - wanted).max() <= 2 * (quantized_tensors.read_output_step(path) or np.ptp(wanted) / 255) + 1e-6


class Shuffled(nn.Module):
    """Two branches joined and their channels shuffled, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 16, 1), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, moved = self.stem(x).chunk(2, 1)
        joined = torch.cat([kept, self.side(moved)], 1)
        shuffled = joined.view(-1, 2, 8, 8, 8).transpose(1, 2).reshape(-1, 16, 8, 8)
        return self.head(shuffled).mean((2, 3))


def test_data_movement_is_not_quantized_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph, _ = calibrated(Shuffled().eval())
    written = onnx_ir.load(exported(graph, tmp_path))
    before = len(onnx_graph.nodes_of_type(written.graph, "QuantizeLinear"))
    runtime_fusions.drop_qdq_after_data_movement(written.graph)
    onnx_graph.remove_dead_nodes(written.graph)
    moves = [node for node in written.graph if node.op_type in {"Concat", "Transpose", "Reshape"}]
    onnx_graph.save_model(written, tmp_path / "moved.onnx")
    assert len(onnx_graph.nodes_of_type(written.graph, "QuantizeLinear")) < before
    assert len(moves) == 4
    assert not any(use.node.op_type == "QuantizeLinear" for node in moves for use in node.outputs[0].uses())
    x = torch.randn(1, 3, 8, 8).numpy()
    both = [onnxruntime.InferenceSession(tmp_path / name) for name in ("model.onnx", "moved.onnx")]
    given = [session.run(None, {session.get_inputs()[0].name: x})[0] for session in both]
    np.testing.assert_array_equal(given[0], given[1])


def test_data_movement_into_another_scale_is_quantized_again() -> None:
    values = {name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in ("x", "y")}
    scales = [("one", 0.1), ("other", 0.2)]
    known = [onnx.numpy_helper.from_array(np.asarray(step, np.float32), name) for name, step in scales]
    known += [onnx.numpy_helper.from_array(np.asarray(0, np.uint8), "zero")]
    known += [onnx.numpy_helper.from_array(np.asarray([1, 4]), "shape")]

    def pair(source: str, scale: str) -> list[onnx.NodeProto]:
        ends = (f"{source}_q", f"{source}_{scale}")
        return [
            onnx.helper.make_node("QuantizeLinear", [source, scale, "zero"], [ends[0]]),
            onnx.helper.make_node("DequantizeLinear", [ends[0], scale, "zero"], [ends[1]]),
        ]

    for scale, left in (("one", 1), ("other", 2)):
        move = onnx.helper.make_node("Reshape", ["x_one", "shape"], ["moved"])
        end = onnx.helper.make_node("Relu", [f"moved_{scale}"], ["y"])
        nodes = [*pair("x", "one"), move, *pair("moved", scale), end]
        graph = onnx_ir.from_proto(
            onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [values["x"]], [values["y"]], known))
        ).graph
        runtime_fusions.drop_qdq_after_data_movement(graph)
        onnx_graph.remove_dead_nodes(graph)
        assert len(onnx_graph.nodes_of_type(graph, "QuantizeLinear")) == left


def test_seven_bit_weights_stay_within_seven_bits(model: nn.Module, tmp_path: Path) -> None:
    graph, _ = calibrated(model, scheme=QuantScheme(weight_bits=7))
    weights = [
        t for t in onnx.load(exported(graph, tmp_path)).graph.initializer if t.data_type == onnx.TensorProto.INT8
    ]
    kernels = [onnx.numpy_helper.to_array(t) for t in weights if len(t.dims) > 1]
    assert len(kernels) == len(LAYERS)
    assert max(int(np.abs(kernel.astype(int)).max()) for kernel in kernels) == 63


def test_exported_files_carry_no_comments_and_no_paths(model: nn.Module, tmp_path: Path) -> None:
    graph, _ = calibrated(model)
    proto = onnx.load(exported(graph, tmp_path))
    onnx.checker.check_model(proto, full_check=True)
    parts = [proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output]
    assert not any(part.metadata_props or part.doc_string for part in parts)
    assert str(Path.cwd()).encode() not in proto.SerializeToString()


def test_rectifiers_float_biases_and_repeated_quantization_are_removed(model: nn.Module, tmp_path: Path) -> None:
    graph, _ = calibrated(model)
    nodes = onnx.load(exported(graph, tmp_path)).graph.node
    op_types = [node.op_type for node in nodes]
    assert "Relu" not in op_types
    assert "Clip" not in op_types
    assert "ReduceMean" not in op_types
    op_types_by_output = {output: node.op_type for node in nodes for output in node.output}
    assert all(
        op_types_by_output[node.input[2]] == "DequantizeLinear" for node in nodes if node.op_type in {"Conv", "Gemm"}
    )


def test_a_model_that_branches_on_its_data_is_refused_with_a_reason() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(
        ToolchainError, match=r"cannot be exported for quantization.*test_pt2e.py, line \d+: return x \* 2 if"
    ):
        pt2e.prepare(Branching(), IMAGE, Placement(), QuantScheme())


def test_a_model_of_two_inputs_is_refused_by_their_names() -> None:
    class Pair(nn.Module):
        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            return image * mask

    with pytest.raises(ToolchainError, match=r"takes 2 inputs \(image, mask\)"):
        pt2e.prepare(Pair(), IMAGE, Placement(), QuantScheme())


def test_an_operation_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    @torch.library.custom_op("ours::halved", mutates_args=())
    def halved(x: Tensor) -> Tensor:
        return x / 2

    halved.register_fake(torch.empty_like)

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return halved(self.conv(x)).mean((2, 3))

    graph, planned = calibrated(Custom().eval())
    assert planned == ("conv",)  # what is known is quantized, the rest stays in float
    with pytest.raises(ToolchainError, match="ours.halved"):
        exported(graph, tmp_path)


def test_an_average_has_its_own_scale(model: nn.Module, tmp_path: Path) -> None:
    graph, _ = calibrated(model)
    proto = onnx.load(exported(graph, tmp_path))
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    pool = next(node for node in proto.graph.node if node.op_type == "GlobalAveragePool")
    before = next(node for node in proto.graph.node if node.output[0] == pool.input[0])
    behind = next(node for node in proto.graph.node if node.input[0] == pool.output[0])
    assert scales[behind.input[1]] < scales[before.input[1]]


def test_frozen_ranges_are_those_that_conversion_uses(model: nn.Module) -> None:
    graph, _ = calibrated(model)
    with torch.no_grad():
        for name, buffer in graph.named_buffers():
            if name.endswith("max_val"):
                buffer.mul_(0.7)  # as averaging the weights of several steps would
    pt2e.configure_fake_quantize(graph, ranges=False, rounding=True)
    x = torch.randn(16, 3, 8, 8)
    shown = graph(x).detach()
    assert torch.equal(pt2e.convert(graph, IMAGE)(x), shown)


def test_an_activation_in_channels_last_is_quantized_like_any_other() -> None:
    values = torch.randn(2, 5, 7, 3)
    results = []
    for form in (torch.contiguous_format, torch.channels_last):
        graph, _ = pt2e.prepare(nn.Sequential(nn.Conv2d(5, 4, 1)), torch.zeros(1, 5, 7, 3), Placement(), QuantScheme())
        quantizer = next(iter(pt2e.find_activation_quantizers(graph).values()))
        pt2e.configure_fake_quantize(graph, ranges=True, rounding=True)
        given = values.clone(memory_format=form).requires_grad_()
        rounded = quantizer(given)
        rounded.square().sum().backward()
        results.append((rounded, given.grad, quantizer.scale.clone(), quantizer.zero_point.clone()))
    for contiguous, last in zip(*results, strict=True):
        assert torch.equal(contiguous, last)
