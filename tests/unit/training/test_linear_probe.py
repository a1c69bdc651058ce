"""The linear probe: it separates separable classes, is installed as the head unchanged, and bounds fine-tuning from below."""

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
from toolchain.training import few_images, finetune, linear_probe, loop

PREPROCESS = Preprocessing(image_size=(32, 32), mode="gray", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def dataset(domain: Domain, tmp_path: Path) -> decoded_dataset.Dataset:
    return decoded_dataset.load(domain, PREPROCESS, tmp_path / "cache")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d((8, 2)), nn.Flatten(), nn.Linear(256, 3)
    )


def test_a_probe_scores_the_same_once_it_is_the_head(dataset: decoded_dataset.Dataset) -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("4.")}
    probe = linear_probe.fit(model, "4", dataset)
    assert probe.validation_score.accuracy > 0.9
    linear_probe.install(probe, model, "4")
    scored = loop.evaluate(model, dataset.splits["val"], PREPROCESS)
    assert scored.accuracy == probe.validation_score.accuracy
    assert scored.tie_break == pytest.approx(probe.validation_score.tie_break, abs=1e-4)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_fine_tuning_that_spoils_it_keeps_the_probe(dataset: decoded_dataset.Dataset, tmp_path: Path) -> None:
    spoiling = TrainSpec(epochs=1, batch_size=8, learning_rate=5.0, schedule="constant", head_start="probe")
    recipe = Recipe(name="x", domain="tiny", model=ModelSpec(name="mobilenet_v3_small"), adapt=spoiling)
    finetuned = finetune.run(job_of(dataclasses.replace(recipe), out=tmp_path / "work"), dataset)
    record = finetuned.trained.record
    assert record["best_accuracy"] >= record["probe"]["accuracy"]


def test_few_images_per_class_are_fine_tuned_cautiously_and_many_are_not() -> None:
    spec = TrainSpec(epochs=5, learning_rate=1e-2, freeze_epochs=2)
    cautious = few_images.protect_pretraining(spec, images_per_class=10)
    assert (cautious.head_start, cautious.freeze_norm, cautious.freeze_epochs) == ("probe", True, 0)
    assert cautious.learning_rate == pytest.approx(1e-3)
    assert few_images.protect_pretraining(spec, few_images.FEW_IMAGES_PER_CLASS) == spec
    assert few_images.protect_pretraining(dataclasses.replace(spec, epochs=0), 10).epochs == 0


def test_only_pretrained_weights_are_protected_and_rare_classes_are_logged(
    dataset: decoded_dataset.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    specs: list[TrainSpec] = []

    def record_spec(recipe: Recipe, *_: object) -> None:
        specs.append(recipe.adapt)
        raise InterruptedError

    monkeypatch.setattr(finetune, "_train_every_seed", record_spec)
    monkeypatch.setattr(few_images, "FEW_IMAGES_PER_CLASS", 10_000)
    monkeypatch.setattr(few_images, "RARE_CLASS_IMAGES", 10_000)
    for weights in ("", "DEFAULT"):
        recipe = Recipe(name="x", domain="tiny", model=ModelSpec(name="resnet18", weights=weights))
        with pytest.raises(InterruptedError):
            finetune.run(job_of(recipe, out=tmp_path), dataset)
    assert [spec.freeze_norm for spec in specs] == [False, True]
    counts = dataset.splits["train"].labels.bincount().tolist()
    assert f"{dataset.classes[0]} ({counts[0]})" in capsys.readouterr().out


def test_mirrored_copies_join_the_images_with_their_labels(dataset: decoded_dataset.Dataset) -> None:
    images = dataset.splits["train"]
    grown = linear_probe._add_mirrored(images, [(2,), (1,), (1, 2)])
    assert len(grown) == 4 * len(images)
    assert torch.equal(grown.pixels[len(images)], images.pixels[0].flip(1))
    assert torch.equal(grown.pixels[3 * len(images)], images.pixels[0].flip((0, 1)))
    assert torch.equal(grown.labels[len(images) : 2 * len(images)], images.labels)
    assert linear_probe._add_mirrored(images, []) is images


def test_same_padding_matches_tensorflow() -> None:
    """On an even side the windows of a strided 3x3 convolution begin at 0, on an odd side at -1."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 1, 3, 2, 1)
    same = padding.pad_like_tensorflow(conv)
    even, odd = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 9, 9)
    padded = nn.functional.pad(even, (0, 1, 0, 1))
    assert torch.allclose(same(even), nn.functional.conv2d(padded, conv.weight, conv.bias, 2))
    assert torch.allclose(same(odd), conv(odd))
    assert not torch.allclose(same(even), conv(even))


def test_a_teacher_gets_the_normalization_its_weights_expect() -> None:
    teacher = ModelSpec(name="x", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    seen = build.renormalize_input(nn.Identity(), PREPROCESS, teacher)(torch.zeros(1, 3, 2, 2))  # a pixel of 0.5
    expected = [(0.5 - mean) / std for mean, std in zip(teacher.mean, teacher.std, strict=True)]
    assert seen[0, :, 0, 0].tolist() == pytest.approx(expected)


def test_features_of_a_convolution_as_head_are_averaged_over_the_image(dataset: decoded_dataset.Dataset) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, 2), nn.ReLU(), nn.Conv2d(5, 3, 1))
    assert linear_probe.extract_features(model, "2", dataset.splits["val"], PREPROCESS).shape == (15, 5)
