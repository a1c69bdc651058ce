"""Rounding gives torch's own numbers and gradients, whatever lies how in memory."""

import pytest
import torch

from toolchain.quantization import fake_quantize


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("zero_point", "lowest", "highest"), [(0, 0, 255), (117, 0, 255), (-9, -128, 127)])
def test_values_and_gradients_are_those_of_torch(
    zero_point: int, lowest: int, highest: int, form: torch.memory_format
) -> None:
    torch.manual_seed(0)
    values, upstream = torch.randn(4, 5, 16, 16) * 4, torch.randn(4, 5, 16, 16).to(memory_format=form)
    scale, zero = torch.tensor([0.0173]), torch.tensor([zero_point], dtype=torch.int32)
    ours = values.clone(memory_format=form).requires_grad_()
    theirs = values.clone(memory_format=form).requires_grad_()
    rounded = fake_quantize.per_tensor(ours, scale, zero, lowest, highest)
    wanted = torch.fake_quantize_per_tensor_affine(theirs, scale, zero, lowest, highest)
    assert torch.equal(rounded, wanted)
    assert 0.02 < float((rounded == rounded.max()).float().mean()) < 0.98  # some are clipped, others not
    rounded.backward(upstream)
    wanted.backward(upstream)
    assert torch.equal(ours.grad, theirs.grad)
    assert rounded.is_contiguous(memory_format=form)


def test_what_is_not_finite_stays_so() -> None:
    rounded = fake_quantize.per_tensor(
        torch.tensor([float("nan"), 1.0]), torch.ones(1), torch.zeros(1, dtype=torch.int32), 0, 255
    )
    assert rounded[0].isnan()
    assert rounded[1] == 1
