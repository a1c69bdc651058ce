"""Parity: all sides agree on a sound graph, and where one of them computes something else, its layer is named."""

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
from toolchain.report.pages import parity as agreement

IMAGE = torch.zeros(1, 3, 8, 8)
RUNTIMES = registry.list_modules("runtimes")
SIDES = [side.name for side in runtime_outputs.list_configs()]


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


def exported(folder: Path, *floats: str) -> tuple[onnx.ModelProto, nn.Module]:
    torch.manual_seed(1)
    block = Block()
    block(torch.randn(32, 3, 8, 8) * 2)
    graph, _ = pt2e.prepare(block.eval(), IMAGE, Placement(float_modules=floats), QuantScheme())
    pt2e.configure_fake_quantize(graph, ranges=True, rounding=False)
    with torch.no_grad():
        graph(torch.randn(64, 3, 8, 8))
    pt2e.configure_fake_quantize(graph, ranges=False, rounding=True)
    converted = pt2e.convert(graph, IMAGE)
    export_file(copy.deepcopy(converted), IMAGE, folder / "model.onnx")
    return onnx.load(folder / "model.onnx"), converted


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, nn.Module]:
    return exported(tmp_path_factory.mktemp("sound"))


def pictures() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(6, 3, 8, 8)).astype(np.float32)


def damaged(model: onnx.ModelProto, layer: str) -> onnx.ModelProto:
    """A copy in which one layer's weights have become larger."""
    bad = onnx.ModelProto()
    bad.CopyFrom(model)
    weight = next(node for node in bad.graph.node if node.name == layer).input[1]
    scale = next(node for node in bad.graph.node if node.output[0] == weight).input[1]
    tensor = next(t for t in bad.graph.initializer if t.name == scale)
    larger = onnx.numpy_helper.to_array(tensor) * np.float32(1.3)
    tensor.CopyFrom(onnx.numpy_helper.from_array(larger, tensor.name))
    return bad


def test_all_sides_agree_on_a_sound_graph(sound: tuple[onnx.ModelProto, nn.Module]) -> None:
    found = compare.compare_layers(sound[0], pictures(), 1.5).results
    assert set(found["parts"].values()) == {None}
    assert {one["top1_agreement"] for one in found["logits"].values()} == {1.0}
    assert [layer["layer"] for layer in found["layers"]] == [
        "input", "stem.0", "inner.0", "back", "Add after back", "GlobalAveragePool after back", "head",
    ]  # fmt: skip
    assert {runtime: one["integer"] for runtime, one in found["coverage"].items()} == dict.fromkeys(RUNTIMES, 4)
    assert not found["missing"]


def test_the_reference_is_the_converted_torch_model(sound: tuple[onnx.ModelProto, nn.Module]) -> None:
    images = pictures()
    found = compare.compare_layers(sound[0], images, 1.5)
    with torch.no_grad():
        wanted = np.concatenate([sound[1](torch.from_numpy(image[None])).numpy() for image in images])
    assert np.abs(found.reference_logits - wanted).max() <= 1.01 * found.logit_step


