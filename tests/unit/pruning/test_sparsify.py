"""Sparse training: the penalty is the paper's, weak channels shrink the most, and without it nothing is done."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import job_of
from torch import Tensor, nn
from unit.pruning.test_pruning_rounds import IMAGE, TARGET, Net, adapted, recipe  # noqa: F401  the fixture is used by name

from toolchain.config.recipe import Recipe
from toolchain.core import files
from toolchain.models import profile
from toolchain.pruning import groups, prune, recover, sparsify, sparsity_penalty
from toolchain.pruning.groups import PruningGroup
from toolchain.search import search_pruning
from toolchain.training import loop
from toolchain.training.finetune import FinetunedModel
from toolchain.training.training_state import Score

STRENGTH = 0.01


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(3)
    net = Net().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + torch.rand_like(parameter))
    return net


def sparse(count: int = 1, strength: float = STRENGTH, epochs: int | None = 6) -> Recipe:
    settings = recipe(count)
    return dataclasses.replace(
        settings, prune=dataclasses.replace(settings.prune, sparsity=strength, sparse_epochs=epochs)
    )  # fmt: skip


def stream(weights: dict[str, Tensor]) -> list[list[Tensor]]:
    """By hand: everything that goes with each channel that runs through both residual blocks."""
    return [
        [
            weights["stem.weight"][c],
            *(weights[f"{block}.inner.weight"][:, c] for block in ("first", "second")),
            *(weights[f"{block}.back.weight"][c] for block in ("first", "second")),
            weights["left.weight"][:, c],
            weights["right.weight"][:, c],
        ]
        for c in range(24)
    ]


def hidden(weights: dict[str, Tensor], block: str, channels: int) -> list[list[Tensor]]:
    names = ("inner.weight", "norm.weight", "depthwise.weight")
    rows = [[weights[f"{block}.{name}"][c] for name in names] for c in range(channels)]
    return [[*row, weights[f"{block}.back.weight"][:, c]] for c, row in enumerate(rows)]


def joined(weights: dict[str, Tensor], branch: str, first: int, channels: int) -> list[list[Tensor]]:
    return [[weights[f"{branch}.weight"][c], weights["mix.weight"][:, first + c]] for c in range(channels)]


def flattened(weights: dict[str, Tensor]) -> list[list[Tensor]]:
    return [[weights["mix.weight"][c], weights["head.weight"][:, 16 * c : 16 * c + 16]] for c in range(16)]


def by_hand(model: nn.Module) -> tuple[float, dict[str, Tensor]]:
    """The penalty and its gradient, channel by channel with plain numbers."""
    weights = {name: tensor.detach().double() for name, tensor in model.named_parameters()}
    gradient = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    total = 0.0
    tables = zip(_all(weights), _all(gradient), strict=True)
    for channels, slopes in tables:
        squares = [sum(float((part**2).sum()) for part in channel) for channel in channels]
        for square, channel, slope in zip(squares, channels, slopes, strict=True):
            gamma = 2 ** (4 * (max(squares) - square) / (max(squares) - min(squares)))
            total += STRENGTH * gamma * square
            for part, into in zip(channel, slope, strict=True):
                into += 2 * STRENGTH * gamma * part
    return total, gradient


def _all(weights: dict[str, Tensor]) -> list[list[list[Tensor]]]:
    return [
        stream(weights),
        hidden(weights, "first", 32),
        hidden(weights, "second", 40),
        joined(weights, "left", 0, 12),
        joined(weights, "right", 12, 20),
        flattened(weights),
    ]


def test_penalty_and_gradient_are_those_of_a_sum_by_hand(net: nn.Module) -> None:
    pruning_groups = groups.find(net, IMAGE, "head")
    assert len(pruning_groups) == 6
    term = sparsity_penalty.make_penalty(pruning_groups, STRENGTH)(net)
    term.backward()
    expected, gradient = by_hand(net)
    assert term.item() == pytest.approx(expected, rel=1e-5)
    for name, parameter in net.named_parameters():
        given = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(given.double(), gradient[name], rtol=1e-4, atol=1e-7, msg=name)


def test_channels_of_equal_strength_are_penalized_alike(net: nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.5)
    sparsity_penalty.make_penalty(groups.find(net, IMAGE, "head"), STRENGTH)(net).backward()
    torch.testing.assert_close(net.get_parameter("stem.weight").grad, torch.full((24, 3, 3, 3), STRENGTH))


def norms(pruning_groups: Sequence[PruningGroup], model: nn.Module) -> list[Tensor]:
    weights = dict(model.named_parameters())
    return [
        sparsity_penalty._squared_norms(
            sparsity_penalty._weight_slices(g), {n: t.detach() ** 2 for n, t in weights.items()}
        )
        for g in pruning_groups
    ]


def weakest(adapted: FinetunedModel, model: nn.Module) -> float:  # noqa: F811
    """Mean share of its norm that the weakest quarter of each group's channels has kept."""
    dense = adapted.trained.model
    pruning_groups = groups.find(dense, IMAGE, "head")
    shares = []
    for before, after in zip(norms(pruning_groups, dense), norms(pruning_groups, model), strict=True):
        rows = before.argsort()[: len(before) // 4]
        shares.append((after[rows] / before[rows]).mean())
    return float(torch.stack(shares).mean())


def test_weak_channels_shrink_and_the_dense_model_stays(adapted: FinetunedModel, tmp_path: Path) -> None:  # noqa: F811
    before = copy.deepcopy(adapted.trained.model.state_dict())
    sparse_model = sparsify.run(job_of(sparse(), TARGET, out=tmp_path / "sparse"), adapted)
    plain = sparsify.run(job_of(sparse(strength=1e-12), TARGET, out=tmp_path / "plain"), adapted)
    assert weakest(adapted, sparse_model.model) < 0.8 * weakest(adapted, plain.model)
    assert sparse_model.record["weak_after"] >= sparse_model.record["weak_before"]
    assert all(torch.equal(before[name], tensor) for name, tensor in adapted.trained.model.state_dict().items())


def test_the_last_epoch_goes_on_where_there_is_a_penalty(
    adapted: FinetunedModel,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[Tensor] = []
    evaluate = loop.evaluate

    def falling(model: nn.Module, *given: object) -> Score:
        ends.append(model.get_parameter("stem.weight").detach().clone())
        score: Score = evaluate(model, *given)  # type: ignore[arg-type]
        return dataclasses.replace(score, aim=-float(len(ends)))

    monkeypatch.setattr(loop, "evaluate", falling)
    done = sparsify.run(job_of(sparse(), TARGET, out=tmp_path), adapted)
    assert done.record["best_epoch"] == 5
    assert torch.equal(done.model.get_parameter("stem.weight"), ends[-1])


def test_only_what_may_be_narrowed_is_penalized(
    adapted: FinetunedModel,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    penalty = sparsity_penalty.make_penalty

    def noted(pruning_groups: Sequence[PruningGroup], strength: float) -> object:
        seen.extend(group.name for group in pruning_groups)
        return penalty(pruning_groups, strength)

    monkeypatch.setattr(sparsity_penalty, "make_penalty", noted)
    settings = sparse(epochs=1)
    settings = dataclasses.replace(settings, prune=dataclasses.replace(settings.prune, protect=("right",)))
    sparsify.run(job_of(settings, dataclasses.replace(TARGET, alignment=12), out=tmp_path), adapted)
    assert len(seen) == 4
    assert not {"right", "left"} & set(seen)  # protected; and as narrow as the alignment


def test_without_it_nothing_is_done_and_no_key_changes(adapted: FinetunedModel, tmp_path: Path) -> None:  # noqa: F811
    assert sparsify.run(job_of(recipe(1), TARGET, out=tmp_path), adapted) is adapted.trained
    unpruned = dataclasses.replace(sparse(), prune=dataclasses.replace(sparse().prune, ratio=0))
    assert sparsify.run(job_of(unpruned, TARGET, out=tmp_path), adapted) is adapted.trained
    assert not (tmp_path / "sparsify").exists()
    plan = search_pruning.run(job_of(recipe(1), TARGET, out=tmp_path), adapted)
    assert (
        plan.key == search_pruning.run(job_of(sparse(3), TARGET, out=tmp_path), adapted).key
    )  # as long as the model is it


def test_what_is_ranked_and_cut_is_the_sparse_model_and_the_dense_one_teaches(
    adapted: FinetunedModel,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = sparse(2)
    start = sparsify.run(job_of(settings, TARGET, out=tmp_path), adapted)
    plan = search_pruning.run(job_of(settings, TARGET, out=tmp_path), dataclasses.replace(adapted, trained=start))
    train, teachers = loop.train, list[nn.Module | None]()
    monkeypatch.setattr(loop, "train", lambda model, job: teachers.append(job.teacher) or train(model, job))
    once = prune.apply_plan(start, plan.surgery)
    assert torch.equal(once.model.get_parameter("head.bias"), start.model.get_parameter("head.bias"))
    pruned = prune.run(job_of(settings, TARGET, out=tmp_path), start, plan.surgery, adapted)
    small = recover.run(job_of(settings, out=tmp_path), pruned, adapted)
    assert teachers == [adapted.trained.model] * 2
    assert profile.measure_layers(small.model, IMAGE) == profile.measure_layers(once.model, IMAGE)
    plain = recover.run(job_of(settings, out=tmp_path), dataclasses.replace(once, key=adapted.trained.key), adapted)
    assert (
        recover.run(job_of(settings, out=tmp_path), once, adapted).key != plain.key
    )  # other weights, another training


def test_it_is_done_once_and_continues_where_it_was_cut(
    adapted: FinetunedModel,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = sparsify.run(job_of(sparse(), TARGET, out=tmp_path / "whole"), adapted)

    class Killed(Exception):
        pass

    evaluate, calls = loop.evaluate, list[int]()

    def killed(*given: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return evaluate(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "evaluate", killed)
        sparsify.run(job_of(sparse(), TARGET, out=tmp_path / "cut"), adapted)
    again = sparsify.run(job_of(sparse(), TARGET, out=tmp_path / "cut"), adapted)
    assert files.to_jsonable(again.record) == files.to_jsonable(whole.record)
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    third = sparsify.run(job_of(sparse(), TARGET, out=tmp_path / "cut"), adapted)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
        assert torch.equal(third.model.state_dict()[name], tensor), name
