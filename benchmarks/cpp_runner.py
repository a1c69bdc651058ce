"""Does the C++ runner answer as run.py does, and as fast as `bench` says?

    python benchmarks/cpp_runner.py BUNDLE build/runner/edge-runner --pictures pictures/ [--images 500] [--repeats 5]
    python benchmarks/cpp_runner.py BUNDLE build/arm64/edge-runner --pictures pictures/ --images 100 --repeats 0 \
        --emulator "qemu-aarch64 -L root -E LD_LIBRARY_PATH=lib"

Answers: top-1 and logits of both programs on the same files, in quantization steps. Latency: `toolchain bench` and
`edge-runner --time 3` take turns; the ratio of each pair, its median and range. Emulated programs are not timed.
"""

import json
import random
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from toolchain.edge import run


def main(
    bundle: Path,
    program: Path,
    pictures: Annotated[Path, typer.Option()],
    images: int = 500,
    repeats: int = 5,
    emulator: str = "",
) -> None:
    command = [*shlex.split(emulator), str(program.resolve()), str(bundle)]
    files = sorted(
        str(path) for path in pictures.rglob("*") if path.suffix in {".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".npy"}
    )
    files = random.Random(0).sample(files, min(images, len(files)))
    manifest = json.loads((bundle / "manifest.json").read_text())
    model = run.open_model(bundle, manifest, run.check_files(bundle))
    wanted = np.concatenate([model(run.prepare(file, manifest["preprocess"])) for file in files])
    ended = subprocess.run([*command, "--logits", *files], capture_output=True, text=True, check=True)
    found = np.array([json.loads(line)["logits"] for line in ended.stdout.splitlines()], np.float32)
    same = int((found.argmax(1) == wanted.argmax(1)).sum())
    steps = float(np.abs(found - wanted).max() / manifest["golden"]["step"])
    print(f"{program}: the same class for {same} of {len(files)} pictures, at most {steps:.3f} quantization steps away")
    ratios = []
    for number in range(repeats):
        benched = [sys.executable, "-m", "toolchain", "bench", str(bundle), "--out", "out/cpp-runner"]
        subprocess.run(benched, capture_output=True, check=True)
        theirs = json.loads(Path("out/cpp-runner/bench/bench.json").read_text())["subjects"][0]["latency_ms"]["p50"][
            "estimate"
        ]
        timed = subprocess.run([*command, "--time", "3"], capture_output=True, text=True, check=True)
        own = json.loads(timed.stdout)["p50_ms"]
        ratios.append(own / theirs)
        print(
            f"{number + 1}/{repeats}: bench {theirs:.4f} ms, edge-runner {own:.4f} ms, ratio {ratios[-1]:.3f}",
            flush=True,
        )
    if ratios:
        print(
            f"edge-runner / bench: {statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}] over {len(ratios)} turns"
        )


if __name__ == "__main__":
    typer.run(main)
