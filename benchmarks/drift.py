"""Does `toolchain drift` hear what costs accuracy, and is it quiet where nothing moved? On a bundle and pictures it never saw.

    python benchmarks/drift.py out/solar/cpu/bundle --pictures <set>/test [--others <another set>/test] [--windows 100]

Every picture goes through the bundle's own runner. "itself" are windows drawn from the test pictures without repetition
inside a window; each shift changes the pixels as the network sees them, in windows of 500. What a shift costs is measured
on all its windows with the true classes, which `drift` does not know. Other pictures have no true classes here: all wrong.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageFilter

from toolchain.core import files as records
from toolchain.deploy import drift, drift_reference
from toolchain.edge import archive, run, watch

WINDOW = watch.IMAGES_PER_WINDOW


def blur(radius: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    return lambda x, _: np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(radius)))


def linear(gain: float, offset: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def change(x: np.ndarray, _: np.random.Generator) -> np.ndarray:
        return np.rint(gain * (x.astype(float) - x.mean()) + x.mean() + offset).clip(0, 255).astype(np.uint8)

    return change


def noise(sigma: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    return lambda x, order: np.rint(x + order.normal(0, sigma, x.shape)).clip(0, 255).astype(np.uint8)


SHIFTS = {
    **{f"brightness {step:+d}": linear(1, step) for step in (-40, -20, -10, -5, 5, 10, 20, 40)},
    **{f"contrast x{gain:g}": linear(gain, 0) for gain in (0.4, 0.6, 0.8, 0.9, 1.1, 1.25, 1.5)},
    **{f"blur, radius {radius:g}": blur(radius) for radius in (0.5, 0.75, 1, 1.5, 2.5)},
    **{f"noise, sigma {sigma:g}": noise(sigma) for sigma in (1, 2, 4, 8, 16)},
}


def main(
    bundle: Annotated[Path, typer.Argument(help="a bundle's folder")],
    pictures: Annotated[Path, typer.Option(help="folder of classes, none of them trained on")],
    others: Annotated[Path | None, typer.Option(help="pictures of another world")] = None,
    windows: Annotated[int, typer.Option(help="of the pictures themselves")] = 100,
    shifted: Annotated[int, typer.Option(help="windows of every shift")] = 3,
) -> None:
    """Prints the table."""
    own = drift_reference.load_bundle(bundle)
    manifest, sees = (
        records.read_json(bundle / "manifest.json"),
        records.read_json(bundle / "manifest.json")["preprocess"],
    )
    model = run.open_model(bundle, manifest, archive.list_checksummed_files(bundle))
    pixels, labels = read(pictures, sees, own.classes)
    logits = answers(model, pixels, sees)
    order = np.random.default_rng(0)
    plain = float((logits.argmax(1) == labels).mean())
    print(f"{own.name}: {len(labels)} pictures, accuracy {100 * plain:.1f} %\n\n{HEAD}")
    drawn = [order.choice(len(labels), WINDOW, replace=False) for _ in range(windows)]
    row("itself", [judged(own, pixels[part], logits[part]) for part in drawn], 0.0)
    for name, change in SHIFTS.items():
        parts = [order.choice(len(labels), WINDOW, replace=False) for _ in range(shifted)]
        moved = [np.stack([change(one, order) for one in pixels[part]]) for part in parts]
        said = [answers(model, one, sees) for one in moved]
        right = np.concatenate([a.argmax(1) == labels[part] for a, part in zip(said, parts, strict=True)])
        base = np.concatenate([logits[part].argmax(1) == labels[part] for part in parts])
        row(name, [judged(own, x, a) for x, a in zip(moved, said, strict=True)], float(base.mean() - right.mean()))
    if others:
        foreign, _ = read(others, sees, ())
        foreign = foreign[order.permutation(len(foreign))[:WINDOW]]
        row(f"other pictures, {len(foreign)}", [judged(own, foreign, answers(model, foreign, sees))], plain)


def read(folder: Path, sees: Mapping[str, object], classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels as the network sees them, and classes; -1 where a folder's name is none."""
    rows, labels = [], []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in {".png", ".jpg", ".jpeg"}):
        rows.append(run.fit_size(run.read_image(path, sees["mode"]), sees["image_size"]))
        labels.append(classes.index(path.parent.name) if path.parent.name in classes else -1)
    return np.stack(rows), np.array(labels)


def answers(model: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, sees: Mapping[str, object]) -> np.ndarray:
    """Logits [pictures, classes]."""
    return np.concatenate([model(run.normalise(one, sees["mean"], sees["std"])[None]) for one in pixels])


def judged(own: drift_reference.WatchedBundle, pixels: np.ndarray, logits: np.ndarray) -> drift.DriftResult:
    """Counted as `run.py --watch` does it, and looked at as `toolchain drift` does it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.json"
        counters = watch.Counters(path, own.identity, own.reference.bin_edges, len(own.classes))
        for one, answer in zip(pixels, logits, strict=True):
            counters.add(one, answer)
        counters.close()
        files = drift.read_counters([path], own.identity, own.reference.count_bins(len(own.classes)))
        return drift.detect(own.name, own.reference, len(own.classes), files)


def row(name: str, found: list[drift.DriftResult], lost: float) -> None:
    """One line of the table."""
    windows = [one.windows[0] for one in found]
    said = [one.verdict for one in windows]
    called = sum(verdict != "fine" for verdict in said)
    expected = np.mean([one.expected_drop.estimate for one in windows])
    moved = [m.reading for one in windows for m in one.moved if m.called and m.reading != "class"]
    most = sorted(dict.fromkeys(moved), key=moved.count, reverse=True)[:4]
    verdicts = ", ".join(f"{said.count(one)} {one}" for one in dict.fromkeys(said))
    print(
        f"| {name} | {100 * lost:+.1f} | {100 * expected:+.1f} | {called} of {len(found)} | {verdicts} | {', '.join(most)} |",
        flush=True,
    )


HEAD = """\
| pictures | accuracy lost, points | lost by confidence | windows called | verdicts | what moved |
|---|--:|--:|--:|---|---|"""


if __name__ == "__main__":
    typer.run(main)
