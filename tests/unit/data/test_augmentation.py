"""Augmentation matches torchvision's arithmetic, and never changes what the kind of image forbids."""

import dataclasses
import importlib
import math
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from toolchain.config.dataset import ImageKind
from toolchain.config.recipe import AugmentSpec
from toolchain.core.errors import ToolchainError
from toolchain.data import augmentation
from toolchain.models.sources.torchvision_import import import_torchvision


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference() -> ModuleType:
    import_torchvision()  # lets the import below succeed
    return importlib.import_module("torchvision.transforms.v2.functional")


def images(count: int = 6, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, 20, 12, generator=generator(9)) * 255


def test_without_strength_nothing_changes() -> None:
    x = images()
    assert torch.equal(augmentation.transform(x, AugmentSpec(), generator()), x)
    for spec in (AugmentSpec(rotate_degrees=1e-6), AugmentSpec(crop=1e-9), AugmentSpec(saturation=1e-9)):
        torch.testing.assert_close(augmentation.transform(x, spec, generator()), x, atol=2e-2, rtol=0)


def test_flips_mirror_some_images_and_leave_others() -> None:
    x = images(40)
    for spec, dimension in ((AugmentSpec(horizontal_flip=True), 3), (AugmentSpec(vertical_flip=True), 2)):
        y = augmentation.transform(x, spec, generator())
        mirrored = sum(torch.equal(a, b.flip(dimension - 1)) for a, b in zip(x, y, strict=True))
        assert mirrored + sum(torch.equal(a, b) for a, b in zip(x, y, strict=True)) == 40
        assert 8 < mirrored < 32


def test_flips_by_resampling_are_flips_too() -> None:
    x = images(40)
    for name, dimension in (("horizontal_flip", 3), ("vertical_flip", 2)):
        y = augmentation.transform(x, AugmentSpec(rotate_degrees=1e-6, **{name: True}), generator())
        same, mirrored = (
            [torch.allclose(a, b, atol=0.05) for a, b in zip(other, y, strict=True)] for other in (x, x.flip(dimension))
        )
        assert sum(same) + sum(mirrored) == 40
        assert 8 < sum(mirrored) < 32


def test_a_crop_is_a_part_of_the_image() -> None:
    """The values of the image are its coordinates, so they tell which part was cropped."""
    across = torch.linspace(-1, 1, 65).expand(1, 1, 65, 65)
    x = torch.cat([across, across.transpose(2, 3)], 1).expand(200, -1, -1, -1)
    y = augmentation.transform(x, AugmentSpec(crop=0.5), generator())
    wide, high = (y[:, 0, 32].amax(1) - y[:, 0, 32].amin(1)) / 2, (y[:, 1, :, 32].amax(1) - y[:, 1, :, 32].amin(1)) / 2
    area = wide * high
    assert 0.44 < area.min() < 0.56  # at most half of the area is left out
    assert area.max() <= 1.001
    assert (wide / high).max() < 4 / 3 * 1.05
    assert y.abs().max() <= 1.001  # nothing from outside of the image
    assert y[:, 0, 32].mean(1).std() > 0.05  # not always the middle


def test_rotation_is_torchvisions() -> None:
    functional = reference()
    x = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 36, 36, generator=generator(1)) * 255, 5, 1, 2)
    spec = AugmentSpec(rotate_degrees=40)
    y = augmentation.transform(x, spec, generator(3))
    angle = math.degrees(float((torch.rand(1, generator=generator(3)) * 2 - 1) * math.radians(40)))
    expected = functional.rotate(
        x, angle, interpolation=importlib.import_module("torchvision.transforms").InterpolationMode.BILINEAR
    )
    middle = (slice(None), slice(None), slice(9, 27), slice(9, 27))
    torch.testing.assert_close(y[middle], expected[middle], atol=3.0, rtol=0)


