"""An image as the weights expect it, against Pillow, torchvision and torch; and a manifest that no old program misreads."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional

from toolchain.config.dataset import Domain
from toolchain.config.recipe import AugmentSpec, ModelSpec
from toolchain.core.types import Preprocessing
from toolchain.data import decoded_dataset, loader, prepare
from toolchain.edge import manifest, pixels, run, served_pixels, watch
from toolchain.measure import accuracy
from toolchain.models.sources.torchvision_import import import_torchvision

PLAIN = Preprocessing(image_size=(48, 48), mode="rgb", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.5))
SHAPES = [(48, 48), (31, 90), (90, 31), (200, 133), (17, 19), (1, 40), (65, 48)]
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "area": Image.Resampling.BOX
}  # fmt: skip
SETTINGS = [
    {"fit": "crop", "crop_share": 0.9}, {"fit": "letterbox"}, {"fit": "letterbox", "fill": (1, 2, 3)}, {"order": "bgr"},
    {"interpolation": "bicubic"}, {"interpolation": "area"}, {"antialias": False},
]  # fmt: skip


def picture(shape: tuple[int, ...]) -> np.ndarray:
    """Soft shapes and hard edges."""
    random = np.random.default_rng(sum(shape))
    small = random.integers(0, 256, (max(2, shape[0] // 6), max(2, shape[1] // 6), 3), dtype=np.uint8)
    image = np.array(Image.fromarray(small).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    image[: shape[0] // 3, : shape[1] // 3] = random.integers(0, 256, 3)
    return image


def seen(**settings: Any) -> Preprocessing:
    return dataclasses.replace(PLAIN, **settings)


def off(first: np.ndarray, second: np.ndarray) -> int:
    """Largest difference in grey levels."""
    assert first.shape == second.shape
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("side", "whole"), [(224, 256), (224, 232), (40, 48), (48, 48)])
def test_a_crop_is_that_of_torchvision(side: int, whole: int, shape: tuple[int, int], interpolation: str) -> None:
    torchvision_transforms = import_torchvision().transforms.functional
    image = picture(shape)
    mode = import_torchvision().transforms.InterpolationMode({"area": "box"}.get(interpolation, interpolation))
    larger = torchvision_transforms.resize(Image.fromarray(image), whole, mode)
    wanted = np.asarray(torchvision_transforms.center_crop(larger, [side, side]))
    sees = seen(image_size=(side, side), fit="crop", crop_share=side / whole, interpolation=interpolation)
    assert off(served_pixels.fit(image, sees), wanted) <= 1


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [(48, 48), (32, 64)], ids=str)
def test_a_letterbox_is_that_of_pillow(size: tuple[int, int], shape: tuple[int, int], interpolation: str) -> None:
    image = picture(shape)
    resized, _, corner = pixels.plan(shape, size, "letterbox", 1.0)
    inner = Image.fromarray(image).resize((resized[1], resized[0]), FILTERS[interpolation])
    wanted = Image.new("RGB", (size[1], size[0]), (9, 80, 250))
    wanted.paste(inner, (corner[1], corner[0]))
    sees = seen(image_size=size, fit="letterbox", fill=(9, 80, 250), interpolation=interpolation)
    assert off(served_pixels.fit(image, sees), np.asarray(wanted)) <= 1
    contained = ImageOps.contain(Image.fromarray(image), (size[1], size[0])).size  # its own arithmetic
    assert max(abs(resized[1] - contained[0]), abs(resized[0] - contained[1])) <= 1
    assert 0 <= size[0] - resized[0] - 2 * corner[0] <= 1  # in the middle
    assert 0 <= size[1] - resized[1] - 2 * corner[1] <= 1


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stretching_is_that_of_pillow(shape: tuple[int, int], interpolation: str) -> None:
    image = picture(shape)
    wanted = np.asarray(Image.fromarray(image).resize((48, 48), FILTERS[interpolation]))
    assert off(served_pixels.fit(image, seen(interpolation=interpolation)), wanted) <= 1
    gray = image[..., 0]
    wanted = np.asarray(Image.fromarray(gray).resize((48, 48), FILTERS[interpolation]))
    assert off(served_pixels.fit(gray, seen(interpolation=interpolation, mode="gray")), wanted) <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_antialiasing_pixels_are_those_of_torch(shape: tuple[int, int], interpolation: str) -> None:
    image = picture(shape)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    exact = functional.interpolate(planes, (48, 48), mode=interpolation, align_corners=False, antialias=False)[0]
    wanted = exact.round().clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)
    fitted = served_pixels.fit(image, seen(interpolation=interpolation, antialias=False))
    # between the two passes pixels are whole and within 0..255, as Pillow's are: bicubic swings beyond that at hard edges
    assert off(fitted, wanted) <= (1 if interpolation == "bilinear" else 3)
    assert np.mean(np.abs(fitted.astype(int) - wanted) > 1) < 0.01


def test_blue_comes_first_and_is_normalised_by_the_first_mean(tmp_path: Path) -> None:
    image = picture((60, 52))
    Image.fromarray(image).save(tmp_path / "i.png")
    sees = seen(order="bgr", mean=(103.9 / 255, 116.8 / 255, 123.7 / 255), std=(1 / 255,) * 3)  # as Caffe's networks
    given = run.prepare(tmp_path / "i.png", served_pixels.describe(sees))[0]
    stretched = np.asarray(run.fit_size(image, (48, 48)), np.float64)
    assert np.abs(given[0] - (stretched[..., 2] - 103.9)).max() < 0.01
    assert np.abs(given[2] - (stretched[..., 0] - 123.7)).max() < 0.01
    assert np.array_equal(watch.denormalise(given[None], sees.mean, sees.std, "rgb"), served_pixels.fit(image, sees))


def test_an_image_one_pixel_high_fits_or_is_refused_with_one_message(tmp_path: Path) -> None:
    line = np.arange(3000, dtype=np.uint8)[None, :, None].repeat(3, 2)
    shown = served_pixels.fit(line, seen(fit="letterbox"))
    assert (shown != 114).any(axis=(1, 2)).sum() == 1  # one row of it, between bars
    assert served_pixels.fit(line, seen(fit="crop", crop_share=0.5)).shape == (48, 48, 3)
    np.save(tmp_path / "tall.npy", np.zeros((60_000, 1, 3), np.uint8))
    described = served_pixels.describe(seen(fit="crop", crop_share=0.1, image_size=(224, 224)))
    with pytest.raises(run.Refused, match=r"tall\.npy: 1x60000 pixels \(width x height\) are too narrow to fit"):
        run.prepare(tmp_path / "tall.npy", described)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fit": "tile"}, "preprocess.fit = 'tile' in the manifest; this version knows stretch, crop, letterbox"),
        ({"order": "yuv"}, "preprocess.order = 'yuv'"),
        ({"gamma": 2.2}, "preprocess has gamma, which this version does not know"),
        ({"fit": "crop", "crop_share": 0}, "accepted are above 0 to 1"),
        ({"interpolation": "area", "antialias": False}, "antialias = false has no meaning"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_runner_does_not_know_it_refuses(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(run.Refused, match=said):
        run.fit(picture((9, 9)), {**served_pixels.describe(PLAIN), **settings})


def test_a_manifest_names_only_what_is_no_default() -> None:
    assert served_pixels.describe(PLAIN).keys() == {"image_size", "mode", "mean", "std"}
    assert served_pixels.describe_resizing(PLAIN) == "stretch, bilinear with antialiasing"
    assert served_pixels.is_stretched(PLAIN)
    for settings in SETTINGS:
        described = served_pixels.describe(seen(**settings))
        assert {key: described[key] for key in settings} == json.loads(json.dumps(settings))
        assert not served_pixels.is_stretched(seen(**settings))
    assert manifest.PLAIN_SCHEMA == 1 < manifest.SCHEMA
    assert set(pixels.DEFAULTS) == {field.name for field in dataclasses.fields(Preprocessing)} - set(
        served_pixels.describe(PLAIN)
    )
    assert all(getattr(PLAIN, name) == default for name, default in pixels.DEFAULTS.items())
    assert pixels.PLAIN_KEYS == run.STRETCHED


def test_every_setting_has_pixels_and_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture((40, 90))
    keys = {decoded_dataset.pixel_cache_key("files", seen(**settings), "fail") for settings in [{}, *SETTINGS]}
    assert len(keys) == 1 + len(SETTINGS)
    made = {served_pixels.fit(image, seen(**settings)).tobytes() for settings in [{}, *SETTINGS]}
    assert len(made) == 1 + len(SETTINGS)
    normalised = decoded_dataset.pixel_cache_key("files", seen(order="bgr", mean=(0.0,) * 3), "fail")
    assert normalised in keys  # mean and std decide nothing that is cached
    monkeypatch.setattr(served_pixels, "list_sources", lambda _: ("another version",))
    changed = {decoded_dataset.pixel_cache_key("files", seen(**settings), "fail") for settings in [{}, *SETTINGS]}
    assert len(changed & keys) == 1  # that of plain stretching, which pixels.py does not make


def test_a_recipe_becomes_a_preprocessing() -> None:
    plain = prepare.describe_pixels(ModelSpec(name="n"), (48, 40), "rgb")
    assert served_pixels.is_stretched(plain)
    cropped = prepare.describe_pixels(ModelSpec(name="n", resize="crop", order="bgr"), (48, 40), "rgb")
    assert (cropped.fit, cropped.crop_share, cropped.order) == ("crop", 0.875, "bgr")
    boxed = prepare.describe_pixels(ModelSpec(name="n", resize="letterbox", fill=7, order="bgr"), (48, 40), "gray")
    assert (boxed.fit, boxed.fill, boxed.order) == ("letterbox", (7, 7, 7), "rgb")  # gray has no order


def test_pixels_py_needs_nothing_of_the_toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (run, pixels):
        shutil.copyfile(str(module.__file__), tmp_path / Path(str(module.__file__)).name)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "run", raising=False)
    alone = __import__("run")
    assert Path(alone.__file__).parent == tmp_path
    described = served_pixels.describe(seen(fit="letterbox", order="bgr"))
    image = picture((40, 90))
    assert np.array_equal(alone.fit(image, described), served_pixels.fit(image, seen(fit="letterbox", order="bgr")))
    monkeypatch.delitem(sys.modules, "run")


def test_training_and_verification_see_the_same_pixels(tmp_path: Path) -> None:
    for number, (name, shape) in enumerate((name, shape) for name in ("ant", "bee") for shape in SHAPES * 2):
        (tmp_path / "p" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(shape)).save(tmp_path / "p" / name / f"{number}.png")
    domain = Domain(name="d", path=str(tmp_path / "p"), image_size=(48, 48))
    sees = seen(fit="letterbox", order="bgr")
    data = decoded_dataset.load(domain, sees, tmp_path / "cache")
    assert np.array_equal(accuracy.read_served_pixels(data, "test"), data.splits["test"].pixels.numpy())
    smaller = decoded_dataset.decode_at_size(data, (24, 32), tmp_path / "cache")
    assert np.array_equal(accuracy.read_served_pixels(smaller, "test"), smaller.splits["test"].pixels.numpy())
    wanted = served_pixels.read(data.splits["val"].files[0], dataclasses.replace(sees, image_size=(24, 32)))
    assert np.array_equal(smaller.splits["val"].pixels[0].numpy(), wanted)


def test_augmentation_knows_which_channel_is_red() -> None:
    images = torch.from_numpy(np.stack([picture((48, 48))] * 6))

    def batch(order: Any, pixels: torch.Tensor) -> torch.Tensor:
        train = decoded_dataset.Images(pixels, torch.zeros(6, dtype=torch.int64), (), torch.ones(6))
        sees = seen(order=order, mean=(0.5,) * 3, std=(0.5,) * 3)
        data = decoded_dataset.Dataset(("a", "b"), {"train": train}, sees, "d", (0,), "c")
        return loader._make_batch(data, AugmentSpec(saturation=0.9), torch.arange(6), 3).images

    assert torch.equal(batch("rgb", images).flip(1), batch("bgr", images.flip(3)))
