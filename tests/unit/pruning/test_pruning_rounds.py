"""Pruning in rounds: ends where the plan says, ranks anew on the way, is one plan all the same, and resumes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import job_of
from torch import Tensor, nn

from toolchain.config import read_config
from toolchain.config.recipe import AugmentSpec, ModelSpec, PruneSpec, Recipe, TrainSpec
from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.models import profile
from toolchain.pruning import gradients, groups, prune, pruning_rounds, recover, search_space, surgery, width_search
from toolchain.pruning.criteria import magnitude
from toolchain.pruning.prune import PrunedModel
from toolchain.pruning.surgery import Surgery
from toolchain.search import search_pruning
from toolchain.search.pruning_plan import PruningPlan
from toolchain.training import loop
from toolchain.training.finetune import FinetunedModel
from toolchain.training.trained_model import TrainedModel

IMAGE = torch.zeros(1, 3, 8, 8)
TARGET = dataclasses.replace(read_config.read_target("cpu"), alignment=4)


class Block(nn.Module):
    """A residual block with a depthwise layer, which can be left out."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, hidden, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.back = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(torch.relu(self.depthwise(torch.relu(self.norm(self.inner(x))))))


class Net(nn.Module):
    """Residual blocks, a concatenation and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.first = Block(24, 32)
        self.second = Block(24, 40)
        self.left = nn.Conv2d(24, 12, 1)
        self.right = nn.Conv2d(24, 20, 3, padding=1)
        self.mix = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.mix(torch.cat([self.left(x), self.right(x)], 1))).flatten(1))


@pytest.fixture
def adapted() -> FinetunedModel:
    torch.manual_seed(0)
    labels = torch.arange(48) % 2
    pixels = torch.randint(0, 120, (48, 8, 8, 3), dtype=torch.uint8)
    pixels[labels == 1, :4] += 100  # the upper half is brighter

    def images(rows: range) -> Images:
        picked = list(rows)
        return Images(pixels[picked], labels[picked], tuple(Path(str(i)) for i in picked), torch.ones(len(picked)))

    splits = {"train": images(range(32)), "val": images(range(32, 48))}
    preprocess = Preprocessing(image_size=(8, 8), mode="rgb", mean=(0.5,) * 3, std=(0.2,) * 3)
    data = Dataset(("a", "b"), splits, preprocess, "data", tuple(range(0, 32, 2)), "drawn", ())  # type: ignore[arg-type]
    return FinetunedModel(
        TrainedModel(Net().eval(), "dense", {"history": []}, 0.0), "head", data, AugmentSpec(), (), ()
    )


def recipe(count: int, criterion: str = "magnitude", epochs: int = 5) -> Recipe:
    return Recipe(
        name="r", domain="d", model=ModelSpec(name="m"),
        prune=PruneSpec(ratio=0.6, criterion=criterion, rounds=count),
        recover=TrainSpec(epochs=epochs, batch_size=8, learning_rate=3e-3, distill=0.5),
    )  # fmt: skip


def planned(adapted: FinetunedModel, settings: Recipe, work: Path) -> PruningPlan:
    return search_pruning.run(job_of(settings, TARGET, out=work), adapted)


def pruned(adapted: FinetunedModel, settings: Recipe, work: Path, plan: PruningPlan | None = None) -> PrunedModel:
    plan = plan or planned(adapted, settings, work)
    return prune.run(job_of(settings, TARGET, out=work), adapted.trained, plan.surgery, adapted)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def dropping(plan: PruningPlan, adapted: FinetunedModel, block: str) -> PruningPlan:
    """The plan without one block."""
    space = search_space.build_search_space(
        adapted.trained.model, IMAGE, head="head", spec=PruneSpec(), alignment=4, criterion=magnitude.score
    )
    widths = tuple(
        8
        if group.channels > 8 and any(m.module_name in plan.surgery.attributes for m in group.coupled_layers)
        else group.channels
        for group in space.groups
    )
    dropped = surgery.build(adapted.trained.model, space, width_search.Subnetwork(widths, frozenset({block})))
    return dataclasses.replace(plan, surgery=dropped)


def only_mix(adapted: FinetunedModel, channels: int) -> Surgery:
    """A plan that narrows the layer `mix` and nothing else."""
    net = adapted.trained.model
    space = search_space.build_search_space(
        net, IMAGE, head="head", spec=PruneSpec(), alignment=4, criterion=magnitude.score
    )
    kept = tuple(channels if group.name == "mix" else group.channels for group in space.groups)
    return surgery.build(net, space, width_search.Subnetwork(kept))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[loop.TrainingJob]:
    """Every training that is begun."""
    jobs: list[loop.TrainingJob] = []
    train = loop.train

    def noted(model: nn.Module, job: loop.TrainingJob, **more: bool) -> loop.TrainingResult:
        jobs.append(job)
        return train(model, job, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train", noted)
    return jobs


# --- two plans as one ---------------------------------------------------------------------------------------


def cut(model: nn.Module, kept: Callable[[int], int], *dropped: str) -> Surgery:
    space = search_space.build_search_space(
        model, IMAGE, head="head", spec=PruneSpec(), alignment=4, criterion=magnitude.score, blocks=("first", "second")
    )
    choice = width_search.Subnetwork(tuple(kept(group.channels) for group in space.groups), frozenset(dropped))
    return surgery.build(model, space, choice)


def test_two_plans_as_one_replay_identically(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = Net().eval()
    first = cut(net, lambda channels: channels - 4, "first")
    middle = surgery.apply(net, first)
    with torch.no_grad():  # another order of importance than before
        for parameter in middle.parameters():
            parameter.mul_(torch.rand_like(parameter))
    second = cut(middle, lambda channels: max(4, channels - 8))
    both = surgery.compose(first, second)
    end = surgery.apply(middle, second)
    files.write_json(tmp_path / "plan.json", both)
    fresh = surgery.apply(Net().eval(), surgery.read(tmp_path / "plan.json"))
    fresh.load_state_dict(end.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(fresh(x), end(x))
    # the same channels of the whole model, not only as many
    straight = surgery.apply(surgery.apply(net, first), second)
    for name, tensor in surgery.apply(net, both).state_dict().items():
        assert torch.equal(tensor, straight.state_dict()[name]), name


def test_what_a_second_plan_drops_takes_the_first_ones_cuts_with_it() -> None:
    net = Net().eval()
    first = cut(net, lambda channels: channels - 4)
    assert any(name.startswith("second.") for name in first.keep)
    second = Surgery(dropped=("second",))
    both = surgery.compose(first, second)
    assert both.dropped == ("second",)
    assert shapes(surgery.apply(net, both)) == shapes(surgery.apply(surgery.apply(net, first), second))
    nested = surgery.compose(Surgery(dropped=("second.depthwise",)), second)
    assert shapes(surgery.apply(net, nested)) == shapes(surgery.apply(net, second))


def test_nothing_before_or_behind_a_plan_changes_nothing() -> None:
    plan = cut(Net().eval(), lambda channels: channels - 4)
    for both in (surgery.compose(plan, Surgery()), surgery.compose(Surgery(), plan)):
        assert files.to_jsonable(both) == files.to_jsonable(plan)


# --- how far each round goes --------------------------------------------------------------------------------


def test_widths_fall_by_the_same_share_and_end_at_the_plan() -> None:
    assert [pruning_rounds.interpolate_width(256, 32, share / 3, 16) for share in (1, 2, 3)] == [128, 64, 32]
    for whole, final, alignment in ((320, 48, 16), (72, 16, 16), (24, 24, 16), (100, 12, 4), (40, 24, 16)):
        widths = [pruning_rounds.interpolate_width(whole, final, share / 7, alignment) for share in range(1, 8)]
        assert widths == sorted(widths, reverse=True)
        assert widths[0] > final or whole == final or whole - final == alignment
        assert widths[-1] == final
        assert all(width % alignment == 0 or width in (whole, final) for width in widths)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("block", ["", "first", "second"])
def test_the_architecture_is_the_planned_one_and_one_plan_leads_to_it(
    adapted: FinetunedModel, tmp_path: Path, count: int, block: str
) -> None:
    settings = recipe(count)
    plan = planned(adapted, settings, tmp_path)
    plan = dropping(plan, adapted, block) if block else plan
    once = pruned(adapted, recipe(1), tmp_path, plan)
    result = pruned(adapted, settings, tmp_path, plan)
    assert shapes(result.model) == shapes(once.model)
    assert str(result.model) == str(once.model)
    assert result.surgery.dropped == plan.surgery.dropped == ((block,) if block else ())
    fresh = surgery.apply(Net().eval(), result.surgery)
    assert profile.measure_layers(fresh, IMAGE) == profile.measure_layers(once.model, IMAGE)
    fresh.load_state_dict(result.model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fresh(x), result.model.eval()(x))


def test_the_way_leads_over_widths_in_between(adapted: FinetunedModel, tmp_path: Path) -> None:
    settings = recipe(3)
    plan = planned(adapted, settings, tmp_path)
    result = pruned(adapted, settings, tmp_path, plan)
    sizes = [
        sum(t.numel() for t in training.model.state_dict().values())
        for training in (adapted.trained, *result.round_trainings)
    ]
    sizes.append(sum(t.numel() for t in result.model.state_dict().values()))
    assert len(sizes) == 4
    assert sizes == sorted(set(sizes), reverse=True)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_channels_are_ranked_anew_on_the_model_that_has_recovered(
    adapted: FinetunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, criterion: str
) -> None:
    train, settings = loop.train, recipe(2, criterion)
    seen: list[dict[str, torch.Size]] = []
    collect = gradients.collect
    monkeypatch.setattr(
        gradients, "collect", lambda model, batches: seen.append(shapes(model)) or collect(model, batches)
    )

    def other(model: nn.Module, job: loop.TrainingJob) -> loop.TrainingResult:
        done = train(model, job)
        with torch.no_grad():  # its first filters are the weakest now
            for parameter in model.get_submodule("mix").parameters():
                parameter[:4] = 0.0
        return done

    monkeypatch.setattr(loop, "train", other)
    plan = dataclasses.replace(planned(adapted, recipe(2), tmp_path), surgery=only_mix(adapted, 8))
    result = pruned(adapted, settings, tmp_path, plan)
    middle = result.round_trainings[0].model
    assert middle.get_submodule("mix").out_channels == 12
    assert torch.equal(result.model.get_submodule("mix").weight, middle.get_submodule("mix").weight[4:])
    assert seen == ([] if criterion == "magnitude" else [shapes(adapted.trained.model), shapes(middle)])


def test_groups_that_share_a_layers_outputs_are_told_apart() -> None:
    def group(first: int, channels: int) -> groups.PruningGroup:
        positions = tuple((index,) for index in range(first, first + channels))
        weight = groups.ParameterRows("weight", torch.ones(channels, 1))
        return groups.PruningGroup(channels, (groups.CoupledLayer("a", "conv", "out", positions, (weight,)),))

    def kept(*rows: range) -> Surgery:
        return Surgery(keep={"a.weight": {0: [index for row in rows for index in row]}})

    now = (group(0, 4), group(4, 8))
    ranked = tuple(torch.arange(remaining.channels) for remaining in now)
    options = width_search.SearchSpace((), now, ranked, ranked, (), 1, 1.0)
    done, plan = kept(range(4), range(8, 16)), kept(range(2), range(8, 14))
    choice = pruning_rounds.choose_widths(options, (group(0, 8), group(8, 8)), plan, done, 1.0)
    assert choice.kept_channels == (2, 6)


def test_a_model_that_cannot_be_traced_any_more_is_refused(adapted: FinetunedModel) -> None:
    net = adapted.trained.model
    whole = groups.find(net, IMAGE, "head")
    space = search_space.build_search_space(
        net, IMAGE, head="head", spec=PruneSpec(), alignment=4, criterion=magnitude.score
    )
    plan = cut(net, lambda channels: channels - 4)
    fewer = dataclasses.replace(space, groups=space.groups[1:], channel_order=space.channel_order[1:])
    with pytest.raises(ToolchainError, match="can no longer be traced .* rounds = 1"):
        pruning_rounds.choose_widths(fewer, whole, plan, Surgery(), 0.5)


# --- epochs and records -------------------------------------------------------------------------------------


def test_the_rounds_share_the_epochs_of_one_recovery(
    adapted: FinetunedModel, tmp_path: Path, trained: list[loop.TrainingJob]
) -> None:
    settings = recipe(3, epochs=8)
    result = pruned(adapted, settings, tmp_path)
    small = recover.run(job_of(settings, out=tmp_path), result, adapted)
    assert [job.spec.epochs for job in trained] == [2, 2, 4]
    assert [job.label for job in trained] == ["prune: round 1", "prune: round 2", "recover"]
    assert all(job.teacher is adapted.trained.model for job in trained)
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3, 4]
    assert len(small.record["history"]) == 4


@pytest.mark.parametrize(("channels", "dropped", "begins"), [(12, (), 2), (16, ("first",), 1)])
def test_a_round_that_cuts_nothing_leaves_its_epochs_to_the_last(
    adapted: FinetunedModel,
    tmp_path: Path,
    trained: list[loop.TrainingJob],
    channels: int,
    dropped: tuple[str, ...],
    begins: int,
) -> None:
    settings, plan = recipe(3, epochs=8), planned(adapted, recipe(3), tmp_path)
    way = dataclasses.replace(only_mix(adapted, channels), dropped=dropped)  # 16 channels, 16, 12 and 12; or a block
    result = pruned(adapted, settings, tmp_path, dataclasses.replace(plan, surgery=way))
    recover.run(job_of(settings, out=tmp_path), result, adapted)
    assert [(job.label, job.spec.epochs) for job in trained] == [(f"prune: round {begins}", 2), ("recover", 6)]


def test_a_killed_run_does_no_finished_round_again(
    adapted: FinetunedModel, tmp_path: Path, trained: list[loop.TrainingJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(3, "taylor", epochs=8)
    whole = pruned(adapted, settings, tmp_path / "whole")
    trained.clear()

    class Killed(Exception):
        pass

    train, ranked = loop.train, list[int]()
    choice = pruning_rounds.choose_widths
    monkeypatch.setattr(pruning_rounds, "choose_widths", lambda *given: ranked.append(1) or choice(*given))

    def killed(model: nn.Module, job: loop.TrainingJob) -> loop.TrainingResult:
        if "round 2" not in job.label:
            return train(model, job)

        def cut(_: nn.Module, epoch: int, training: bool) -> None:
            if epoch == 1 and training:
                raise Killed

        return train(model, dataclasses.replace(job, before_phase=cut))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", killed)
        with pytest.raises(Killed):
            pruned(adapted, settings, tmp_path / "cut")
    assert len(ranked) == 2
    trained.clear()
    again = pruned(adapted, settings, tmp_path / "cut")
    assert [job.label for job in trained] == ["prune: round 2"]
    assert len(ranked) == 3  # the round that was killed had been ranked
    assert files.to_jsonable(again.surgery) == files.to_jsonable(whole.surgery)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    trained.clear()
    third = pruned(adapted, settings, tmp_path / "cut")
    assert (trained, len(ranked), third.key, third.history) == ([], 3, again.key, again.history)


def test_rounds_change_no_plan_and_one_round_changes_no_key(adapted: FinetunedModel, tmp_path: Path) -> None:
    plans = [planned(adapted, recipe(count), tmp_path).key for count in (1, 4)]
    assert plans[0] == plans[1]
    settings = recipe(1)
    result = pruned(adapted, settings, tmp_path)
    small = recover.run(job_of(settings, out=tmp_path), result, adapted)
    assert not (tmp_path / "prune").exists()
    assert small.key == files.digest(
        recover.VERSION, "dense", result.surgery, settings.recover, adapted.augment, settings.balance, settings.seed
    )  # as before there were rounds
    in_rounds = recover.run(job_of(recipe(2), out=tmp_path), pruned(adapted, recipe(2), tmp_path), adapted)
    assert in_rounds.key != small.key


def test_without_a_plan_there_is_nothing_to_do(
    adapted: FinetunedModel, tmp_path: Path, trained: list[loop.TrainingJob]
) -> None:
    settings = dataclasses.replace(recipe(3), prune=PruneSpec(ratio=0, rounds=3))
    assert recover.run(job_of(settings, out=tmp_path), pruned(adapted, settings, tmp_path), adapted) is adapted.trained
    assert trained == []


def test_the_model_that_is_cut_stays_as_it_was(adapted: FinetunedModel, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in adapted.trained.model.state_dict().items()}
    recover.run(job_of(recipe(2), out=tmp_path), pruned(adapted, recipe(2), tmp_path), adapted)
    assert all(torch.equal(before[name], t) for name, t in adapted.trained.model.state_dict().items())
