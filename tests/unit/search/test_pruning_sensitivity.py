"""Sensitivity curves: what each group costs when it alone goes, on validation only, never measured twice."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import job_of
from torch import Tensor, nn

from toolchain.config import read_config
from toolchain.config.recipe import AugmentSpec, ModelSpec, PruneSpec, Recipe
from toolchain.core import files, registry
from toolchain.core.types import Preprocessing
from toolchain.data import loader
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.models import profile
from toolchain.pruning import surgery, width_search
from toolchain.pruning.groups import PruningGroup
from toolchain.pruning.surgery import Surgery
from toolchain.report import assemble
from toolchain.search import pruning_sensitivity, search_pruning, sensitivity_survey
from toolchain.search.pruning_plan import PruningPlan
from toolchain.search.sensitivity_curves import Sensitivity, SensitivityCurve
from toolchain.search.sensitivity_survey import SensitivitySurvey
from toolchain.training import loop, trained_model
from toolchain.training.finetune import FinetunedModel

IMAGE = torch.zeros(1, 3, 8, 8)
TARGET = dataclasses.replace(read_config.read_target("cpu"), alignment=4)
RECIPE = Recipe(name="r", domain="d", model=ModelSpec(name="m"), prune=PruneSpec(ratio=0.3, criterion="magnitude"))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Net(nn.Module):
    """Norms with shifts, biases, and a residual block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.block = block
        self.second, self.last = nn.Conv2d(16, 12, 3), nn.BatchNorm2d(12)
        self.head = nn.Linear(12 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(torch.relu(self.norm(self.stem(x))))
        return self.head(torch.relu(self.last(self.second(x))).flatten(1))


def made(block: nn.Module) -> FinetunedModel:
    torch.manual_seed(3)
    net = Net(block).eval()
    with torch.no_grad():
        for norm in (net.norm, net.last):
            norm.bias.normal_()
            norm.running_mean.normal_()
    pixels = torch.randint(0, 255, (90, 8, 8, 3), dtype=torch.uint8)
    preprocess = Preprocessing(image_size=(8, 8), mode="rgb", mean=(0.5,) * 3, std=(0.2,) * 3)
    with torch.no_grad():
        logits = net(loader.normalise(pixels, preprocess))
        net.head.bias -= logits.median(0).values  # both classes are answered
        labels = (logits - logits.median(0).values).argmax(1)
    images = Images(pixels, labels, tuple(Path(str(i)) for i in range(90)), torch.ones(90))
    splits = Splits({"train": images.select(range(30)), "val": images.select(range(30, 90))})
    data = Dataset(("a", "b"), splits, preprocess, "data", tuple(range(0, 30, 2)), "drawn", ())  # type: ignore[arg-type]
    return FinetunedModel(trained_model.TrainedModel(net, "dense", {}, 0.0), "head", data, AugmentSpec(), (), ())


class Splits(dict[str, Any]):
    """Whoever asks for the test split, or for all of them, fails."""

    def __missing__(self, key: str) -> Any:
        pytest.fail(f"looked at {key}")

    def values(self) -> Any:
        pytest.fail("looked at all splits")

    def items(self) -> Any:
        pytest.fail("looked at all splits")


@pytest.fixture
def adapted() -> FinetunedModel:
    return made(nn.Identity())


def planned(adapted: FinetunedModel, work: Path, recipe: Recipe = RECIPE) -> PruningPlan:
    return search_pruning.run(job_of(recipe, TARGET, out=work), adapted)


def found(adapted: FinetunedModel, work: Path, recipe: Recipe = RECIPE) -> Sensitivity:
    curves = pruning_sensitivity.run(job_of(recipe, TARGET, out=work), adapted, planned(adapted, work, recipe))
    assert curves is not None
    return curves


def masked(net: nn.Module, group: PruningGroup, gone: list[int]) -> nn.Module:
    """The same width, but some channels give nothing: neither through a bias nor through a norm's shift."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for member in group.coupled_layers:
            if member.role == "out":
                rows = [i for channel in gone for i in member.channel_indices[channel]]
                for parameter in net.get_submodule(member.module_name).parameters():
                    parameter[rows] = 0
    return net


def test_cutting_answers_as_silencing_the_same_channels_does(adapted: FinetunedModel, tmp_path: Path) -> None:
    survey = SensitivitySurvey(job_of(RECIPE, TARGET, out=tmp_path), adapted, Surgery())
    curves = {curve.name: curve for curve in found(adapted, tmp_path).curves}
    apart = 0
    for index, group in enumerate(survey.space.groups):
        for point in curves[group.name].points:
            gone = survey.space.channel_order[index][: round(point.share * group.channels)].tolist()
            net = masked(adapted.trained.model, group, gone)
            held = adapted.dataset.splits["val"]
            right = loop.predict(net, held, adapted.dataset.preprocess).argmax(1) == held.labels
            assert point.accuracy.estimate == pytest.approx(right.float().mean().item())
            apart += not right.all()
    assert apart >= 3  # else all would be equal whatever is cut


def test_only_validation_is_looked_at_and_the_dense_model_stays_as_it_was(
    adapted: FinetunedModel, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in adapted.trained.model.state_dict().items()}
    curves = found(adapted, tmp_path)  # `Splits` fails where the test split is asked for
    assert curves.dense.samples == 60
    assert curves.dense.estimate == 1.0
    assert all(torch.equal(before[name], tensor) for name, tensor in adapted.trained.model.state_dict().items())


def test_channels_that_are_all_zero_cost_nothing(tmp_path: Path) -> None:
    adapted = made(nn.Identity())
    net = adapted.trained.model
    with torch.no_grad():
        for layer in (net.second, net.last):
            layer.weight.zero_()
            layer.bias.zero_()
    curve = next(c for c in found(adapted, tmp_path).curves if c.name == "second")
    assert len(curve.points) >= 2
    assert {(p.drop.estimate, p.accuracy.estimate) for p in curve.points} == {(0.0, curve.points[0].accuracy.estimate)}


def test_what_was_measured_before_an_exception_is_not_measured_again(
    adapted: FinetunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, whole = planned(adapted, tmp_path), found(adapted, tmp_path / "other")
    predict, seen, cut_at = loop.predict, list[int](), iter((3, 99))

    def counting(limit: int) -> Iterator[None]:
        for _ in range(limit):
            yield
        raise KeyboardInterrupt

    def watched(model: nn.Module, *rest: Any) -> Tensor:
        next(tickets)
        seen.append(sum(p.numel() for p in model.parameters()))
        return predict(model, *rest)

    monkeypatch.setattr(loop, "predict", watched)
    tickets = counting(next(cut_at))
    with pytest.raises(KeyboardInterrupt):
        pruning_sensitivity.run(job_of(RECIPE, TARGET, out=tmp_path), adapted, plan)
    assert len(seen) == 3
    tickets = counting(next(cut_at))
    assert pruning_sensitivity.run(job_of(RECIPE, TARGET, out=tmp_path), adapted, plan) == whole
    assert len(seen) == 1 + sum(len(curve.points) for curve in whole.curves)
    assert pruning_sensitivity.run(job_of(RECIPE, TARGET, out=tmp_path), adapted, plan) == whole  # from its record
    assert len(seen) == 1 + sum(len(curve.points) for curve in whole.curves)
    assert not list(tmp_path.rglob(pruning_sensitivity.POINTS_FILE))


def test_the_plans_own_share_is_on_every_curve_that_it_cuts(adapted: FinetunedModel, tmp_path: Path) -> None:
    plan = planned(adapted, tmp_path)
    left = {
        layer.name: 1 - layer.outputs / before.outputs
        for layer, before in zip(plan.layers_after, plan.layers_before, strict=True)
    }
    curves = found(adapted, tmp_path).curves
    assert any(curve.cut for curve in curves)
    for curve in curves:
        assert curve.cut == pytest.approx(left[curve.name])
        assert not curve.cut or curve.cut in [point.share for point in curve.points]
        assert all(0 < point.share <= RECIPE.prune.max_share for point in curve.points)
        assert all(round(point.share * curve.channels) % 4 == 0 for point in curve.points)


@pytest.mark.parametrize("name", registry.list_modules("criteria"))
def test_channels_go_in_the_order_in_which_the_plan_took_them(
    name: str, adapted: FinetunedModel, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(RECIPE, prune=dataclasses.replace(RECIPE.prune, criterion=name))
    plan = planned(adapted, tmp_path, recipe).surgery
    space = SensitivitySurvey(job_of(recipe, TARGET, out=tmp_path), adapted, plan).space
    for group, ranked in zip(space.groups, space.channel_order, strict=True):
        gone = round(sensitivity_survey.compute_pruned_share(group, plan) * group.channels)
        kept = plan.keep.get(f"{group.name}.weight", {}).get(0, range(group.channels))
        assert set(kept) == set(ranked[gone:].tolist())


def test_a_plans_share_that_is_not_a_usual_one_is_measured_beside_them(adapted: FinetunedModel, tmp_path: Path) -> None:
    fine = dataclasses.replace(TARGET, alignment=1)
    space = SensitivitySurvey(job_of(RECIPE, fine, out=tmp_path), adapted, Surgery()).space
    kept = tuple(15 if group.name == "stem" else group.channels for group in space.groups)
    plan = PruningPlan(surgery.build(adapted.trained.model, space, width_search.Subnetwork(kept)), "fine", (), (), None)
    curves = pruning_sensitivity.run(job_of(RECIPE, fine, out=tmp_path), adapted, plan)
    assert curves is not None
    shares = {curve.name: [point.share for point in curve.points] for curve in curves.curves}
    assert shares == {"stem": [0.0625, 0.25, 0.5, 0.75], "second": [0.25, 0.5, 0.75]}


def test_the_most_sensitive_come_first(adapted: FinetunedModel, tmp_path: Path) -> None:
    curves = found(adapted, tmp_path).curves
    assert [curve.severity for curve in curves] == sorted((curve.severity for curve in curves), reverse=True)
    assert curves[0].severity > curves[-1].severity


def test_protected_groups_are_named_as_such_and_not_measured(adapted: FinetunedModel, tmp_path: Path) -> None:
    guarded = dataclasses.replace(RECIPE, prune=dataclasses.replace(RECIPE.prune, protect=("stem",), ratio=0.1))
    curves = {curve.name: curve for curve in found(adapted, tmp_path, guarded).curves}
    assert (curves["stem"].why, curves["stem"].points, curves["stem"].cut) == ("protected", (), 0.0)
    assert curves["second"].points


def test_a_group_too_narrow_for_the_alignment_is_named_as_such(adapted: FinetunedModel, tmp_path: Path) -> None:
    wide = dataclasses.replace(TARGET, alignment=12)  # of 16 and 12 channels
    curves = pruning_sensitivity.run(job_of(RECIPE, wide, out=tmp_path), adapted, planned(adapted, tmp_path))
    assert curves is not None
    assert [curve.name for curve in curves.curves if curve.why == "too narrow"] == ["second"]


def test_when_time_is_up_the_rest_is_named(
    adapted: FinetunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sensitivity_survey, "MAX_SECONDS", 0.0)
    assert {curve.why for curve in found(adapted, tmp_path).curves} == {"no time"}
    assert "no time for" in capsys.readouterr().out


def test_a_network_that_cannot_run_narrower_is_named_and_fails_no_job(
    adapted: FinetunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, predict = planned(adapted, tmp_path), loop.predict

    def picky(model: nn.Module, *rest: Any) -> Tensor:
        if model.second.weight.shape[0] != 12:
            raise RuntimeError("shape '[-1, 12, 4, 4]' is invalid")
        return predict(model, *rest)

    monkeypatch.setattr(loop, "predict", picky)
    curves = pruning_sensitivity.run(job_of(RECIPE, TARGET, out=tmp_path), adapted, plan)
    assert curves is not None
    assert {curve.name: curve.why for curve in curves.curves} == {"stem": "", "second": "does not run"}


def test_a_large_network_is_measured_on_fewer_images(
    adapted: FinetunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity_survey, "MAX_MACS", 0.0)
    monkeypatch.setattr(sensitivity_survey, "MIN_IMAGES", 20)
    curves = found(adapted, tmp_path)
    assert {curves.dense.samples, *(p.drop.samples for c in curves.curves for p in c.points)} == {20}


def test_a_residual_block_is_left_out_whole(tmp_path: Path) -> None:
    adapted = made(Block())
    curves = {curve.name: curve for curve in found(adapted, tmp_path).curves}
    block = curves["block"]
    assert (block.kind, block.cut, [point.share for point in block.points]) == ("block", 0.0, [1.0])
    held, net = adapted.dataset.splits["val"], copy.deepcopy(adapted.trained.model)
    net.block = nn.Identity()
    right = loop.predict(net, held, adapted.dataset.preprocess).argmax(1) == held.labels
    assert block.points[0].accuracy.estimate == pytest.approx(right.float().mean().item())
    shallow = dataclasses.replace(RECIPE, prune=dataclasses.replace(RECIPE.prune, depth=False))
    assert not [curve for curve in found(adapted, tmp_path, shallow).curves if curve.kind == "block"]


def test_channels_inside_a_dropped_block_are_all_gone_and_those_around_it_are_not(tmp_path: Path) -> None:
    adapted = made(Block())
    space = SensitivitySurvey(job_of(RECIPE, TARGET, out=tmp_path), adapted, Surgery()).space
    stream = next(g for g in space.groups if any(m.module_name == "stem" for m in g.coupled_layers))
    inside = dataclasses.replace(
        stream, coupled_layers=tuple(m for m in stream.coupled_layers if m.module_name == "block.body")
    )
    kept = tuple(12 if group is stream else group.channels for group in space.groups)
    plan = surgery.build(adapted.trained.model, space, width_search.Subnetwork(kept, frozenset({"block"})))
    assert stream.name == "block.body"  # which is gone, so another layer has to tell
    assert sensitivity_survey.compute_pruned_share(stream, plan) == 0.25
    assert sensitivity_survey.compute_pruned_share(inside, plan) == 1.0
    assert sensitivity_survey.compute_pruned_share(stream, Surgery(dropped=("block",))) == 0.0


def test_nothing_is_measured_where_nothing_is_cut_or_nobody_asks(adapted: FinetunedModel, tmp_path: Path) -> None:
    whole = dataclasses.replace(RECIPE, prune=dataclasses.replace(RECIPE.prune, ratio=0.0))
    silent = dataclasses.replace(RECIPE, prune=dataclasses.replace(RECIPE.prune, sensitivity=False))
    for recipe in (whole, silent):
        plan = planned(adapted, tmp_path, recipe)
        assert pruning_sensitivity.run(job_of(recipe, TARGET, out=tmp_path), adapted, plan) is None
    assert not (tmp_path / "sensitivity").exists()


def test_asking_for_it_does_not_plan_anew(adapted: FinetunedModel, tmp_path: Path) -> None:
    silent = dataclasses.replace(RECIPE, prune=dataclasses.replace(RECIPE.prune, sensitivity=False))
    assert planned(adapted, tmp_path, silent).key == planned(adapted, tmp_path).key
    assert files.to_jsonable(silent.prune)["sensitivity"] is False


def test_a_part_of_validation_keeps_the_classes_shares() -> None:
    labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 100)
    rows = sensitivity_survey.sample_stratified(labels, 50)
    assert labels[rows].bincount().tolist() == [35, 10, 5]
    assert len(set(rows)) == 50
    assert rows == sensitivity_survey.sample_stratified(labels, 50)
    assert sensitivity_survey.sample_stratified(labels, 5000) == list(range(1000))


def test_the_report_has_the_curve_with_the_dense_model_first(adapted: FinetunedModel, tmp_path: Path) -> None:
    curves = found(adapted, tmp_path)
    curve: SensitivityCurve = next(c for c in curves.curves if c.cut)
    row = assemble.sensitivity_curve(curve, curves.dense)
    assert row["shares"] == [0.0, *(point.share for point in curve.points)]
    assert row["accuracies"] == [1.0, *(point.accuracy.estimate for point in curve.points)]
    assert all(
        low <= middle <= high for low, middle, high in zip(row["low"], row["accuracies"], row["high"], strict=True)
    )
    assert (row["name"], row["cut"], row["images"], row["split"]) == (curve.name, curve.cut, 60, "val")
    assert profile.measure_layers(adapted.trained.model, IMAGE)[0].name in {
        name for c in curves.curves for name in c.layers
    }
    empty = assemble.sensitivity_curve(dataclasses.replace(curve, points=(), why="no time"), curves.dense)
    assert (empty["shares"], empty["accuracies"], empty["drops"], empty["why"]) == ([], [], [], "no time")
