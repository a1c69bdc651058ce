"""Gradients by parameter: of the loss in inference form, image by image, and the model stays as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.core.errors import ToolchainError
from toolchain.pruning import gradients


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(), nn.Linear(16, 3)
    return nn.Sequential(*layers).train()


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(7, 3, 4, 4), torch.randint(3, (7,))


def test_means_are_the_gradient_of_the_mean_loss_and_batches_do_not_matter(images: tuple[Tensor, Tensor]) -> None:
    model, (x, labels) = net(), images
    moments = gradients.collect(model, [(x[:4], labels[:4]), (x[4:], labels[4:])])
    whole = gradients.collect(model, [(x, labels)])
    F.cross_entropy(model.eval()(x), labels).backward()
    assert set(moments) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(moments[name].mean, parameter.grad)
        assert torch.equal(moments[name].mean, whole[name].mean)
        assert torch.equal(moments[name].mean_square, whole[name].mean_square)


def test_squares_are_of_single_images_and_not_of_the_mean(images: tuple[Tensor, Tensor]) -> None:
    model = net().eval()
    moments = gradients.collect(model, [images])
    squares = []
    for image, label in zip(*images, strict=True):
        model.zero_grad()
        F.cross_entropy(model(image.unsqueeze(0)), label.unsqueeze(0)).backward()
        squares.append(model[0].weight.grad.square().clone())
    torch.testing.assert_close(moments["0.weight"].mean_square, torch.stack(squares).mean(0))
    assert (moments["0.weight"].mean_square >= moments["0.weight"].mean.square()).all()


def test_the_model_stays_as_it_was(images: tuple[Tensor, Tensor]) -> None:
    model = net()
    model[1].eval()  # as a training with frozen statistics leaves it
    model[0].weight.requires_grad_(False)
    model[5].weight.grad = torch.full_like(model[5].weight, 3.0)
    before = copy.deepcopy(model)
    moments = gradients.collect(model, [images])
    assert moments["0.weight"].mean.abs().max() > 0  # frozen, and still ranked
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["5.weight"]
    assert torch.equal(model[5].weight.grad, torch.full_like(model[5].weight, 3.0))


def test_a_parameter_that_the_output_does_not_use_has_a_gradient_of_zero(images: tuple[Tensor, Tensor]) -> None:
    model = net()
    model.add_module("spare", nn.Identity())
    model.spare.register_parameter("weight", nn.Parameter(torch.ones(2)))
    assert torch.equal(gradients.collect(model, [images])["spare.weight"].mean, torch.zeros(2))


def test_no_images_and_gradients_that_are_not_finite_are_refused(images: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ToolchainError, match="no images"):
        gradients.collect(net(), [])
    broken = net()
    with torch.no_grad():
        broken[5].weight[0, 0] = torch.nan
    with pytest.raises(ToolchainError, match=r"gradient of .* is not finite"):
        gradients.collect(broken, [images])