def test_colour_goes_towards_and_away_from_gray_as_torchvision_does_it() -> None:
    functional = reference()
    x = images(1) * 0.5 + 60
    y = augmentation.transform(x, AugmentSpec(saturation=0.4), generator(5))
    draws = generator(5)
    torch.rand(2, generator=draws)  # those of brightness and contrast come first
    factor = 1 + float((torch.rand(1, generator=draws) * 2 - 1) * 0.4)
    expected = functional.adjust_saturation(x / 255, factor) * 255
    torch.testing.assert_close(y, expected, atol=0.5, rtol=0)
    gray = images(4, 1)
    assert torch.equal(augmentation.transform(gray, AugmentSpec(saturation=0.4), generator()), gray)


def test_changes_of_light_stay_within_0_to_255() -> None:
    x = images(50)
    y = augmentation.transform(x, AugmentSpec(brightness=0.5), generator())
    assert 0 <= y.min() <= y.max() <= 255
    means = y.mean((1, 2, 3)) / x.mean((1, 2, 3))
    assert means.min() < 0.9 < 1.1 < means.max()


def test_erasing_blanks_one_rectangle_in_the_given_share_of_images() -> None:
    x = images(400, 1)
    y = augmentation.transform(x, AugmentSpec(erase=0.5), generator())
    changed = (y != x).flatten(1).float().mean(1)
    assert 150 < int((changed > 0).sum()) < 250
    assert changed[changed > 0].mean() == pytest.approx(0.11, abs=0.03)
    assert changed.max() < 0.3


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_blends_labels_as_it_blends_pixels(name: str) -> None:
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(-1, 1, 30, 30).contiguous()
    labels = torch.eye(4)
    for seed in range(20):
        y, expected = augmentation.mix(x, labels, AugmentSpec(**{name: 1.0}), generator(seed))
        assert torch.allclose(expected.sum(1), torch.ones(4))
        mean = y.mean((1, 2, 3))
        assert torch.allclose(mean, expected @ torch.arange(4.0), atol=1e-4)  # pixels and labels in the same shares


def test_beta_draws_have_the_distributions_moments() -> None:
    draws = generator()
    for alpha in (0.2, 1.0):
        drawn = np.array([augmentation._beta(alpha, draws) for _ in range(4000)])
        assert drawn.mean() == pytest.approx(0.5, abs=0.03)
        assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)


def test_thermal_images_get_no_change_of_light() -> None:
    resolved = augmentation.resolve(AugmentSpec(auto=True), "thermal", 50)
    assert resolved.brightness == resolved.saturation == 0
    assert resolved.horizontal_flip
    with pytest.raises(ToolchainError, match="augment.brightness = 0.1 does not suit thermal.*temperature"):
        augmentation.resolve(AugmentSpec(brightness=0.1), "thermal", 50)
    with pytest.raises(ToolchainError, match="horizontal_flip"):
        augmentation.resolve(AugmentSpec(horizontal_flip=True), "text", 50)


def test_few_images_are_augmented_more_and_the_recipe_wins() -> None:
    few, many = (augmentation.resolve(AugmentSpec(auto=True), "photo", count) for count in (20, 20_000))
    assert few.crop > many.crop > 0
    assert augmentation.resolve(AugmentSpec(auto=True, crop=0.9), "photo", 20).crop == 0.9
    off = augmentation.resolve(AugmentSpec(auto=True, horizontal_flip=False, mixup=0.0), "photo", 20)
    assert (off.horizontal_flip, off.mixup) == (False, 0.0)
    assert off.crop == few.crop
    assert augmentation.resolve(AugmentSpec(crop=0.1), "photo", 20) == dataclasses.replace(
        augmentation.NO_AUGMENTATION, crop=0.1
    )


@pytest.mark.parametrize("kind", sorted(augmentation.AUTO_BY_KIND))
def test_automatic_augmentation_is_never_forbidden(kind: ImageKind) -> None:
    resolved = dataclasses.replace(augmentation.resolve(AugmentSpec(auto=True), kind, 10), auto=False)
    assert augmentation.resolve(resolved, kind, 10) == resolved
