"""Parity: all runtimes agree on a sound graph, and the layer in which one of them deviates is named."""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from conftest import Run
from torch import Tensor, nn
from typer.testing import CliRunner

from toolchain.cli import main
from toolchain.config.target import QuantScheme
from toolchain.core import files, registry
from toolchain.core.errors import ToolchainError
from toolchain.export.to_onnx import export_file
from toolchain.measure.parity import compare, runtime_outputs
from toolchain.quantization import pt2e
from toolchain.quantization.placement import Placement
from toolchain.report.pages import parity as parity_page

IMAGE = torch.zeros(1, 3, 8, 8)
RUNTIMES = registry.list_modules("runtimes")
CONFIG_NAMES = [config.name for config in runtime_outputs.list_configs()]


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


def export(folder: Path, *float_modules: str) -> tuple[onnx.ModelProto, nn.Module]:
    torch.manual_seed(1)
    block = Block()
    block(torch.randn(32, 3, 8, 8) * 2)
    graph, _ = pt2e.prepare(block.eval(), IMAGE, Placement(float_modules=float_modules), QuantScheme())
    pt2e.configure_fake_quantize(graph, ranges=True, rounding=False)
    with torch.no_grad():
        graph(torch.randn(64, 3, 8, 8))
    pt2e.configure_fake_quantize(graph, ranges=False, rounding=True)
    converted = pt2e.convert(graph, IMAGE)
    export_file(copy.deepcopy(converted), IMAGE, folder / "model.onnx")
    return onnx.load(folder / "model.onnx"), converted


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, nn.Module]:
    return export(tmp_path_factory.mktemp("sound"))


def make_images() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(6, 3, 8, 8)).astype(np.float32)


