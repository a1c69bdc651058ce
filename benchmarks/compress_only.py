"""Compress a trained 1000-class model without labels: how often does int8 say what float says, and how fast is it?

    python benchmarks/compress_only.py --images FOLDER --weights FILE --out OUT [--drop 0.05] [--method ptq] [--targets cpu,openvino]

FILE holds MobileNetV2 1.0 with its ImageNet classifier, converted from TensorFlow. HELD images of FOLDER are set aside; the
others are given as `--unlabelled`. The model goes through as a torch model and as an ONNX file that `torch.onnx.export`
wrote; each bundle's `run.py` then classifies the images that were set aside, and so does the float model in torch. With
`--drop 0.5` all layers stay in int8, whatever they lose; with `--search 0` both ways have the same layers in int8.
"""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from toolchain.config import read_config
from toolchain.core import statistics
from toolchain.data import prepare
from toolchain.data.unlabelled_images import list_files
from toolchain.edge import run as runner
from toolchain.edge import served_pixels
from toolchain.models import build

SIZE = (224, 224)
CLASSES = 1000
RECIPE = """schema = 1
domain = "image-folder"
[model]
name = "{name}"
weights = "{weights}"
padding = "tensorflow"
mean = [0.50196, 0.50196, 0.50196]
std = [0.50196, 0.50196, 0.50196]
resize = "crop"
crop_share = 0.875
head = "keep"
[adapt]
epochs = 0
[prune]
ratio = 0.0
sensitivity = false
[recover]
epochs = 1
[quantize]
method = "{method}"
search_seconds = {search}
[quantize.train]
epochs = {epochs}
learning_rate = {rate}
temperature = {temperature}
[budget]
accuracy_drop = {drop}
"""


def main(
    images: Annotated[Path, typer.Option()],
    weights: Annotated[Path, typer.Option()],
    out: Path = Path("out/compress-only"),
    method: str = "ptq",
    epochs: int = 2,
    rate: float = 1e-5,
    temperature: float = 1.0,
    drop: float = 0.05,
    search: float = 120.0,
    targets: str = "cpu,openvino",
    paths: str = "torch,onnx",
    held: int = 300,
) -> None:
    """Run all exports and print one row each."""
    files = list_files(images)
    random.Random(0).shuffle(files)
    given = link(files[held:], out / "unlabelled")
    settings = {
        "method": method,
        "epochs": epochs,
        "rate": rate,
        "temperature": temperature,
        "drop": drop,
        "search": search,
    }
    name = f"{method}-{drop}-{search:g}"
    recipe = write_recipe(out / f"torch-{name}.toml", name="mobilenet_v2", weights=weights.resolve(), **settings)
    expected = predict_float(recipe, files[:held], out / "net.onnx")
    recipes = {
        "torch": recipe,
        "onnx": write_recipe(
            out / f"onnx-{name}.toml", name=(out / "net.onnx").resolve(), weights="random", **settings
        ),
    }
    for path in paths.split(","):
        for target in targets.split(","):
            print(export(recipes[path], given, target, out, files[:held], expected), flush=True)


def link(files: Sequence[Path], folder: Path) -> Path:
    """Fill a folder with links to the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        if not (name := folder / f"{number:05d}{file.suffix}").is_symlink():
            name.symlink_to(file.resolve())
    return folder


def write_recipe(path: Path, **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(RECIPE.format(**settings))
    return path


def predict_float(recipe: Path, files: Sequence[Path], onnx: Path) -> list[int]:
    """Return the classes that the float model gives in torch; write it as an ONNX file, too."""
    spec = read_config.read_recipe(str(recipe)).model
    model = build.build_trained(spec, CLASSES)[0].eval()
    preprocess = prepare.describe_pixels(spec, SIZE, "rgb")
    if not onnx.is_file():
        torch.onnx.export(model, (torch.zeros(1, 3, *SIZE),), onnx, dynamo=True, external_data=False, verbose=False)
    with torch.inference_mode():
        return [
            int(
                model(
                    torch.from_numpy(runner.normalise(served_pixels.read(file, preprocess), spec.mean, spec.std)[None])
                ).argmax()
            )
            for file in files
        ]


def export(recipe: Path, given: Path, target: str, out: Path, files: Sequence[Path], expected: Sequence[int]) -> str:
    """Run one export in a process of its own; return its row."""
    command = [
        sys.executable, "-m", "toolchain", "export", "--recipe", str(recipe), "--target", target, "--compress-only",
        "--unlabelled", str(given), "--out", str(out),
    ]  # fmt: skip
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (out / f"{recipe.stem}-{target}.log").write_text(ended.stdout)
    folder = out / recipe.stem / target
    if ended.returncode:
        return f"{recipe.stem} {target}: exit {ended.returncode}: {ended.stdout.strip().splitlines()[-1]}"
    report = json.loads((folder / "report.json").read_text())
    said = subprocess.run(
        [sys.executable, str(folder / "bundle" / "run.py"), *map(str, files)],
        check=True,
        capture_output=True,
        text=True,
    )
    names = (folder / "bundle" / "labels.txt").read_text().splitlines()
    classes = [names.index(json.loads(line)["class"]) for line in said.stdout.splitlines()]
    same = sum(map(int.__eq__, classes, expected))
    agreement, speedup = statistics.share(same, len(expected)), report["speedup"]
    return (
        f"{recipe.stem} {target}: ships {report['shipped']}, agrees with float on {agreement.estimate:.1%} "
        f"[{agreement.low:.1%}, {agreement.high:.1%}] of {len(expected)} images, speed-up {speedup['estimate']:.2f}x "
        f"[{speedup['low']:.2f}, {speedup['high']:.2f}]"
    )


if __name__ == "__main__":
    typer.run(main)
