"""Accuracy in the regression gate: candidate and baseline on the same test images, compared with McNemar's exact test."""

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolchain.config.target import GateLimits
from toolchain.core import progress, statistics
from toolchain.core.errors import ToolchainError
from toolchain.data.formats.folders.class_names import to_nfc
from toolchain.edge.run import Refused, prepare
from toolchain.export.runtime import load_runtime
from toolchain.gates.gate_inputs import GateImages, GatePair
from toolchain.gates.verdict import Outcome, Verdict
from toolchain.measure.model_files import ModelFile

MAX_ACCURACY_P_VALUE = 0.05  # of a drop that counts as one
IMAGES_PER_CALL = 200  # of the other interpreter


@dataclass(frozen=True, kw_only=True)
class CorrectPredictions:
    """Which test images each model classifies correctly, bool [images] each, in the same order."""

    candidate: np.ndarray
    baseline: np.ndarray


def classify(pair: GatePair, images: GateImages) -> CorrectPredictions:
    """Classify all test images with the candidate and the baseline, each with its own preprocessing.

    A baseline of another interpreter is run there, by its bundle's own `run.py`.

    Raises:
        ToolchainError: an image cannot be read, or the other interpreter cannot run the bundle.
    """
    with progress.show_bar(f"gate {pair.recipe}: test images", 2 * len(images.files)) as bar:
        run_baseline = _classify_in_other_python if pair.baseline.timed_model.python else _classify_here
        return CorrectPredictions(
            candidate=_classify_here(pair.candidate, images, bar.step),
            baseline=run_baseline(pair.baseline, images, bar.step),
        )


def judge(correct: CorrectPredictions | str, limits: GateLimits) -> Verdict | None:
    """Fail a drop above the limit that is significant; one that may be chance cannot be decided.

    Args:
        correct: correct predictions of both models, or the reason why there are none.
        limits: of the target; without a limit on accuracy there is no verdict.
    """
    if limits.accuracy_drop is None:
        return None
    limit = limits.accuracy_drop
    if isinstance(correct, str):
        return Verdict(check="accuracy_drop", outcome="not_measured", measured=None, limit=limit, why=correct)
    candidate, baseline = correct.candidate, correct.baseline
    drop, p_value = statistics.accuracy_drop(baseline, candidate), statistics.mcnemar_p_value(baseline, candidate)
    outcome: Outcome = "pass" if drop.estimate <= limit else "fail" if p_value < MAX_ACCURACY_P_VALUE else "cannot_tell"
    needed = statistics.images_needed(max(limit, 1e-3), statistics.disagreement_share(baseline, candidate))
    why = (
        f"{baseline.mean():.2%} -> {candidate.mean():.2%}, 95 % interval of the drop {100 * drop.low:+.2f} to "
        f"{100 * drop.high:+.2f} points on {drop.samples} images, p = {p_value:.2g} (McNemar, exact)"
    )
    if outcome == "cannot_tell":
        why += f"; about {needed} images would decide"
    elif outcome == "pass" and drop.high > limit:
        why += f"; so few images do not rule out a drop of {100 * drop.high:.1f} points"
    return Verdict(
        check="accuracy_drop", outcome=outcome, measured=drop.estimate, limit=limit, why=why, samples=drop.samples,
        images_needed=needed if outcome == "cannot_tell" else None,
    )  # fmt: skip


def _classify_here(model: ModelFile, images: GateImages, step: Callable[[], None]) -> np.ndarray:
    assert model.manifest is not None
    timed, classes = model.timed_model, model.manifest["classes"]
    session = load_runtime(timed.runtime).open(Path(timed.path), threads=timed.threads, precision=timed.precision)
    correct = []
    for file, label in zip(images.files, images.labels, strict=True):
        logits = session.run(_prepare(file, model))[0]
        correct.append(to_nfc(classes[int(logits.argmax())]) == label)
        step()
    return np.array(correct)


def _classify_in_other_python(model: ModelFile, images: GateImages, step: Callable[[], None]) -> np.ndarray:
    """Give the prepared inputs to `run.py` in batches; the other environment needs numpy and the runtime only."""
    assert model.bundle_folder is not None
    predicted = list[str]()
    for start in range(0, len(images.files), IMAGES_PER_CALL):
        with tempfile.TemporaryDirectory() as folder:
            for number, file in enumerate(images.files[start : start + IMAGES_PER_CALL]):
                np.save(Path(folder) / f"{number:06d}.npy", _prepare(file, model))
                step()
            command = [model.timed_model.python, str(model.bundle_folder / "run.py"), folder]
            child = subprocess.run(command, capture_output=True, text=True, check=False)
        if child.returncode:
            reason = (child.stderr or child.stdout).strip().splitlines()[-1:] or ["no message"]
            raise ToolchainError(f"{model.timed_model.python} cannot run {model.bundle_folder}/run.py: {reason[0]}")
        predicted += [json.loads(line)["class"] for line in child.stdout.splitlines()]
    return np.array([to_nfc(name) == label for name, label in zip(predicted, images.labels, strict=True)])


def _prepare(file: Path, model: ModelFile) -> np.ndarray:
    assert model.manifest is not None
    try:
        image: np.ndarray = prepare(file, model.manifest["preprocess"])
    except Refused as reason:
        raise ToolchainError(str(reason)) from reason
    return image