def damage(model: onnx.ModelProto, layer: str) -> onnx.ModelProto:
    """Return a copy in which the weights of one layer are larger."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    weight = next(node for node in copied.graph.node if node.name == layer).input[1]
    scale = next(node for node in copied.graph.node if node.output[0] == weight).input[1]
    tensor = next(constant for constant in copied.graph.initializer if constant.name == scale)
    larger = onnx.numpy_helper.to_array(tensor) * np.float32(1.3)
    tensor.CopyFrom(onnx.numpy_helper.from_array(larger, tensor.name))
    return copied


def test_all_runtimes_agree_on_a_sound_graph(sound: tuple[onnx.ModelProto, nn.Module]) -> None:
    results = compare.compare_layers(sound[0], make_images(), 1.5).results
    assert set(results["parts"].values()) == {None}
    assert {logits["top1_agreement"] for logits in results["logits"].values()} == {1.0}
    assert [layer["layer"] for layer in results["layers"]] == [
        "input", "stem.0", "inner.0", "back", "Add after back", "GlobalAveragePool after back", "head",
    ]  # fmt: skip
    assert {runtime: coverage["integer"] for runtime, coverage in results["coverage"].items()} == dict.fromkeys(
        RUNTIMES, 4
    )
    assert not results["missing"]


def test_the_reference_is_the_converted_torch_model(sound: tuple[onnx.ModelProto, nn.Module]) -> None:
    images = make_images()
    comparison = compare.compare_layers(sound[0], images, 1.5)
    with torch.no_grad():
        expected = np.concatenate([sound[1](torch.from_numpy(image[None])).numpy() for image in images])
    assert np.abs(comparison.reference_logits - expected).max() <= 1.01 * comparison.logit_step


@pytest.mark.parametrize("layer", ["inner.0", "head"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_layer_that_deviates_is_named(
    sound: tuple[onnx.ModelProto, nn.Module], runtime: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: ModuleType = registry.load_module("runtimes", runtime)
    compile_original = module.compile

    def compile_damaged(path: Path, folder: Path) -> object:
        onnx.save(damage(onnx.load(path), layer), path)
        return compile_original(path, folder)

    monkeypatch.setattr(module, "compile", compile_damaged)
    results = compare.compare_layers(sound[0], make_images(), 1.5).results
    damaged = {config.name for config in runtime_outputs.list_configs() if config.runtime == runtime}
    assert {name: deviation and deviation["layer"] for name, deviation in results["parts"].items()} == {
        name: layer if name in damaged else None for name in CONFIG_NAMES
    }


def test_a_layer_planned_in_float_has_not_fallen_back(tmp_path: Path) -> None:
    model, _ = export(tmp_path, "inner")
    results = compare.compare_layers(model, make_images(), 1.5).results
    for coverage in results["coverage"].values():
        assert (coverage["integer"], coverage["planned"], coverage["fell_back"], coverage["meant_as_float"]) == (
            3,
            3,
            [],
            ["inner.0"],
        )


def test_a_layer_that_falls_back_is_named(
    sound: tuple[onnx.ModelProto, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    module: ModuleType = registry.load_module("runtimes", RUNTIMES[0])
    read_coverage = module.coverage

    def report_back_in_float(path: Path, **options: str) -> object:
        coverage = read_coverage(path, **options)
        return type(coverage)(integer=coverage.integer - 1, planned=0, total=coverage.total, float_ops=("back",))

    monkeypatch.setattr(module, "coverage", report_back_in_float)
    results = compare.compare_layers(sound[0], make_images(), 1.5).results
    assert results["coverage"][RUNTIMES[0]]["fell_back"] == ["back"]


def test_a_tensor_whose_reading_changes_the_logits_is_not_used(
    sound: tuple[onnx.ModelProto, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with_outputs = runtime_outputs._run_with_outputs

    def disturb(config: object, graph: object, tensors: Sequence, images: np.ndarray) -> object:
        outputs, coverage = run_with_outputs(config, graph, tensors, images)  # type: ignore[arg-type]
        if any(tensor.layer == "back" for tensor in tensors):
            outputs["logits"] = outputs["logits"] + 1
        return outputs, coverage

    monkeypatch.setattr(runtime_outputs, "_run_with_outputs", disturb)
    results = compare.compare_layers(sound[0], make_images(), 1.5).results
    assert all("back" in fused for fused in results["fused"].values())
    assert results["fused"][runtime_outputs.list_configs()[0].name] == ["back"]
    back = next(layer for layer in results["layers"] if layer["layer"] == "back")
    assert back["sides"] == dict.fromkeys(CONFIG_NAMES)
    assert set(results["parts"].values()) == {None}


def test_a_runtime_that_is_not_installed_has_an_empty_column(
    sound: tuple[onnx.ModelProto, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise ToolchainError("needs something, which is not installed; run: pip install it")

    monkeypatch.setattr(registry.load_module("runtimes", RUNTIMES[0]), "library", absent)
    results = compare.compare_layers(sound[0], make_images(), 1.5).results
    table = parity_page.tabulate_layers({"name": "dense-int8", **results})
    columns = [1 + i for i, config in enumerate(runtime_outputs.list_configs()) if config.runtime == RUNTIMES[0]]
    assert {row[column] for row in table.rows for column in columns if row[column]} == {"not installed"}
    for name in RUNTIMES[1:]:
        monkeypatch.setattr(registry.load_module("runtimes", name), "library", absent)
    with pytest.raises(ToolchainError, match="no runtime can run the graph.*not installed"):
        compare.compare_layers(sound[0], make_images(), 1.5)


# --- on a finished run --------------------------------------------------------------------------------------


def test_a_finished_run_can_be_compared(run: Run) -> None:
    ended = CliRunner().invoke(main.app, ["parity", str(run.folder), "--images", "4"])
    written = files.read_json(run.folder / compare.FILE_NAME)
    assert ended.exit_code == (0 if written["agree"] else 1), ended.output
    names = [variant["name"] for variant in written["variants"]]
    assert sorted(names) == ["dense-int8", "pruned-int8"]
    assert run.report["candidate"] in {names[0], "dense-fp32", "pruned-fp32"}
    assert {variant["coverage"][run.target.runtime]["planned"] for variant in written["variants"]} == {26}
    assert all(variant["trained"]["top1_agreement"] == 1.0 for variant in written["variants"] if variant["shipped"])
    assert "Steps from torch" in ended.output


def test_different_predictions_are_exit_status_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run_with_outputs = runtime_outputs._run_with_outputs

    def negate(config: runtime_outputs.RuntimeConfig, *arguments: object) -> object:
        outputs, coverage = run_with_outputs(config, *arguments)  # type: ignore[arg-type]
        return {**outputs, "logits": -outputs["logits"]}, coverage

    monkeypatch.setattr(runtime_outputs, "_run_with_outputs", negate)
    ended = CliRunner().invoke(main.app, ["parity", str(run.folder), "--images", "2"])
    assert ended.exit_code == 1, ended.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no folder"),
        (lambda folder: (folder / "report.json").unlink(), "no report.json"),
        (lambda folder: edit(folder, shipped=None), "shipped nothing"),
        (lambda folder: edit(folder, variants=[]), "no int8 variant"),
        (lambda folder: shutil.rmtree(folder.parent.parent / "work" / "export"), "cached export of .* is gone"),
        (lambda folder: edit(folder, variants=[{"name": "dense-int8", "precision": "int8"}]), "of an older version"),
        (lambda folder: (folder / "bundle" / "golden.npz").write_bytes(b"x"), "cannot read .*golden.npz"),
    ],
)
def test_an_incomplete_run_is_refused(run: Run, tmp_path: Path, change: object, message: str) -> None:
    folder = tmp_path / "tiny" / run.target.name
    shutil.copytree(run.folder, folder)
    shutil.copytree(run.out / "work" / "export", tmp_path / "work" / "export")
    change(folder)  # type: ignore[operator]
    with pytest.raises(ToolchainError, match=message):
        compare.compare_runtimes(folder)


def test_more_images_than_golden_inputs_are_refused(run: Run) -> None:
    with pytest.raises(ToolchainError, match="the bundle has 16 golden inputs"):
        compare.compare_runtimes(run.folder, images=17)


def edit(folder: Path, **fields: object) -> None:
    files.write_json(folder / "report.json", {**files.read_json(folder / "report.json"), **fields})
