"""A whole job on a model that is only an ONNX file: bundle, report and what is refused."""

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import draw, tiny_recipe
from torch import nn

from toolchain import pipeline
from toolchain.config import overrides, read_config
from toolchain.config.dataset import Domain
from toolchain.config.job import Job, make_job
from toolchain.config.recipe import Budget
from toolchain.core.errors import ToolchainError
from toolchain.export import read_onnx
from toolchain.measure import latency, peak_throughput
from toolchain.report import terminal


def export_classifier(path: Path, classes: int = 3) -> Path:
    """A network that finds the bright row of each class, as plain `torch.onnx.export` writes it."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d((1, 32)),
        nn.Flatten(), nn.Linear(256, classes), nn.Softmax(1),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.eval(), (torch.randn(1, 3, 32, 32),), str(path), dynamo=False, input_names=["pixels"])
    return path


def job_for(model: Path, pictures: Path, out: Path, target: str = "cpu", **budget: object) -> Job:
    recipe = tiny_recipe()
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, name=str(model), weights=""))
    domain = Domain(name="tiny", path=str(pictures), mode="gray", image_size=(32, 32), calibration_images=16)
    chosen = dataclasses.replace(read_config.read_target(target), budget=Budget(accuracy_drop=0.5, **budget))
    return make_job(recipe, chosen, domain, out)


@pytest.mark.parametrize("target", ["cpu", "openvino"])
def test_an_onnx_file_becomes_a_bundle(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 2)
    monkeypatch.setattr(peak_throughput, "ROUNDS", 1)
    model = export_classifier(tmp_path / "net.onnx")
    job = job_for(model, draw(tmp_path / "pictures", {"ant": 40, "bee": 40, "cat": 40}), tmp_path / "out", target)
    report = pipeline.export(job)
    variants = {variant["name"]: variant for variant in report["variants"]}
    assert set(variants) >= {"dense-fp32", "dense-int8"}
    assert variants["dense-int8"]["parity"]["artefact"]["rms_steps"]["estimate"] < 2
    assert variants["dense-fp32"]["parity"]["artefact"]["rms_steps"]["estimate"] < 0.1
    assert variants["dense-int8"]["integer_coverage"]["planned"] == 3
    assert variants["dense-int8"]["macs"] == 32 * 32 * 8 * 27 + 32 * 32 * 8 * 72 + 256 * 3
    assert report["training"] == {"adapt": [], "quantize": []} and report["layers"] == []
    assert len(report["calibration"]["dense"]) == 5
    assert report["onnx_file"]["file"] == "net.onnx" and report["onnx_file"]["classes"] == 3
    terminal.print_report(report)
    shown = " ".join(capsys.readouterr().out.split())
    assert "is only an ONNX file: it was calibrated only" in shown and "--model net.py:build --weights net.pth" in shown
    assert "last operation is a Softmax" in shown and "predicts the same class as net.onnx" in shown
    assert "The ONNX file" in (job.folder / "report.md").read_text()
    bundle = job.folder / ("bundle" if report["shipped"] else "best")
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["provenance"]["weights"] == "net.onnx" and str(tmp_path) not in json.dumps(manifest)
    subprocess.run([sys.executable, "run.py", "--self-test"], cwd=bundle, check=True, capture_output=True)
    again = pipeline.export(job)
    assert again["variants"] == report["variants"], "the second run is read from the cache"


def test_the_number_of_classes_has_to_fit(tmp_path: Path) -> None:
    model = export_classifier(tmp_path / "net.onnx", classes=5)
    job = job_for(model, draw(tmp_path / "pictures", {"ant": 20, "bee": 20, "cat": 20}), tmp_path / "out")
    with pytest.raises(ToolchainError, match=r"5 outputs, and the dataset has 3 classes \(ant, bee, cat\).*labels"):
        pipeline.export(job)


def test_budgets_that_only_pruning_meets_are_refused(tmp_path: Path) -> None:
    job = job_for(export_classifier(tmp_path / "net.onnx"), tmp_path, tmp_path / "out", latency="0.5x")
    with pytest.raises(ToolchainError, match="budget.latency = '0.5x' is met by pruning"):
        pipeline.export(job)


def test_a_fixed_image_size_is_taken_from_the_file(tmp_path: Path) -> None:
    job = job_for(export_classifier(tmp_path / "net.onnx"), tmp_path, tmp_path / "out")
    other = dataclasses.replace(job, domain=dataclasses.replace(job.domain, image_size=(64, 64)))
    assert read_onnx.prepare_job(other).recipe.image_size == (32, 32)
    sized = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, image_size=(64, 64)))
    with pytest.raises(ToolchainError, match="takes images of 32x32, and the image size given is 64x64"):
        read_onnx.prepare_job(sized)


def test_an_onnx_file_cannot_be_fine_tuned(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="cannot be fine-tuned"):
        pipeline.adapt(job_for(tmp_path / "net.onnx", tmp_path, tmp_path / "out"))


def test_images_without_labels_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 2)
    monkeypatch.setattr(peak_throughput, "ROUNDS", 1)
    pictures = draw(tmp_path / "pictures", {"ant": 60})
    job = job_for(export_classifier(tmp_path / "net.onnx"), pictures, tmp_path / "out")
    domain = dataclasses.replace(job.domain, path="", unlabelled=str(pictures / "ant"))
    report = pipeline.export(dataclasses.replace(job, domain=domain))
    assert report["data"]["classes"] == ["class 0", "class 1", "class 2"]
    assert report["variants"][0]["accuracy"] == 1.0, "accuracy is agreement with the file itself"


def test_a_file_of_labels_gives_the_order_of_the_outputs(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\nant\nbee\n")
    flags = overrides.Flags(model="net.onnx", labels=str(labels), data=str(tmp_path))
    recipe, domain = overrides.read_recipe("image-folder", flags)
    assert domain.classes == ("cat", "ant", "bee") and recipe.adapt.epochs == 0


def test_the_name_of_a_file_takes_no_published_weights() -> None:
    recipe, _ = overrides.read_recipe("image-folder", overrides.Flags(model="net.onnx"))
    assert (recipe.model.name, recipe.model.weights) == ("net.onnx", "")


def test_other_weights_are_another_cache_entry(tmp_path: Path) -> None:
    model = export_classifier(tmp_path / "net.onnx")
    job = job_for(model, draw(tmp_path / "pictures", {"ant": 20, "bee": 20, "cat": 20}), tmp_path / "out")
    from toolchain.data import prepare

    job = read_onnx.prepare_job(job)
    data, _ = prepare.run(job)
    first = read_onnx.run(job, data).trained
    changed = onnx.load(model)
    array = onnx.numpy_helper.to_array(changed.graph.initializer[0])
    changed.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.ascontiguousarray(array * 2), changed.graph.initializer[0].name)
    )
    onnx.save(changed, model)
    assert read_onnx.run(job, data).trained.key != first.key
