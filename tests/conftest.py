"""Shared by all tests: small image folders, a tiny recipe, and the real sets where they lie beside the checkout."""

import contextlib
import dataclasses
import fcntl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toolchain import pipeline
from toolchain.config import read_config
from toolchain.config.dataset import Domain
from toolchain.config.job import Job, make_job
from toolchain.config.recipe import Budget, ModelSpec, PruneSpec, QuantizeSpec, Recipe, TrainSpec
from toolchain.config.target import Target
from toolchain.measure import latency, peak_throughput

# before anything imports OpenVINO: its converter reports every conversion to its maker, in ten processes forked from this
# one, each of which waits 3 s where the network swallows packets. `runtimes.openvino.library` turns it off for users.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@contextlib.contextmanager
def alone(what: str) -> Iterator[None]:
    """One test at a time, of all processes, for a program whose own files lie in one place."""
    with (Path(tempfile.gettempdir()) / f"edge-toolchain-{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def draw(folder: Path, counts: dict[str, int], *, size: tuple[int, int] = (12, 10), seed: int = 0) -> Path:
    """Gray pictures that can be told apart: each class has its own bright row."""
    random = np.random.default_rng(seed)
    for index, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.integers(0, 90, size, dtype=np.uint8)
            pixels[2 + 3 * index : 4 + 3 * index] += 150
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw(tmp_path / "pictures", {"ant": 40, "bee": 40, "cat": 40})


def tiny_recipe() -> Recipe:
    train = TrainSpec(epochs=8, batch_size=8, learning_rate=1e-3)
    return Recipe(
        name="tiny",
        domain="tiny",
        model=ModelSpec(name="squeezenet1_1", weights="zoo:squeezenet1_1_glyphs", mean=(0.5,) * 3, std=(0.5,) * 3),
        adapt=train,
        prune=PruneSpec(ratio=0.4, criterion="magnitude"),  # its pictures are so easy that gradients vanish
        recover=TrainSpec(epochs=8, batch_size=8, learning_rate=1e-3, distill=0.5),
        quantize=QuantizeSpec(
            search_seconds=0, train=TrainSpec(epochs=2, batch_size=16, learning_rate=1e-4, distill=0.5)
        ),
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """A whole job on the tiny set, done once for all tests that look at what it left."""

    out: Path
    recipe: Recipe
    target: Target
    domain: Domain
    report: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.out / "tiny" / self.target.name

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"


def build(folder: Path, pictures: Path, target: str = "cpu") -> Run:
    domain = Domain(name="tiny", path=str(pictures), mode="gray", image_size=(32, 32), calibration_images=32)
    chosen = dataclasses.replace(read_config.read_target(target), budget=Budget(accuracy_drop=0.2))
    return Run(folder, tiny_recipe(), chosen, domain, pipeline.export(make_job(tiny_recipe(), chosen, domain, folder)))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:  # three rounds show that timing works; they are no figures
        patch.setattr(latency, "ROUNDS", 3)
        patch.setattr(peak_throughput, "ROUNDS", 1)
        return build(folder / "out", draw(folder / "pictures", {"ant": 40, "bee": 40, "cat": 40}))


@pytest.fixture
def domain(pictures: Path) -> Domain:
    return Domain(name="tiny", path=str(pictures), mode="gray", image_size=(32, 32), calibration_images=16)


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real image sets as folders; skips where they are not beside the checkout."""
    if not (SHARED / "data" / "unpack.py").exists():
        pytest.skip("the real image sets (../shared/data) are not beside this checkout")
    out = tmp_path_factory.mktemp("sets")
    subprocess.run([sys.executable, str(SHARED / "data" / "unpack.py"), str(out)], check=True, capture_output=True)
    return out


def job_of(
    recipe: Recipe,
    target: Target | None = None,
    domain: Domain | None = None,
    *,
    out: Path,
    budget: Budget | None = None,
    lock_file: Path | None = None,
    recipe_folder: Path | None = None,
) -> Job:
    """A job of some parts; the others are the cpu target and a domain without images."""
    job = make_job(
        recipe, target or read_config.read_target("cpu"), domain or Domain(name="tiny"), out, lock_file=lock_file,
        recipe_folder=recipe_folder,
    )  # fmt: skip
    return job if budget is None else dataclasses.replace(job, budget=budget)
