"""The linear probe: separates what is separable, becomes the head unchanged, and fine-tuning never ends below it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import job_of
from torch import nn

from toolchain.config.dataset import Domain
from toolchain.config.recipe import ModelSpec, Recipe, TrainSpec
from toolchain.core.types import Preprocessing
from toolchain.data import decoded_dataset
from toolchain.models import build, padding
from toolchain.training import finetune, linear_probe, loop

PREPROCESS = Preprocessing(image_size=(32, 32), mode="gray", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def own(domain: Domain, tmp_path: Path) -> decoded_dataset.Dataset:
    return decoded_dataset.load(domain, PREPROCESS, tmp_path / "cache")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d((8, 2)), nn.Flatten(), nn.Linear(256, 3)
    )


def test_a_probe_is_what_it_says_once_it_is_the_head(own: decoded_dataset.Dataset) -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("4.")}
    found = linear_probe.fit(model, "4", own)
    assert found.validation_score.accuracy > 0.9
    linear_probe.install(found, model, "4")
    scored = loop.evaluate(model, own.splits["val"], PREPROCESS)
    assert scored.accuracy == found.validation_score.accuracy
    assert scored.tie_break == pytest.approx(found.validation_score.tie_break, abs=1e-4)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_fine_tuning_that_spoils_it_keeps_the_probe(own: decoded_dataset.Dataset, tmp_path: Path) -> None:
    spoiling = TrainSpec(epochs=1, batch_size=8, learning_rate=5.0, schedule="constant", head_start="probe")
    recipe = Recipe(name="x", domain="tiny", model=ModelSpec(name="mobilenet_v3_small"), adapt=spoiling)
    found = finetune.run(job_of(dataclasses.replace(recipe), out=tmp_path / "work"), own)
    kept = found.trained.record
    assert kept["best_accuracy"] >= kept["probe"]["accuracy"]


def test_few_images_are_fine_tuned_with_care_and_many_are_not() -> None:
    asked = TrainSpec(epochs=5, learning_rate=1e-2, freeze_epochs=2)
    careful = finetune._careful(asked, per_class=10)
    assert (careful.head_start, careful.freeze_norm, careful.freeze_epochs) == ("probe", True, 0)
    assert careful.learning_rate == pytest.approx(1e-3)
    assert finetune._careful(asked, per_class=finetune.FEW_IMAGES_PER_CLASS) == asked
    assert finetune._careful(dataclasses.replace(asked, epochs=0), per_class=10).epochs == 0


def test_care_is_for_what_was_pretrained_and_rare_classes_are_said(
    own: decoded_dataset.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[TrainSpec] = []

    def note(recipe: Recipe, *_: object) -> None:
        asked.append(recipe.adapt)
        raise InterruptedError

    monkeypatch.setattr(finetune, "_repeated", note)
    monkeypatch.setattr(finetune, "FEW_IMAGES_PER_CLASS", 10_000)
    monkeypatch.setattr(finetune, "RARE_CLASS_IMAGES", 10_000)
    for weights in ("", "DEFAULT"):
        recipe = Recipe(name="x", domain="tiny", model=ModelSpec(name="resnet18", weights=weights))
        with pytest.raises(InterruptedError):
            finetune.run(job_of(recipe, out=tmp_path), own)
    assert [one.freeze_norm for one in asked] == [False, True]
    counts = own.splits["train"].labels.bincount().tolist()
    assert f"{own.classes[0]} {counts[0]} images" in capsys.readouterr().out


def test_mirrored_copies_join_the_images_with_their_labels(own: decoded_dataset.Dataset) -> None:
    images = own.splits["train"]
    grown = linear_probe._with_mirrored(images, [(2,), (1,), (1, 2)])
    assert len(grown) == 4 * len(images)
    assert torch.equal(grown.pixels[len(images)], images.pixels[0].flip(1))
    assert torch.equal(grown.pixels[3 * len(images)], images.pixels[0].flip((0, 1)))
    assert torch.equal(grown.labels[len(images) : 2 * len(images)], images.labels)
    assert linear_probe._with_mirrored(images, []) is images


def test_same_padding_sees_what_tensorflow_sees() -> None:
    """Of an even side the windows of a strided 3x3 convolution begin at 0, of an odd one at -1."""
    torch.manual_seed(0)
    given = nn.Conv2d(1, 1, 3, 2, 1)
    made = padding._padded(given)
    even, odd = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 9, 9)
    grown = nn.functional.pad(even, (0, 1, 0, 1))
    assert torch.allclose(made(even), nn.functional.conv2d(grown, given.weight, given.bias, 2))
    assert torch.allclose(made(odd), given(odd))
    assert not torch.allclose(made(even), given(even))


def test_a_teacher_is_shown_the_pixels_its_weights_expect() -> None:
    other = ModelSpec(name="x", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    seen = build.renormalize_input(nn.Identity(), PREPROCESS, other)(torch.zeros(1, 3, 2, 2))  # a pixel of 0.5
    wanted = [(0.5 - mean) / std for mean, std in zip(other.mean, other.std, strict=True)]
    assert seen[0, :, 0, 0].tolist() == pytest.approx(wanted)


def test_features_of_a_convolution_as_head_are_averaged_over_the_picture(own: decoded_dataset.Dataset) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, 2), nn.ReLU(), nn.Conv2d(5, 3, 1))
    assert linear_probe.extract_features(model, "2", own.splits["val"], PREPROCESS).shape == (15, 5)
