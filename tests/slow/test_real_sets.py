"""The real image sets and the real pretrained weights go through every stage; small sizes and few epochs, real everything."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from safetensors.torch import load_file

from toolchain.config import read_config
from toolchain.config.recipe import ModelSpec, PruneSpec
from toolchain.config.target import QuantScheme
from toolchain.core import registry
from toolchain.data import dataset_files
from toolchain.export import to_onnx
from toolchain.models import build
from toolchain.pruning import search_space, surgery
from toolchain.quantization import pt2e
from toolchain.quantization.placement import Placement

WEIGHTS = SHARED / "weights" / "mobilenet_v2_w035" / "mobilenet_v2_w035_imagenet.safetensors"


@pytest.mark.slow
def test_both_sets_are_read_as_they_are_described(sets: Path, tmp_path: Path) -> None:
    for name, folder, count, classes in (
        ("solar", "infrared_solar_modules", 20_000, 12),
        ("trashnet", "trashnet", 977, 6),
    ):
        domain = dataclasses.replace(read_config.read_domain(name), path=str(sets / folder))
        found = dataset_files.find_images(domain, tmp_path)
        assert sum(len(files) for files in found.files.values()) == count
        assert len(found.classes) == classes


@pytest.mark.slow
def test_a_photo_set_goes_from_checkpoint_to_classified_picture(sets: Path, tmp_path: Path) -> None:
    pictures = sets / "trashnet"
    command = [
        sys.executable, "-m", "toolchain", "export", "--target", "openvino", "--recipe", "trashnet", "--data", str(pictures),
        "--weights", str(WEIGHTS), "--image-size", "64x80", "--epochs", "2", "--out", str(tmp_path),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode in {0, 1}, ended.stderr  # two epochs may well miss the accuracy budget
    assert "100% of the backbone loaded" in ended.stdout
    written = tmp_path / "trashnet" / "openvino" / "report.json"
    assert written.exists()
    if ended.returncode == 0:
        photo = next((pictures / "test").rglob("*.jpg"))
        runner = written.parent / "bundle" / "run.py"
        said = subprocess.run([sys.executable, str(runner), str(photo)], capture_output=True, text=True, check=True)
        assert '"class"' in said.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
@pytest.mark.parametrize("runtime", registry.list_modules("runtimes"))
def test_torchvision_models_run_in_integers_after_pruning(name: str, runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build.build_untrained(ModelSpec(name=name), 10)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 64))
    model.eval()
    image = torch.zeros(1, 3, 64, 64)
    criterion = registry.load_module("criteria", "magnitude").score
    head = build.find_head(model, 10)
    planned = search_space.plan_for_ratio(
        model, image, head=head, spec=PruneSpec(ratio=0.3), alignment=16, criterion=criterion
    )
    small = surgery.apply(model, planned)
    graph, layers = pt2e.prepare(small, image, Placement(), QuantScheme())
    with torch.no_grad():
        graph(torch.randn(8, 3, 64, 64))
    pt2e.configure_fake_quantize(graph, ranges=False, rounding=True)
    to_onnx.export_file(pt2e.convert(graph, image), image, tmp_path / "model.onnx")
    room = registry.load_module("runtimes", runtime)
    made = room.compile(tmp_path / "model.onnx", tmp_path / "made")
    found = room.coverage(made.path, precision="int8")
    assert found.integer == len(layers), f"in float: {found.float_ops}"
    session = room.open(made.path, threads=1, precision="int8")
    x = torch.randn(8, 3, 64, 64)
    given = np.concatenate([session.run(x[i : i + 1].numpy()) for i in range(8)])
    wanted = graph(x).detach().numpy()
    assert np.corrcoef(given.ravel(), wanted.ravel())[0, 1] > 0.97


@pytest.mark.slow
def test_the_zoo_is_what_its_card_says() -> None:
    from toolchain.core import files

    for card in (registry.PACKAGE_FOLDER / "models" / "zoo").glob("*.json"):
        said = files.read_json(card)
        weights = card.with_suffix(".safetensors")
        assert files.sha256_file(weights) == said["sha256"]
        assert weights.stat().st_size == said["size_bytes"] <= 4_000_000
        recipe = read_config.read_recipe(said["recipe"])
        model = build.build_untrained(recipe.model, len(said["classes"]))
        model.load_state_dict(load_file(weights))
