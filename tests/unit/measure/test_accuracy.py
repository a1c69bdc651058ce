"""What is said of answers that are all the same, and of a model that may have learnt nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toolchain.core import statistics
from toolchain.measure import accuracy
from toolchain.measure.accuracy import Predictions
from toolchain.report import assemble


def test_answers_that_are_all_the_same_have_a_step(recwarn: pytest.WarningsRecorder) -> None:
    same = np.zeros((6, 3), np.float32)
    found = accuracy.compare_with_torch(
        SimpleNamespace(output_step=None), Predictions(same, same, None), np.zeros(6, np.int64)
    )
    assert found.max_steps == 0
    assert found.step > 0
    assert not recwarn.list


@pytest.mark.parametrize(("right", "warned"), [(10, True), (20, False)])
def test_a_model_that_may_only_guess_is_said(right: int, warned: bool) -> None:
    labels = torch.tensor([0] * 10 + [1] * 7 + [2] * 7)
    correct = np.arange(24) < right
    found = SimpleNamespace(
        decision=SimpleNamespace(candidate="small"),
        verified=SimpleNamespace(test={"small": SimpleNamespace(accuracy=statistics.accuracy(correct))}),
        dataset=SimpleNamespace(splits={"test": SimpleNamespace(labels=labels)}, classes=("a", "b", "c")),
    )
    said = assemble.warn_of_guessing(found)
    assert bool(said) == warned
    if warned:
        assert "always predicting 'a' on 41.7%" in said[0]
