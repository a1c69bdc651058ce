"""Published weights bring their mean, std and interpolation; and, when asked, how their images were resized."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from conftest import draw, job_of, tiny_recipe
from test_build import fake_timm
from torch import nn

from toolchain.config.dataset import Domain
from toolchain.config.recipe import ModelSpec
from toolchain.core import progress
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data import decoded_dataset, loader
from toolchain.models import build, published_pixels
from toolchain.selection import candidates, select_model


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(progress, "log", lines.append)
    return lines


def test_weights_whose_pixels_are_ours_change_nothing(logged: list[str]) -> None:
    spec = ModelSpec(name="mobilenet_v2", weights="DEFAULT")
    assert published_pixels.resolve_model(spec) == spec  # stretched, as it always was
    for weights in ("", "zoo:squeezenet1_1_glyphs", "mine.pth", "folder/mine"):
        other = dataclasses.replace(spec, weights=weights)
        assert published_pixels.resolve_model(other) == other
    assert published_pixels.resolve_model(ModelSpec(name="net.py:build", weights="DEFAULT")).resize == "stretch"
    assert logged == []


def test_mean_std_and_interpolation_are_taken_where_none_are_given(logged: list[str]) -> None:
    large = ModelSpec(name="efficientnet_v2_l", weights="DEFAULT")
    taken = published_pixels.resolve_model(large)
    assert (taken.mean, taken.std, taken.interpolation, taken.resize) == ((0.5,) * 3, (0.5,) * 3, "bicubic", "stretch")
    assert logged == [
        "pixels: as published with torchvision efficientnet_v2_l DEFAULT: mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5; interpolation "
        'bicubic; images resized as the recipe says (stretch), not with resize 480, crop 480: resize = "weights"'
    ]
    given = dataclasses.replace(large, published=False)
    assert published_pixels.resolve_model(given) == given
    own = published_pixels.resolve_model(dataclasses.replace(large, interpolation="bilinear"))
    assert (own.mean, own.interpolation) == ((0.5,) * 3, "bilinear")


def test_resizing_is_taken_only_when_asked(logged: list[str]) -> None:
    spec = ModelSpec(name="mobilenet_v2", weights="IMAGENET1K_V1", resize="weights")
    taken = published_pixels.resolve_model(spec)
    assert (taken.resize, taken.crop_share, taken.interpolation) == ("crop", 224 / 256, None)
    assert logged == [
        "pixels: as published with torchvision mobilenet_v2 IMAGENET1K_V1: images resized with resize 256, crop 224"
    ]
    second = published_pixels.resolve_model(dataclasses.replace(spec, weights="IMAGENET1K_V2"))
    assert second.crop_share == 224 / 232
    for weights, said in (("mine.pth", "is a file, which says nothing of pixels"), ("", "there are no weights")):
        with pytest.raises(ToolchainError, match=f'model.resize = "weights": .*{said}; name the way'):
            published_pixels.resolve_model(dataclasses.replace(spec, weights=weights))


def test_timm_says_the_same_in_its_own_words(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    spec = ModelSpec(name="timm:tiny_net", weights="DEFAULT")
    taken = published_pixels.resolve_model(spec)
    assert (taken.mean, taken.std, taken.interpolation, taken.resize) == ((0.4,) * 3, (0.3,) * 3, "bicubic", "stretch")
    taken = published_pixels.resolve_model(dataclasses.replace(spec, resize="weights"))
    assert (taken.resize, taken.crop_share) == ("crop", 0.9)
    found = candidates.resolve(["timm:tiny_net"])[0].model
    assert (found.mean, found.interpolation) == ((0.4,) * 3, "bicubic")
    monkeypatch.setitem(sys.modules, "timm", fake_timm(crop_mode="squash", crop_pct=1.0))
    assert published_pixels.resolve_model(dataclasses.replace(spec, resize="weights")).resize == "stretch"
    monkeypatch.setitem(sys.modules, "timm", fake_timm(crop_mode="border"))
    with pytest.raises(ToolchainError, match="crop_pct 0.9, crop_mode border, which is not known here; name the way"):
        published_pixels.resolve_model(dataclasses.replace(spec, resize="weights"))


def test_a_teacher_brings_its_mean_and_keeps_the_students_images(tmp_path: Path) -> None:
    teacher = ModelSpec(name="efficientnet_v2_l", weights="DEFAULT")
    job = job_of(dataclasses.replace(tiny_recipe(), teacher=teacher), out=tmp_path)
    resolved = published_pixels.resolve(job).recipe
    assert resolved.model == job.recipe.model
    assert resolved.teacher == dataclasses.replace(teacher, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("orders", [("rgb", "bgr"), ("bgr", "rgb"), ("bgr", "bgr")], ids="-".join)
def test_a_teacher_of_another_order_sees_its_own(orders: tuple[str, str]) -> None:
    student = Preprocessing(image_size=(2, 2), mode="rgb", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), order=orders[0])  # type: ignore[arg-type]
    teacher = ModelSpec(name="t", mean=(0.3, 0.5, 0.7), std=(0.2, 0.3, 0.4), order=orders[1])  # type: ignore[arg-type]
    red_first = torch.randint(0, 256, (5, 2, 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def shown(order: str) -> torch.Tensor:
        return red_first if order == "rgb" else red_first.flip(3)

    hooked = build.renormalize_input(nn.Identity(), student, teacher)
    given = hooked(loader.normalise(shown(orders[0]), student))
    wanted = loader.normalise(shown(orders[1]), dataclasses.replace(student, mean=teacher.mean, std=teacher.std))
    assert torch.allclose(given, wanted, atol=1e-5)


def test_a_candidate_is_scored_on_the_images_that_it_expects(tmp_path: Path) -> None:
    domain = Domain(name="d", path=str(draw(tmp_path / "p", {"ant": 8, "bee": 8}, size=(12, 30))), image_size=(32, 32))
    plain = Preprocessing(image_size=(32, 32), mode="rgb", mean=(0.5,) * 3, std=(0.5,) * 3)
    data = decoded_dataset.load(domain, plain, tmp_path / "data")
    spec = ModelSpec(name="squeezenet1_1", mean=(0.1,) * 3)
    assert select_model._decode_for(spec, data, tmp_path / "data") is data
    boxed = select_model._decode_for(dataclasses.replace(spec, resize="letterbox"), data, tmp_path / "data")
    assert (boxed.splits["val"].pixels[:, 0] == 114).all()
    assert boxed.digest != data.digest
