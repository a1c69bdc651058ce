"""The distance of a domain from a model's training data: near and far are told apart, and references come with it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from safetensors.torch import save_file
from torch import nn

from toolchain.config.dataset import Domain
from toolchain.config.recipe import ModelSpec
from toolchain.core.errors import ToolchainError
from toolchain.data.checks import run_checks
from toolchain.models import build, domain_classifier, domain_shift
from toolchain.report.pages import data_checks


def test_features_that_agree_are_near_and_others_far() -> None:
    random = torch.Generator().manual_seed(0)
    first, same, other = (torch.randn(120, 16, generator=random) for _ in range(3))
    assert domain_classifier.proxy_a_distance(first, same) < 0.5
    assert domain_classifier.proxy_a_distance(first, other + 3) > 1.9
    assert domain_shift.CalibratedDistance(value=0.1, lowest=0.0, highest=2.0).verdict == "near"
    assert domain_shift.CalibratedDistance(value=1.9, lowest=0.0, highest=2.0).verdict == "far"


def test_statistics_are_measured_in_the_sources_own_deviations() -> None:
    norm = nn.BatchNorm2d(2)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(torch.tensor([1.0, 0.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.0]))  # the second channel was never active
    x = torch.randn(64, 2, 9, 9, generator=torch.Generator().manual_seed(0)) * 2 + 5
    sums: dict[str, list[torch.Tensor]] = {}
    for batch in (x[:20], x[20:]):
        domain_shift._add_sums(sums, "norm", norm, (batch,))
    shift = domain_shift._measure_layer("norm", norm, sums["norm"])
    assert shift is not None
    assert shift.mean == pytest.approx(2.0, abs=0.1)  # (5 - 1) / 2
    assert shift.spread == pytest.approx(0.0, abs=0.1)


def test_a_distance_comes_with_its_references(tmp_path: Path) -> None:
    spec = ModelSpec(name="squeezenet1_1", weights="zoo:squeezenet1_1_glyphs", mean=(0.5,) * 3, std=(0.5,) * 3)
    domains = [
        Domain(name=name, path=str(draw(tmp_path / name, counts, seed=seed)), mode="gray", image_size=(32, 32))
        for seed, (name, counts) in enumerate([("here", {"ant": 40, "bee": 40}), ("there", {"cat": 60, "ant": 40})])
    ]
    measured = domain_shift.measure(domains[0], spec, (32, 32), tmp_path, domains[1])
    assert measured.statistics is None  # a SqueezeNet has no batch norm
    assert measured.features is not None
    assert measured.features.lowest <= measured.features.value <= 2
    assert "proxy A-distance" in measured.text
    result = run_checks.check_dataset(domains[0], tmp_path)
    assert "Distance from the data that the model knows" in data_checks.render_html(result, measured)
    with pytest.raises(ToolchainError, match="no pretrained weights"):
        domain_shift.measure(domains[0], dataclasses.replace(spec, weights=""), (32, 32), tmp_path, None)


def test_batch_norm_tells_the_distance_without_a_source(tmp_path: Path) -> None:
    model = build.build_untrained(ModelSpec(name="resnet18"), 2)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    folder = draw(tmp_path / "here", {"ant": 30, "bee": 30})
    domain = Domain(name="here", path=str(folder), mode="gray", image_size=(32, 32))
    spec = ModelSpec(name="resnet18", weights=str(tmp_path / "weights.safetensors"))
    measured = domain_shift.measure(domain, spec, (32, 32), tmp_path, None)
    assert measured.features is None
    assert measured.statistics is not None
    assert len(measured.layers) == 20
    assert measured.statistics.value == pytest.approx(np.mean([layer.mean for layer in measured.layers]))
    assert "running means" in measured.text