@pytest.mark.parametrize("layer", ["inner.0", "head"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_layer_that_computes_something_else_is_named(
    sound: tuple[onnx.ModelProto, nn.Module], runtime: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    room: ModuleType = registry.load_module("runtimes", runtime)
    compiled = room.compile

    def compile_damaged(path: Path, folder: Path) -> object:
        onnx.save(damaged(onnx.load(path), layer), path)
        return compiled(path, folder)

    monkeypatch.setattr(room, "compile", compile_damaged)
    found = compare.compare_layers(sound[0], pictures(), 1.5).results
    own = {side.name for side in runtime_outputs.list_configs() if side.runtime == runtime}
    assert {side: parts and parts["layer"] for side, parts in found["parts"].items()} == {
        side: layer if side in own else None for side in SIDES
    }


def test_a_layer_in_float_is_told_from_one_that_fell_back(tmp_path: Path) -> None:
    model, _ = exported(tmp_path, "inner")
    found = compare.compare_layers(model, pictures(), 1.5).results
    for one in found["coverage"].values():
        assert (one["integer"], one["planned"], one["fell_back"], one["meant_as_float"]) == (3, 3, [], ["inner.0"])


def test_a_layer_that_falls_back_is_named(
    sound: tuple[onnx.ModelProto, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    room: ModuleType = registry.load_module("runtimes", RUNTIMES[0])
    honest = room.coverage

    def without_back(path: Path, **given: str) -> object:
        found = honest(path, **given)
        return type(found)(integer=found.integer - 1, planned=0, total=found.total, float_ops=("back",))

    monkeypatch.setattr(room, "coverage", without_back)
    found = compare.compare_layers(sound[0], pictures(), 1.5).results
    assert found["coverage"][RUNTIMES[0]]["fell_back"] == ["back"]


def test_a_result_whose_reading_changes_the_answers_is_not_believed(
    sound: tuple[onnx.ModelProto, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = runtime_outputs._outputs

    def disturbed(side: object, graph: object, wanted: Sequence, images: np.ndarray) -> object:
        given, covered = honest(side, graph, wanted, images)  # type: ignore[arg-type]
        if any(tap.layer == "back" for tap in wanted):
            given["logits"] = given["logits"] + 1
        return given, covered

    monkeypatch.setattr(runtime_outputs, "_outputs", disturbed)
    found = compare.compare_layers(sound[0], pictures(), 1.5).results
    assert all("back" in fused for fused in found["fused"].values())
    assert found["fused"][runtime_outputs.list_configs()[0].name] == ["back"]
    back = next(layer for layer in found["layers"] if layer["layer"] == "back")
    assert back["sides"] == dict.fromkeys(SIDES)
    assert set(found["parts"].values()) == {None}


def test_a_runtime_that_is_not_installed_is_a_column_without_figures(
    sound: tuple[onnx.ModelProto, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise ToolchainError("needs something, which is not installed; run: pip install it")

    monkeypatch.setattr(registry.load_module("runtimes", RUNTIMES[0]), "library", absent)
    found = compare.compare_layers(sound[0], pictures(), 1.5).results
    table = agreement.tabulate_layers({"name": "dense-int8", **found})
    gone = [1 + i for i, side in enumerate(runtime_outputs.list_configs()) if side.runtime == RUNTIMES[0]]
    assert {row[column] for row in table.rows for column in gone if row[column]} == {"not installed"}
    for name in RUNTIMES[1:]:
        monkeypatch.setattr(registry.load_module("runtimes", name), "library", absent)
    with pytest.raises(ToolchainError, match="nothing to compare with.*not installed"):
        compare.compare_layers(sound[0], pictures(), 1.5)


# --- on what a run leaves behind ----------------------------------------------------------------------------


def test_a_finished_run_can_be_compared(run: Run) -> None:
    ended = CliRunner().invoke(main.app, ["parity", str(run.folder), "--images", "4"])
    written = files.read_json(run.folder / compare.FILE_NAME)
    assert ended.exit_code == (0 if written["agree"] else 1), ended.output
    names = [one["name"] for one in written["variants"]]
    assert sorted(names) == ["dense-int8", "pruned-int8"]
    assert run.report["candidate"] in {names[0], "dense-fp32", "pruned-fp32"}
    assert {one["coverage"][run.target.runtime]["planned"] for one in written["variants"]} == {26}
    assert all(one["trained"]["top1_agreement"] == 1.0 for one in written["variants"] if one["shipped"])
    assert "Steps from torch" in ended.output


def test_different_answers_are_exit_status_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = runtime_outputs._outputs

    def mirrored(side: runtime_outputs.RuntimeConfig, *given: object) -> object:
        values, covered = honest(side, *given)  # type: ignore[arg-type]
        return ({"logits": -values["logits"], **{k: v for k, v in values.items() if k != "logits"}}, covered)

    monkeypatch.setattr(runtime_outputs, "_outputs", mirrored)
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
def test_what_is_not_there_is_said(run: Run, tmp_path: Path, change: object, message: str) -> None:
    folder = tmp_path / "tiny" / run.target.name
    shutil.copytree(run.folder, folder)
    shutil.copytree(run.out / "work" / "export", tmp_path / "work" / "export")
    change(folder)  # type: ignore[operator]
    with pytest.raises(ToolchainError, match=message):
        compare.compare_runtimes(folder)


def test_more_images_than_there_are_is_refused(run: Run) -> None:
    with pytest.raises(ToolchainError, match="the bundle has 16 golden inputs"):
        compare.compare_runtimes(run.folder, images=17)


def edit(folder: Path, **fields: object) -> None:
    files.write_json(folder / "report.json", {**files.read_json(folder / "report.json"), **fields})
