"""Floors of docs/pixels.md, each on 300 real files of mixed sizes: pixels against Pillow, run.py against the C++ runner, and
the f32 bundle against torch."""

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_cpp_runner import ask, build

from toolchain import pipeline
from toolchain.config import read_config
from toolchain.config.dataset import Domain
from toolchain.config.job import make_job
from toolchain.config.recipe import Budget, PruneSpec, QuantizeSpec, Recipe, TrainSpec
from toolchain.core import files as records
from toolchain.edge import run as runner
from toolchain.measure import latency, peak_throughput

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="no CMake or C++ compiler here"),
]
FILES = 300  # of the test split
SIZE = (64, 64)
FILL = (9, 80, 250)
CAFFE = {"mean": (103.94, 116.78, 123.68), "std": (57.0, 57.0, 57.0), "pixel_values": "0..255"}
WAYS: dict[str, dict[str, Any]] = {
    "bgr": {"order": "bgr"},
    "letterbox": {"resize": "letterbox", "fill": FILL},
    "crop": {"resize": "crop", "crop_share": 0.875, "interpolation": "bicubic"},
    "0..255": CAFFE,
}


@pytest.fixture(scope="module")
def photos(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, photos of waste and thermal images, cut to many sizes and stored as JPEG and PNG."""
    folder, draws = tmp_path_factory.mktemp("photos"), random.Random(7)
    counts = {"train": 40, "val": 20, "test": FILES // 2}
    for name, source, kind in (("waste", "trashnet", "jpg"), ("module", "infrared_solar_modules", "png")):
        found = draws.sample(sorted((sets / source).rglob(f"*.{kind}")), sum(counts.values()))
        for split, count in counts.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                with Image.open(found.pop()) as image:
                    wide, tall = (draws.randint(max(16, side // 3), side) for side in image.size)
                    image.crop((0, 0, wide, tall)).save(folder / split / name / f"{number}.{kind}")
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT / "runner", tmp_path_factory.mktemp("program"))


def export(way: str, photos: Path, out: Path) -> tuple[Path, dict[str, Any]]:
    """A trained f32 bundle, and the report."""
    table = {"name": "squeezenet1_1", "weights": "zoo:squeezenet1_1_glyphs", **WAYS[way]}
    lines = ['domain = "photos"', "[model]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    (out / "pixels.toml").write_text("\n".join(lines))
    model = read_config.read_recipe(str(out / "pixels.toml")).model
    few = TrainSpec(epochs=1, batch_size=16, learning_rate=1e-3)
    recipe = Recipe(
        name="pixels", domain="photos", model=model, adapt=few, prune=PruneSpec(ratio=0), recover=few,
        quantize=QuantizeSpec(method="ptq", search_seconds=0),
    )  # fmt: skip
    target = dataclasses.replace(
        read_config.read_target("openvino"), budget=Budget(dense_float=True), precisions=("f32",)
    )
    domain = Domain(name="photos", path=str(photos), image_size=SIZE, calibration_images=32)
    report = pipeline.export(make_job(recipe, target, domain, out))
    return out / "pixels" / "openvino" / "bundle", report


def pillows(image: Image.Image, way: str) -> np.ndarray:
    """The same pixels by Pillow alone."""
    height, width = SIZE
    if way == "letterbox":
        share = min(width / image.width, height / image.height)
        inner = image.resize(
            (max(1, round(image.width * share)), max(1, round(image.height * share))), Image.Resampling.BILINEAR
        )
        box = Image.new("RGB", (width, height), FILL)
        box.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
        return np.asarray(box)
    if way == "crop":
        whole = int(height / 0.875)
        share = whole / min(image.size)
        size = [whole if side == min(image.size) else int(side * share + 1e-9) for side in image.size]
        # across, then down, as Pillow did until release 12; now it takes either order, and bicubic's swings beyond black and
        # white, which are cut off between the two, make up to six grey levels of that in the smallest thermal images
        larger = image.resize((size[0], image.height), Image.Resampling.BICUBIC)
        larger = larger.resize((size[0], size[1]), Image.Resampling.BICUBIC)
        left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        return np.asarray(larger.crop((left, top, left + width, top + height)))
    stretched = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return stretched[..., ::-1] if "bgr" in WAYS[way].values() else stretched


@pytest.mark.parametrize("way", WAYS)
def test_300_files_look_the_same_everywhere(
    way: str, photos: Path, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 2)
    monkeypatch.setattr(peak_throughput, "ROUNDS", 1)
    bundle, report = export(way, photos, tmp_path)
    manifest = records.read_json(bundle / "manifest.json")
    preprocess = manifest["preprocess"]
    shown = sorted((photos / "test").rglob("*.*g"))
    assert len(shown) == FILES
    std, mean = (np.asarray(preprocess[key]).reshape(3, 1, 1) for key in ("std", "mean"))
    model, furthest = runner.open_model(bundle, manifest, runner.check_files(bundle)), 0.0
    logits = []
    for path in shown:
        given = runner.prepare(path, preprocess)
        with Image.open(path) as image:
            wanted = pillows(image.convert("RGB"), way).transpose(2, 0, 1)
        furthest = max(furthest, float(np.abs((given[0] * std + mean) * 255 - wanted).max()))
        logits.append(model(given)[0])
    assert furthest <= 1.01
    ended = ask(program, bundle, "--logits", photos / "test")
    assert ended.returncode == 0, ended.stderr
    answers = {row["file"]: row["logits"] for row in map(json.loads, ended.stdout.splitlines())}
    other = np.array([answers[str(path)] for path in shown], np.float32)
    assert np.abs(other - np.array(logits)).max() <= manifest["golden"]["step"] / 1000
    assert (other.argmax(1) == np.array(logits).argmax(1)).all()
    variant = next(one for one in report["variants"] if one["name"] == "dense-fp32")
    parity = variant["parity"] if "parity" in variant else variant["test"]["parity"]
    assert (parity["images"], parity["top1_agreement"]) == (FILES, 1.0)
    assert (bundle / "pixels.py").is_file() == (manifest["schema"] == 2) == (way != "0..255")
    print(
        f"{way}: pixels at most {furthest:.2f} grey levels from Pillow's, logits {np.abs(other - np.array(logits)).max():.2g} apart"
    )
