"""Channel ranking: gradients are collected once per model and images, and read back unchanged."""

from pathlib import Path

import pytest
import torch
from conftest import job_of
from torch import nn
from unit.search.test_search_pruning import TARGET, adapted, recipe

from toolchain.config.recipe import PruneSpec
from toolchain.pruning import channel_ranking, gradients
from toolchain.search import search_pruning
from toolchain.training.finetune import FinetunedModel

__all__ = ["adapted"]
FISHER = PruneSpec(criterion="fisher")


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    seen, collect = list[nn.Module](), gradients.collect
    monkeypatch.setattr(gradients, "collect", lambda model, batches: seen.append(model) or collect(model, batches))
    return seen


def test_gradients_come_back_as_they_were(adapted: FinetunedModel, tmp_path: Path, collected: list[nn.Module]) -> None:
    first, again = (channel_ranking.prepare_criterion(adapted, FISHER, tmp_path).gradients for _ in range(2))
    assert len(collected) == 1
    assert first is not None
    assert again is not None
    assert set(first) == set(again) == {name for name, _ in adapted.trained.model.named_parameters()}
    for name, moments in first.items():
        assert torch.equal(moments.mean, again[name].mean)
        assert torch.equal(moments.mean_square, again[name].mean_square)
        assert not torch.equal(moments.mean, moments.mean_square)


def test_two_plans_of_one_model_share_them(adapted: FinetunedModel, tmp_path: Path, collected: list[nn.Module]) -> None:
    search_pruning.run(job_of(recipe("fisher"), TARGET, out=tmp_path), adapted)
    search_pruning.run(job_of(recipe("taylor"), TARGET, out=tmp_path), adapted)
    assert len(collected) == 1


def test_a_criterion_that_reads_weights_alone_costs_none(
    adapted: FinetunedModel, tmp_path: Path, collected: list[nn.Module]
) -> None:
    assert channel_ranking.prepare_criterion(adapted, PruneSpec(criterion="magnitude"), tmp_path).gradients is None
    assert collected == []
