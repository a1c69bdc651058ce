"""Integer models on an emulated x86 core without VNNI, whose kernels add two products in 16 bits and may saturate.

    python benchmarks/without_vnni.py --recipe solar --data <folder> --weights <file> [--seeds 1]

The same artefact answers the test images on this machine and under an emulator (Debian's package qemu-user). Eight-bit
weights (target cpu) show what saturation costs; seven bits (cpu-avx2) are what such a core is given. Trainings are those
of quantization.py and shared with it through --out/work.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import quantization
import typer

from toolchain.config import overrides, read_config
from toolchain.core import files as records
from toolchain.core import stage_cache, statistics
from toolchain.data.decoded_dataset import Dataset
from toolchain.edge import run
from toolchain.export.export_variants import ExportedVariant
from toolchain.measure import accuracy

ANSWERS = "answers.npy"
SCRIPT = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
images = numpy.load(sys.argv[2], mmap_mode="r")
numpy.save(sys.argv[3], numpy.concatenate([session.run(None, {name: images[i : i + 1]})[0] for i in range(len(images))]))
"""


def main(
    data: Annotated[str, typer.Option()],
    weights: Annotated[str, typer.Option()],
    recipe: str = "solar",
    seeds: int = 1,
    methods: Annotated[str, typer.Option(help="with commas")] = "ptq,qat",
    emulator: str = "qemu-x86_64 -cpu Haswell",
    out: Path = Path("out"),
) -> None:
    """Prints accuracy here and emulated, for both schemes."""
    if not shutil.which(shlex.split(emulator)[0]):
        sys.exit(f"{emulator} is not installed: apt-get install qemu-user")
    flags = overrides.Flags(data=data, weights=weights, ratio=0.0)
    whole, models = quantization.dense_models(recipe, flags, seeds, out)
    labels = whole.splits["test"].labels.numpy()
    served = cache(lambda split: accuracy.read_served_pixels(whole, split))
    right = defaultdict[tuple[str, str, str], list[np.ndarray]](list)
    for one, adapted in models:
        for method in methods.split(","):
            for name in ("cpu", "cpu-avx2"):
                _, built = quantization.exported(adapted, method, one, read_config.read_target(name), out / "work")
                here = accuracy.predict(
                    built, read_config.read_target(name), whole, "test", served, out / "work"
                ).artefact
                there = emulated(built, whole, served("test"), emulator, out / "work")
                for where, logits in (("here", here), ("emulated", there)):
                    right[method, name, where].append(logits.argmax(1) == labels)
                same = (here.argmax(1) == there.argmax(1)).mean()
                print(f"seed {one.seed}: {method}, {name}: same class on {100 * same:.2f} % of pictures", flush=True)
    print(
        "| method | target | accuracy here | emulated | points lost to the emulated core | to cpu on this one |\n|---|---|---|---|---|---|"
    )
    for method in methods.split(","):
        base = np.stack(right[method, "cpu", "here"]).astype(float)
        for name in ("cpu", "cpu-avx2"):
            here, there = (np.stack(right[method, name, where]).astype(float) for where in ("here", "emulated"))
            cells = (
                method, name, quantization.share(statistics.mean_over_repeats(here)), quantization.share(statistics.mean_over_repeats(there)),
                quantization.points(statistics.mean_over_repeats(here - there)), quantization.points(statistics.mean_over_repeats(base - there)),
            )  # fmt: skip
            print(f"| {' | '.join(cells)} |")


def emulated(built: ExportedVariant, whole: Dataset, pixels: np.ndarray, emulator: str, work: Path) -> np.ndarray:
    """Logits [images, classes] that ONNX Runtime gives on the emulated core."""
    key = records.digest(
        built.variant.artefact.sha256, whole.digest, whole.preprocess, emulator, onnxruntime.__version__
    )
    with stage_cache.open_stage(work, "emulate", key) as stage:
        if stage.record is None:
            started = time.monotonic()
            images = [run.normalise(one, whole.preprocess.mean, whole.preprocess.std) for one in pixels]
            np.save(stage.folder / "images.npy", np.stack(images))
            libraries = Path(onnxruntime.__file__).parents[1]
            python = Path(sys.executable).resolve()  # the emulator takes no link, and so no virtual environment
            files = (built.variant.artefact.path, stage.folder / "images.npy", stage.folder / ANSWERS)
            subprocess.run(
                [*shlex.split(emulator), str(python), "-c", SCRIPT, *map(str, files)],
                check=True, env={**os.environ, "PYTHONPATH": str(libraries)}, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            (stage.folder / "images.npy").unlink()
            stage_cache.finish(stage, started, {})
        logits: np.ndarray = np.load(stage.folder / ANSWERS)
        return logits


if __name__ == "__main__":
    typer.run(main)
