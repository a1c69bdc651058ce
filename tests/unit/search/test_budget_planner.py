"""Budgets of bytes and of work, and the size of the pictures: what is met, what is refused, what is not tried."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import job_of
from torch import Tensor, nn

from toolchain.config import read_config
from toolchain.config.recipe import AugmentSpec, Budget, ModelSpec, PruneSpec, QuantizeSpec, Recipe, TrainSpec
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.export import prune_graph
from toolchain.models import build, profile
from toolchain.pruning import search_space as options_module
from toolchain.pruning import surgery
from toolchain.pruning.criteria import magnitude
from toolchain.pruning.surgery import Surgery
from toolchain.quantization.placement import Placement
from toolchain.search import file_size_model, latency_search, search_pruning
from toolchain.search.architecture_timing import ArchitectureTimer, ShippedForm
from toolchain.training import input_size, loop
from toolchain.training import trained_model as trained_module
from toolchain.training.finetune import FinetunedModel

IMAGE = torch.zeros(1, 3, 32, 32)
TARGET = dataclasses.replace(read_config.read_target("cpu"), alignment=4)


def net(pooled: bool = True) -> nn.Module:
    torch.manual_seed(0)
    end = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
    if not pooled:
        end = (nn.Flatten(), nn.Linear(64 * 36, 2))  # type: ignore[assignment]
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.Conv2d(64, 96, 3, 2), nn.ReLU(), nn.Conv2d(96, 64, 2), nn.ReLU(), *end
    ).eval()


def adapted(model: nn.Module) -> FinetunedModel:
    pixels, labels = torch.randint(0, 255, (20, 32, 32, 3), dtype=torch.uint8), torch.arange(20) % 2
    images = Images(pixels, labels, tuple(Path(str(i)) for i in range(20)), torch.ones(20))
    preprocess = Preprocessing(image_size=(32, 32), mode="rgb", mean=(0.5,) * 3, std=(0.2,) * 3)
    data = Dataset(("a", "b"), {"train": images, "val": images}, preprocess, "data", (0, 1), "drawn", ())
    return FinetunedModel(
        trained_module.TrainedModel(model, "dense", {}, 0.0), str(len(list(model)) - 1), data, AugmentSpec(), (), ()
    )  # type: ignore[arg-type]


def recipe(**prune: float) -> Recipe:
    train = TrainSpec(epochs=8, batch_size=10)
    return Recipe(
        name="r", domain="d", model=ModelSpec(name="m"), prune=PruneSpec(**prune), recover=train,  # type: ignore[arg-type]
        quantize=QuantizeSpec(search_seconds=0),
    )  # fmt: skip


def smaller(whole: FinetunedModel, size: tuple[int, int]) -> FinetunedModel:
    """`resize.run` without files: a corner of each picture will do."""
    if size == whole.dataset.preprocess.image_size:
        return whole
    teacher = dataclasses.replace(whole.trained, model=input_size.UpsampledInputModel(whole.trained.model, (32, 32)))
    images = {
        name: dataclasses.replace(one, pixels=one.pixels[:, : size[0], : size[1]])
        for name, one in whole.dataset.splits.items()
    }
    preprocess = dataclasses.replace(whole.dataset.preprocess, image_size=size)
    return dataclasses.replace(
        whole, trained=teacher, dataset=dataclasses.replace(whole.dataset, splits=images, preprocess=preprocess)
    )


@pytest.mark.parametrize(
    ("whole", "least", "found"),
    [
        ((120, 72), 0.65, [(96, 64), (80, 48)]),
        ((120, 72), 2 / 3, [(96, 64), (80, 48)]),
        ((224, 224), 0.5, [(184, 184), (152, 152), (112, 112)]),
        ((32, 32), 0.9, []),
        ((8, 8), 0.25, []),
        ((28, 28), 0.65, [(24, 24)]),
        ((64, 64), 0.65, [(56, 56)]),  # two thirds would be rounded to 40, which is less than was allowed
    ],
)
def test_smaller_sizes_are_multiples_of_eight_down_to_the_least(
    whole: tuple[int, int], least: float, found: list[tuple[int, int]]
) -> None:
    assert input_size.list_smaller_sizes(whole, least) == found


def test_a_teacher_sees_its_own_size() -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape == (2, 3, 32, 24)
            return x.mean((1, 2, 3))

    x = torch.full((2, 3, 16, 16), 0.25)
    torch.testing.assert_close(input_size.UpsampledInputModel(Asks(), (32, 24))(x), torch.full((2,), 0.25))


def test_a_budget_of_bytes_is_met_by_the_files_that_would_ship(tmp_path: Path) -> None:
    whole = adapted(net())
    plan = search_pruning.run(job_of(recipe(), TARGET, out=tmp_path, budget=Budget(size="0.6x")), whole)
    timer = ArchitectureTimer(whole.trained.model, IMAGE, TARGET, ShippedForm("int8", Placement()), tmp_path)
    share = timer.measure_size_bytes(plan.surgery) / timer.measure_size_bytes(Surgery())
    assert 0.5 < share <= 0.6
    assert plan.latency_fit is None


def test_smaller_pictures_are_timed_as_such_beside_the_dense_model_at_its_own(tmp_path: Path) -> None:
    timer = ArchitectureTimer(net(), IMAGE, TARGET, ShippedForm("int8", Placement()), tmp_path)
    small = timer.with_input(torch.zeros(1, 3, 24, 16))
    assert list(small.graph.graph.inputs[0].shape) == [1, 3, 24, 16]
    assert (small.dense_side.shape, tuple(small.example_input.shape)) == ((1, 3, 32, 32), (1, 3, 24, 16))
    assert list(timer.graph.graph.inputs[0].shape) == [1, 3, 32, 32]


def test_bytes_are_known_of_architectures_that_were_not_made(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build.build_untrained(ModelSpec(name="mobilenet_v2", arguments={"width_mult": 0.35}), 5).eval()
    timer = ArchitectureTimer(model, IMAGE, TARGET, ShippedForm("int8", Placement()), tmp_path)
    options = options_module.build_search_space(
        model, IMAGE, head=build.find_head(model, 5), spec=PruneSpec(), alignment=8, criterion=magnitude.score,
        blocks=prune_graph.find_droppable_blocks(timer.graph),
    )  # fmt: skip
    cost, others = (
        file_size_model.fit(timer, model, options),
        latency_search.sample_architectures(options, 12)[file_size_model.RANDOM_ARCHITECTURES :],
    )
    for choice in others:
        real = timer.measure_size_bytes(surgery.build(model, options, choice))
        assert cost(options.remaining_layers(choice)) == pytest.approx(real, rel=0.01)


def test_a_plan_for_files_of_another_form_is_made_anew(tmp_path: Path) -> None:
    whole = adapted(net())
    asked = dataclasses.replace(recipe(), quantize=QuantizeSpec(search_seconds=0, float_modules=("2",)))
    in_float = dataclasses.replace(TARGET, precisions=("f32",))
    plans = [
        search_pruning.run(job_of(one, target, out=tmp_path, budget=Budget(size="40 kB")), whole)
        for one, target in ((recipe(), in_float), (recipe(), TARGET), (asked, TARGET))
    ]
    assert len({plan.key for plan in plans}) == 3
    assert [plan.dense_precision for plan in plans] == ["f32", "int8", "int8"]
    assert (
        profile.total_parameters(plans[0].layers_after)
        < profile.total_parameters(plans[2].layers_after)
        < profile.total_parameters(plans[1].layers_after)
    )


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(size="2 kB"), r"size budget cannot be met .* allows 1,960 of .* the nearest"),
        (Budget(macs="0.01x"), r"macs budget cannot be met by pruning: it allows .* max_share"),
        (Budget(parameters="10"), r"parameters budget cannot be met by pruning: it allows 10 of"),
    ],
)
def test_a_budget_that_cannot_be_met_names_the_nearest(budget: Budget, said: str, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=said):
        search_pruning.run(job_of(recipe(), TARGET, out=tmp_path, budget=budget), adapted(net()))


def test_every_size_meets_the_budget_and_the_best_on_validation_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, trained, folders = adapted(net()), [], set()
    scores = {32: 0.5, 24: 0.9, 16: 0.7}

    def train(model: nn.Module, job: loop.TrainingJob, **_: bool) -> loop.TrainingResult:
        job.folder.mkdir()
        folders.add(job.folder)
        side = job.dataset.preprocess.image_size[0]
        trained.append(
            (side, job.spec.epochs, profile.total_macs(profile.measure_layers(model, torch.zeros(1, 3, side, side))))
        )
        return loop.TrainingResult((), 0, scores[side], 0.0)

    monkeypatch.setattr(loop, "train", train)
    limit = 0.45 * profile.total_macs(profile.measure_layers(whole.trained.model, IMAGE))
    asked = recipe(resolution=0.5)
    plan = search_pruning.run(job_of(asked, TARGET, out=tmp_path, budget=Budget(macs="0.45x")), whole, resize=lambda size: smaller(whole, size))  # fmt: skip
    assert [(side, epochs) for side, epochs, _ in trained] == [(32, 1), (24, 1), (16, 1)]
    assert all(work <= limit for *_, work in trained)
    assert trained[0][2] > 0.8 * limit
    assert plan.reduced_image_size == (24, 24)
    assert plan.differs_from_dense
    assert [(one.size, one.reached, one.images) for one in plan.size_trials] == [
        ((32, 32), 0.5, 20), ((24, 24), 0.9, 20), ((16, 16), 0.7, 20)
    ]  # fmt: skip
    assert profile.total_macs(plan.layers_after) == trained[1][2]
    again = search_pruning.run(job_of(asked, TARGET, out=tmp_path, budget=Budget(macs="0.45x")), whole, resize=lambda size: smaller(whole, size))  # fmt: skip
    assert (again.reduced_image_size, again.size_trials, again.surgery) == (
        plan.reduced_image_size,
        plan.size_trials,
        plan.surgery,
    )
    assert len(trained) == 3
    assert not any(folder.exists() for folder in folders)
    search_pruning.run(
        job_of(asked, TARGET, out=tmp_path, budget=Budget(macs="0.4x")), whole, resize=lambda size: smaller(whole, size)
    )
    names = {folder.name for folder in folders}  # another plan does not go on with this one's training
    assert [sum(f"-{side}x" in name for name in names) for side in (32, 24, 16)] == [2, 2, 1]  # 16x16 cuts nothing


def test_sizes_that_a_model_does_not_take_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Auxiliary(nn.Module):
        """Has a branch in training that needs more than eight pixels."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.branch = net(), nn.Conv2d(3, 2, 20)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.branch(x)
            answer: Tensor = self.body(x)
            return answer

    whole, tried = dataclasses.replace(adapted(net()), head="body.8"), []
    whole = dataclasses.replace(whole, trained=dataclasses.replace(whole.trained, model=Auxiliary().eval()))
    monkeypatch.setattr(loop, "train", lambda *_, **__: loop.TrainingResult((), 0, 0.5, 0.5))

    def resize(size: tuple[int, int]) -> FinetunedModel:
        tried.append(size)
        return smaller(whole, size)

    search_pruning.run(
        job_of(recipe(resolution=0.5), TARGET, out=tmp_path, budget=Budget(macs="0.45x")), whole, resize=resize
    )
    assert tried == [(32, 32), (24, 24)]


def test_a_model_of_one_size_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = adapted(net(pooled=False))
    plan = search_pruning.run(job_of(recipe(resolution=0.5), TARGET, out=tmp_path, budget=Budget(macs="0.6x")), whole, resize=lambda size: smaller(whole, size))  # fmt: skip
    assert (plan.reduced_image_size, plan.size_trials) == (None, ())
    assert "no images smaller than 32x32" in capsys.readouterr().out


def test_smaller_pictures_beside_a_ratio_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"Remove prune\.ratio = 0"):
        search_pruning.run(
            job_of(recipe(resolution=0.5, ratio=0), TARGET, out=tmp_path, budget=Budget(macs="0.5x")), adapted(net())
        )


def test_smaller_pictures_without_a_budget_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"resolution = 0\.5 needs a budget to search for\. .* --latency"):
        search_pruning.run(job_of(recipe(resolution=0.5, ratio=0.3), TARGET, out=tmp_path), adapted(net()))
