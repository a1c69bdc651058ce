"""What [model] says of pixels: read in either range, and one message for what makes no sense."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from toolchain.config import overrides, read_config
from toolchain.config.recipe import ModelSpec
from toolchain.core.errors import ToolchainError


def recipe(tmp_path: Path, model: str, more: str = "") -> str:
    path = tmp_path / "mine.toml"
    path.write_text(f'domain = "digits"\n{more}\n[model]\nname = "resnet18"\n{model}\n')
    return str(path)


def test_values_in_0_to_255_are_read_as_0_to_1(tmp_path: Path) -> None:
    text = 'mean = [103.94, 116.78, 123.68]\nstd = [1, 1, 1]\npixel_values = "0..255"\norder = "bgr"\nresize = "crop"'
    model = read_config.read_recipe(recipe(tmp_path, text)).model
    assert model.mean == pytest.approx((103.94 / 255, 116.78 / 255, 123.68 / 255))
    assert model.std == (1 / 255,) * 3
    assert (model.pixel_values, model.order, model.resize, model.published) == ("0..1", "bgr", "crop", False)
    job = overrides.read_job(recipe(tmp_path, text), "cpu", overrides.Flags(seed=3), tmp_path)
    assert job.recipe.model == model  # flags leave it as it is


def test_a_recipe_that_gives_neither_mean_nor_std_leaves_them_open(tmp_path: Path) -> None:
    assert read_config.read_recipe(recipe(tmp_path, "")).model.published is None
    assert read_config.read_recipe(recipe(tmp_path, "mean = [0.485, 0.456, 0.406]")).model.published is False
    assert read_config.read_recipe(recipe(tmp_path, "published = true")).model.published is True
    for name in ("digits", "solar", "trashnet"):
        assert read_config.read_recipe(name).model.published is False
    assert read_config.read_recipe("image-folder").model.resize == "stretch"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("mean = [123.7, 116.8, 103.9]\nstd = [1, 1, 1]", 'model.pixel_values = "0..255"'),
        ("std = [58.4, 57.1, 57.4]", 'model.pixel_values = "0..255"'),
        ('pixel_values = "0..255"', "give both in 0..255, or leave pixel_values out"),
        ('pixel_values = "0..255"\nmean = [300, 1, 1]\nstd = [1, 1, 1]', "a mean is 0, or from 1 to 255"),
        ("std = [0, 1, 1]", "model.std = .*must be above 0"),
        ("std = [0.2, -0.2, 0.2]", "model.std = .*must be above 0"),
        ("mean = [nan, 0.4, 0.4]", "must be finite numbers"),
        ("mean = [0.5]", "need three numbers each"),
        ('order = "grb"', "model.order = 'grb': input should be 'rgb' or 'bgr'"),
        ('resize = "pad"', "model.resize = 'pad': input should be 'stretch', 'crop', 'letterbox' or 'weights'"),
        ("crop_share = 0.9", 'has no effect while model.resize = "stretch"; set that to "crop"'),
        ('resize = "crop"\ncrop_share = 1.2', "model.crop_share = 1.2: .* from 0.1 to 1"),
        ('resize = "crop"\ncrop_share = 0.0', "model.crop_share = 0.0: .* from 0.1 to 1"),
        ("fill = 3", 'model.fill = 3: has no effect while model.resize = "stretch"'),
        ('resize = "letterbox"\nfill = 256', "model.fill = 256: a grey level, or red, green and blue"),
        ('resize = "letterbox"\nfill = [1, 2, -3]', "each from 0 to 255"),
        ('resize = "letterbox"\nfill = [1, 2]', "model.fill"),
        ('interpolation = "lanczos"', "model.interpolation = 'lanczos'"),
        ('interpolation = "area"\nantialias = false', "model.antialias = false: has no meaning"),
    ],
    ids=lambda text: text.split(" =")[0] + str(len(text)),
)
def test_what_makes_no_sense_gets_one_message(model: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=said) as caught:
        read_config.read_recipe(recipe(tmp_path, model))
    assert "\n" not in str(caught.value)
    assert "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ('resize = "crop"', "teacher.resize = 'crop': a teacher looks at the images as"),
        ('interpolation = "bicubic"', "teacher.interpolation"),
        ("std = [0, 1, 1]", "teacher.std"),
    ],
)
def test_a_teacher_has_no_images_of_its_own(teacher: str, said: str, tmp_path: Path) -> None:
    text = f'\n[teacher]\nname = "resnet50"\n{teacher}\n[adapt]\ndistill = 0.5'
    with pytest.raises(ToolchainError, match=said):
        read_config.read_recipe(recipe(tmp_path, text))


def test_a_candidates_pixels_are_checked_and_read_alike(tmp_path: Path) -> None:
    def shortlist(model: str) -> Any:
        path = tmp_path / "few.toml"
        path.write_text(f'[[candidates]]\nname = "one"\nmodel = {{ name = "resnet18", {model} }}\n')
        return read_config.read_shortlist(str(path)).candidates[0].model

    read = shortlist('mean = [127.5, 127.5, 127.5], std = [127.5, 127.5, 127.5], pixel_values = "0..255"')
    assert (read.mean, read.std, read.published) == ((0.5,) * 3, (0.5,) * 3, False)
    with pytest.raises(ToolchainError, match="one: model.std"):
        shortlist("std = [0.0, 1.0, 1.0]")


def test_every_line_of_the_page_can_be_pasted(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "pixels.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| ")]
    second, pasted = rows.index("| weights from | write |"), 0
    for row in rows[second + 1 :]:
        settings = [text for text in re.findall("`([^`]+)`", row.rsplit("|", 2)[1]) if " = " in text]
        if settings:
            read_config.read_recipe(recipe(tmp_path, "\n".join(settings)))
            pasted += len(settings)
    assert pasted >= 15
    named = {name for row in rows[:second] for name in re.findall("`(\\w+)`", row.split("|")[1])}
    spec = {field.name for field in dataclasses.fields(ModelSpec)}
    assert {"mean", "std", "pixel_values", "order", "resize", "crop_share", "fill", "interpolation"} < named <= spec
