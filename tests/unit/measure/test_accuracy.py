"""Parity of constant predictions, and the warning about a model that may only guess."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toolchain.core import statistics
from toolchain.measure import torch_parity
from toolchain.measure.torch_parity import Predictions
from toolchain.report import assemble


def test_constant_predictions_have_a_quantization_step(recwarn: pytest.WarningsRecorder) -> None:
    logits = np.zeros((6, 3), np.float32)
    parity = torch_parity.compare(Predictions(logits, logits, None), np.zeros(6, np.int64), None, "f32")
    assert parity.max_steps == 0
    assert parity.step > 0
    assert not recwarn.list


@pytest.mark.parametrize(("right_images", "warned"), [(10, True), (20, False)])
def test_a_model_that_may_only_guess_is_warned_of(right_images: int, warned: bool) -> None:
    labels = torch.tensor([0] * 10 + [1] * 7 + [2] * 7)
    correct = np.arange(24) < right_images
    results = SimpleNamespace(
        decision=SimpleNamespace(candidate="small"),
        verified=SimpleNamespace(test={"small": SimpleNamespace(accuracy=statistics.accuracy(correct))}),
        dataset=SimpleNamespace(splits={"test": SimpleNamespace(labels=labels)}, classes=("a", "b", "c")),
    )
    warnings = assemble.warn_of_guessing(results)
    assert bool(warnings) == warned
    if warned:
        assert "always predicting 'a' on 41.7%" in warnings[0]


def test_constant_channels_which_nothing_prunes_are_no_warning() -> None:
    findings = [{"kind": "constant channels", "why": "16 of 48"}, {"kind": "dead activation", "why": "always 0"}]
    results = SimpleNamespace(
        shipping=SimpleNamespace(quantized=SimpleNamespace(trained=SimpleNamespace(record={"findings": findings})))
    )
    assert assemble.warn_of_calibration(results) == ["calibration: always 0"]
