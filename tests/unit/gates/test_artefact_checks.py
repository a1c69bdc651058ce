"""Sound int8 artefacts are never refused, whatever images a small set happens to hold; planted faults always are.

A quantized network of three layers is computed in numpy: as torch does (fake-quantized), as a runtime does that fuses and
so rounds less often, and with faults. Its weights are random, so margins are as small as on a hard dataset.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from toolchain.core.types import Artefact, IntegerCoverage
from toolchain.export.export_variants import Variant
from toolchain.gates import artefact_checks
from toolchain.gates.verdict import Verdict
from toolchain.measure import torch_parity
from toolchain.measure.accuracy import VariantAccuracy
from toolchain.measure.torch_parity import LogitDifference, Parity, Predictions

IMAGES, CLASSES = 4000, 6
INT8 = Variant(
    name="pruned-int8", network="pruned", precision="int8", method="ptq", macs=1, parameters=1,
    artefact=Artefact(path=Path("m"), files=(Path("m"),), sha256="", size_bytes=1), onnx_path=Path("m"),
    planned_layers=("a",), image_size=(8, 8), output_step=None,
)  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """How the network is computed."""

    rounds_hidden: bool = True  # whether the second layer's input is rounded to uint8; a fused kernel does not
    hidden_scale: float = 1.0  # error of that layer's scale
    swaps_channels: bool = False
    saturates: bool = False  # adds pairs of products in 16 bits, as x86 without VNNI


class Network:
    """Weights int8, activations uint8, logits float."""

    def __init__(self) -> None:
        random = np.random.default_rng(3)
        self.images = random.integers(0, 256, (IMAGES, 3, 16))
        self.images[:, 1] = self.images[:, 1] // 2  # channels differ, as those of photos do
        shapes = ((48, 64), (64, 64), (64, CLASSES))
        self.weights = [random.normal(0, 70, shape).clip(-127, 127).round() for shape in shapes]
        self.bias: np.ndarray | float = 0.0
        self.ranges = [1.0, 1.0]
        activations = self.images.reshape(IMAGES, -1)
        for layer in range(2):
            outputs = np.maximum(activations @ self.weights[layer], 0)
            self.ranges[layer] = float(np.percentile(outputs, 99.9))
            activations = (outputs / self.ranges[layer] * 255).round().clip(0, 255)
        self.bias = -self.logits(Kernel()).mean(0)  # so that all classes are predicted
        self.labels = self.logits(Kernel()).argmax(1)
        wrong = random.random(IMAGES) < 0.4  # a hard set: 60 % are right
        self.labels[wrong] = random.integers(0, CLASSES, int(wrong.sum()))

    def logits(self, kernel: Kernel) -> np.ndarray:
        images = self.images[:, ::-1] if kernel.swaps_channels else self.images
        activations = images.reshape(IMAGES, -1).astype(float)
        for layer in range(2):
            outputs = np.maximum(self.multiply(activations, self.weights[layer], kernel), 0)
            scaled = outputs / self.ranges[layer] * 255 * (kernel.hidden_scale if layer else 1.0)
            activations = (scaled.round() if layer or kernel.rounds_hidden else scaled).clip(0, 255)
        return self.multiply(activations, self.weights[2], kernel) / 1000 + self.bias

    @staticmethod
    def multiply(activations: np.ndarray, weights: np.ndarray, kernel: Kernel) -> np.ndarray:
        if not kernel.saturates:
            return activations @ weights
        pairs = activations[:, 0::2, None] * weights[None, 0::2] + activations[:, 1::2, None] * weights[None, 1::2]
        return pairs.clip(-32768, 32767).sum(1)


NETWORK = Network()
TORCH = NETWORK.logits(Kernel())
FUSED = NETWORK.logits(Kernel(rounds_hidden=False))
FAULTS = {
    "wrong scale": Predictions(NETWORK.logits(Kernel(hidden_scale=1.15)), TORCH, None),
    "swapped channels": Predictions(NETWORK.logits(Kernel(swaps_channels=True)), TORCH, None),
    "saturating kernel": Predictions(NETWORK.logits(Kernel(saturates=True)), TORCH, TORCH),
    "saturating kernel, no unoptimized graph": Predictions(NETWORK.logits(Kernel(saturates=True)), TORCH, None),
}


def judge(predictions: Predictions, rows: np.ndarray) -> dict[str, Verdict]:
    plain = predictions.unoptimized
    drawn = Predictions(predictions.artefact[rows], predictions.torch[rows], None if plain is None else plain[rows])
    return verdicts_on(torch_parity.compare(drawn, NETWORK.labels[rows], None, "int8"))


def verdicts_on(parity: Parity, integer: int = 1) -> dict[str, Verdict]:
    nothing = parity.gap
    coverage = IntegerCoverage(integer=integer, planned=1, total=1, float_ops=())
    quality = VariantAccuracy(
        accuracy=nothing, balanced=nothing, drop=nothing, balanced_drop=nothing, disagreement=0.0, parity=parity, coverage=coverage,
    )  # fmt: skip
    return {verdict.check: verdict for verdict in artefact_checks.judge(INT8, quality)}


@pytest.mark.parametrize("images", [100, 150, 1000, 4000])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_by_its_steps(fault: str, images: int) -> None:
    verdicts = judge(FAULTS[fault], np.arange(images))
    by_steps = {name for name, verdict in verdicts.items() if name.endswith("_error") and verdict.outcome == "fail"}
    assert by_steps == {"runtime_error" if fault == "saturating kernel" else "logit_error"}, verdicts


def test_sound_artefacts_are_not_refused_on_200_resampled_sets() -> None:
    random, sound = np.random.default_rng(0), [Predictions(FUSED, TORCH, None), Predictions(FUSED, TORCH, TORCH)]
    changed = 0
    for number in range(200):
        rows = random.integers(0, IMAGES, random.integers(100, 201))
        verdicts = judge(sound[number % 2], rows)
        assert "fail" not in {verdict.outcome for verdict in verdicts.values()}, verdicts
        changed += int((FUSED[rows].argmax(1) != TORCH[rows].argmax(1)).sum())
    assert changed > 100  # the sets do hold predictions that rounding changes


def difference(changed: int, unexplained: int = 0) -> LogitDifference:
    return LogitDifference(
        rms_steps=replace(NO_GAP, estimate=0.5, low=0.4, high=0.6),
        changed_images=changed,
        unexplained_images=unexplained,
    )


NO_GAP = torch_parity.compare(Predictions(TORCH, TORCH, None), NETWORK.labels, None, "int8").gap
SOUND = Parity(
    top1_agreement=0.98, max_steps=3.0, step=1.0, images=147, accuracy_gap=0.0, gap=replace(NO_GAP, samples=147),
    artefact=difference(3),
)  # fmt: skip


def test_three_close_calls_of_147_are_no_reason_to_refuse() -> None:
    assert {verdict.outcome for verdict in verdicts_on(SOUND).values()} == {"pass"}


@pytest.mark.parametrize(("images", "outcome"), [(147, "cannot_tell"), (4000, "fail")])
def test_changes_that_steps_do_not_explain_fail_where_the_images_show_it(images: int, outcome: str) -> None:
    share = round(0.03 * images)
    verdict = verdicts_on(replace(SOUND, images=images, artefact=difference(share, share)))["unexplained_changes"]
    assert verdict.outcome == outcome
    assert ("images would decide" in verdict.why) == (outcome == "cannot_tell")


@pytest.mark.parametrize(
    ("estimate", "low", "high", "outcome"),
    [(-0.02, -0.05, 0.01, "pass"), (0.02, 0.01, 0.03, "fail"), (0.02, -0.01, 0.05, "cannot_tell"), (0.001, -0.001, 0.002, "pass")],
)  # fmt: skip
def test_only_an_accuracy_that_is_lower_beyond_chance_fails(
    estimate: float, low: float, high: float, outcome: str
) -> None:
    gap = replace(NO_GAP, estimate=estimate, low=low, high=high)
    verdict = verdicts_on(replace(SOUND, gap=gap, accuracy_gap=-estimate))["accuracy_gap"]
    assert verdict.outcome == outcome
    assert verdict.measured == -estimate


def test_layers_that_fall_back_to_float_fail() -> None:
    assert verdicts_on(SOUND, integer=0)["integer_coverage"].outcome == "fail"
