"""Networks of a user's own file, from a nested checkpoint to a bundle that passes its self-test."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import own_models
import pytest
from conftest import draw, tiny_recipe

from toolchain import pipeline
from toolchain.config import read_config
from toolchain.config.dataset import Domain
from toolchain.config.job import make_job
from toolchain.config.recipe import Budget, ModelSpec, PruneSpec, TrainSpec
from toolchain.measure import latency, peak_throughput


@pytest.fixture(autouse=True)
def _own_imports(tmp_path: Path) -> Iterator[None]:
    with own_models.forget_imports(tmp_path):
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "target", "pruned"),
    [
        ("residual", "cpu", True),
        ("depthwise", "openvino", True),
        ("gated", "openvino", True),
        ("branches", "cpu", True),
        ("untraceable", "cpu", False),
    ],
)
def test_a_network_of_the_user_s_ships(
    function: str, target: str, pruned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 3)
    monkeypatch.setattr(peak_throughput, "ROUNDS", 1)
    net = own_models.write(tmp_path / "mine")
    weights = own_models.save_checkpoint(net, function, tmp_path / "mine" / "net.pth")
    head = {"head": "keep"} if function == "branches" else {}
    images = draw(tmp_path / "pictures", {f"class {number}": 12 for number in range(10 if head else 3)}, size=(32, 32))
    recipe = dataclasses.replace(
        tiny_recipe(), budget=Budget(accuracy_drop=1.0), prune=PruneSpec(ratio=0.2, criterion="magnitude", sensitivity=False),
        model=ModelSpec(name=f"{net}:{function}", weights=str(weights), mean=(0.5,) * 3, std=(0.5,) * 3, **head),  # type: ignore[arg-type]
        adapt=TrainSpec(epochs=0 if head else 6, batch_size=8), recover=TrainSpec(epochs=1, batch_size=16, learning_rate=1e-4, distill=0.5),
    )  # fmt: skip
    domain = Domain(name="tiny", path=str(images), mode="gray", image_size=(32, 32), calibration_images=16)
    report = pipeline.export(make_job(recipe, read_config.read_target(target), domain, tmp_path / "out"))
    assert report["shipped"]
    assert any(row["name"].startswith("pruned") for row in report["variants"]) == pruned
    assert any(row["name"].endswith("int8") for row in report["variants"])
    bundle = tmp_path / "out" / "tiny" / target / "bundle"
    ended = subprocess.run(
        [sys.executable, bundle / "run.py", "--self-test"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
