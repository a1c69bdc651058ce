"""Does a small, hard dataset ship, and is it the fastest variant that keeps the budget on validation? Three seeds, both runtimes.

    python benchmarks/small_sets.py --solar SOLAR --trashnet TRASHNET --weights FILE --out OUT

SOLAR and TRASHNET are unpacked image folders. Of the solar modules 413 training, 87 validation and 147 test images are drawn
once, with the shares of the classes kept. Both recipes run with `accuracy_drop = 0.03`. A run that is there already is
resumed from its stage cache.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from toolchain.config import read_config
from toolchain.core import registry

SIZES = {"train": 413, "val": 87, "test": 147}
DROP = 0.03


def main(
    weights: Annotated[str, typer.Option()],
    solar: str = "",
    trashnet: str = "",
    seeds: int = 3,
    targets: str = "cpu,openvino",
    out: Path = Path("out/small-sets"),
) -> None:
    """Run all exports and print one row each."""
    folders = {"solar": str(draw_subset(Path(solar), out / "solar-413")) if solar else "", "trashnet": trashnet}
    for recipe, folder in folders.items():
        for seed in range(seeds if folder else 0):
            for target in targets.split(","):
                print(export(recipe, folder, weights, seed, target, out), flush=True)


def draw_subset(source: Path, folder: Path) -> Path:
    """Copy SIZES images of the dataset's splits, with the class shares of each split kept by largest remainders."""
    if folder.is_dir():
        return folder
    random = np.random.default_rng(0)
    for split, count in SIZES.items():
        classes = {path.name: sorted(path.iterdir()) for path in sorted((source / split).iterdir())}
        total = sum(map(len, classes.values()))
        shares = {name: count * len(paths) / total for name, paths in classes.items()}
        counts = {name: max(1, int(share)) for name, share in shares.items()}
        for name in sorted(shares, key=lambda name: counts[name] - shares[name])[: count - sum(counts.values())]:
            counts[name] += 1
        for name, paths in classes.items():
            (folder / split / name).mkdir(parents=True)
            for index in random.choice(len(paths), counts[name], replace=False):
                shutil.copy(paths[index], folder / split / name)
    return folder


def export(recipe: str, data: str, weights: str, seed: int, target: str, out: Path) -> str:
    """Run one export in a process of its own; return its row."""
    path = out / f"{recipe}-small.toml"
    if not path.is_file():
        text = registry.find_file("recipes", recipe).read_text()
        head, _, _ = text.partition("[budget]")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{head}[budget]\naccuracy_drop = {DROP}\n")
    run_folder = out / f"seed{seed}"
    command = [
        sys.executable, "-m", "toolchain", "export", "--recipe", str(path), "--target", target, "--data", data,
        "--weights", weights, "--seed", str(seed), "--out", str(run_folder),
    ]  # fmt: skip
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    name = read_config.read_recipe(str(path)).name
    (run_folder / f"{name}-{target}.log").write_text(ended.stdout)
    report_path = run_folder / name / target / "report.json"
    if ended.returncode not in (0, 1) or not report_path.is_file():
        return f"{recipe} seed {seed} {target}: exit {ended.returncode}: {ended.stdout.strip().splitlines()[-1]}"
    return describe(recipe, seed, target, json.loads(report_path.read_text()))


def describe(recipe: str, seed: int, target: str, report: dict[str, Any]) -> str:
    """Return what shipped, and each verdict on it."""
    verdicts = ", ".join(f"{verdict['check']} {verdict['outcome']}" for verdict in report["verdicts"])
    variants = ", ".join(f"{row['name']} {row['accuracy']:.3f}" for row in report["variants"])
    shipped = report["shipped"] or f"nothing ({report['candidate']})"
    return f"{recipe} seed {seed} {target}: ships {shipped}; {verdicts}; test accuracy {variants}; {'; '.join(report['notes'])}"


if __name__ == "__main__":
    typer.run(main)
