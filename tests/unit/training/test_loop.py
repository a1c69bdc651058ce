"""Training: an interrupted run resumes to the very same weights, and a diverging one stops and loses nothing."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from toolchain.config.dataset import Domain
from toolchain.config.recipe import AugmentSpec, TrainSpec
from toolchain.config.target import QuantScheme
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data import decoded_dataset as data
from toolchain.data.splits import Split
from toolchain.quantization import pt2e
from toolchain.quantization.placement import Placement
from toolchain.training import loop, training_state

PREPROCESS = Preprocessing(image_size=(12, 10), mode="gray", mean=(0.5,) * 3, std=(0.5,) * 3)
SPEC = TrainSpec(epochs=4, batch_size=16, learning_rate=3e-3, average=0.9)


@pytest.fixture
def dataset(domain: Domain, tmp_path: Path) -> data.Dataset:
    return data.load(domain, PREPROCESS, tmp_path / "cache")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d((3, 1)), nn.Flatten(),
        nn.Linear(24, 3),
    )  # fmt: skip


def job(dataset: data.Dataset, folder: Path, spec: TrainSpec = SPEC, **more: object) -> loop.TrainingJob:
    augment = AugmentSpec(horizontal_flip=True)
    return loop.TrainingJob(dataset=dataset, spec=spec, augment=augment, seed=1, label="test", folder=folder, **more)  # type: ignore[arg-type]


def test_training_learns_and_keeps_its_best_epoch(dataset: data.Dataset, tmp_path: Path) -> None:
    net = model()
    done = loop.train(net, job(dataset, tmp_path, dataclasses.replace(SPEC, epochs=12)))
    assert done.best_accuracy >= 0.9
    assert loop.evaluate(net, dataset.splits["val"], PREPROCESS).accuracy == done.best_accuracy


class Interrupted(Exception):
    pass


def test_an_interrupted_run_resumes_to_the_same_weights(dataset: data.Dataset, tmp_path: Path) -> None:
    whole = model()
    loop.train(whole, job(dataset, tmp_path / "whole"))

    def interrupt(_: nn.Module, epoch: int, training: bool) -> None:
        if epoch == 2 and training:
            raise Interrupted

    first = model()
    with pytest.raises(Interrupted):
        loop.train(first, job(dataset, tmp_path / "cut", before_phase=interrupt))
    second = model()
    done = loop.train(second, job(dataset, tmp_path / "cut"))
    assert len(done.history) == SPEC.epochs
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_an_interrupted_quantized_run_resumes_too(dataset: data.Dataset, tmp_path: Path) -> None:
    def graph() -> nn.Module:
        prepared, _ = pt2e.prepare(model(), torch.zeros(1, 3, 12, 10), Placement(), QuantScheme())
        pt2e.configure_fake_quantize(prepared, ranges=True, rounding=True)
        prepared(torch.randn(8, 3, 12, 10).clamp(-1, 1))
        return prepared

    torch.manual_seed(0)
    start = graph()
    weights = {k: v.clone() for k, v in start.state_dict().items()}
    whole, second = graph(), graph()
    for net in (whole, second):
        net.load_state_dict(weights)
    loop.train(whole, job(dataset, tmp_path / "whole"))

    def interrupt(_: nn.Module, epoch: int, training: bool) -> None:
        if epoch == 1 and training:
            raise Interrupted

    with pytest.raises(Interrupted):
        loop.train(start, job(dataset, tmp_path / "cut", before_phase=interrupt))
    loop.train(second, job(dataset, tmp_path / "cut"))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_loss_that_becomes_nan_stops_at_once_and_keeps_the_last_good_epoch(
    dataset: data.Dataset, tmp_path: Path
) -> None:
    steps: list[int] = []

    class Poisoned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                steps.append(1)
            return self.net(x) * (float("nan") if len(steps) == 8 and self.training else 1.0)

    with pytest.raises(ToolchainError, match="the loss became nan in epoch 2.*Lower learning_rate"):
        loop.train(Poisoned(), job(dataset, tmp_path))
    assert len(steps) == 8
    again = training_state.TrainingState(net := Poisoned(), SPEC, 1, tmp_path / loop.CHECKPOINT_FILE)
    again.resume()
    assert again.epoch == 1
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())


def test_a_diverging_training_stops_and_keeps_the_best_weights_so_far(
    dataset: data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * (1e6 if self.training else 1.0)

    with pytest.raises(ToolchainError, match=r"training diverged: the mean loss of epoch 1 is .* Lower learning_rate"):
        loop.train(Loud(), job(dataset, tmp_path / "a"))
    net = Loud()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    kept = loop.train(net, job(dataset, tmp_path / "b"), keep_start=True)
    assert kept.best_epoch == -1
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert "the best weights so far are kept" in capsys.readouterr().out


def test_distillation_among_large_logits_may_start_high(dataset: data.Dataset, tmp_path: Path) -> None:
    class Sure(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.net = model()
            torch.manual_seed(seed)
            nn.init.normal_(self.net[-1].weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * 1e3

    spec = dataclasses.replace(SPEC, distill=1.0)
    kept = loop.train(Sure(1), job(dataset, tmp_path, spec, teacher=Sure(2)))
    assert kept.history[0].loss > loop.DIVERGED_LOSS
    assert len(kept.history) == SPEC.epochs


def test_a_penalty_may_be_of_any_size(dataset: data.Dataset, tmp_path: Path) -> None:
    heavy = dataclasses.replace(job(dataset, tmp_path), penalty=lambda net: next(net.parameters()).sum() * 0 + 1e4)
    assert len(loop.train(model(), heavy).history) == SPEC.epochs


def test_patience_stops_a_training_that_no_longer_improves(dataset: data.Dataset, tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, epochs=30, learning_rate=1e-9, patience=2, average=0.0, schedule="constant")
    assert len(loop.train(model(), job(dataset, tmp_path, spec)).history) < 30


def mislabelled(dataset: data.Dataset, *splits: Split) -> data.Dataset:
    wrong = {s: dataclasses.replace(dataset.splits[s], labels=(dataset.splits[s].labels + 1) % 3) for s in splits}
    return dataclasses.replace(dataset, splits={**dataset.splits, **wrong})


def test_the_start_is_kept_when_training_makes_it_worse(dataset: data.Dataset, tmp_path: Path) -> None:
    good = model()
    loop.train(good, job(dataset, tmp_path / "good", dataclasses.replace(SPEC, epochs=12)))
    before = {name: tensor.clone() for name, tensor in good.state_dict().items()}
    done = loop.train(good, job(mislabelled(dataset, "train"), tmp_path / "ruin"), keep_start=True)
    assert done.best_epoch == -1
    assert all(torch.equal(tensor, before[name]) for name, tensor in good.state_dict().items())


def test_a_start_is_given_up_only_for_what_beats_it_by_the_margin(dataset: data.Dataset, tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, epochs=12)
    done = loop.train(model(), job(dataset, tmp_path / "some", spec), keep_start=True, margin=0.1)
    assert done.best_epoch >= 0
    net = model()
    kept = loop.train(net, job(dataset, tmp_path / "all", spec), keep_start=True, margin=1.0)
    assert kept.best_epoch == -1
    assert loop.evaluate(net, dataset.splits["val"], PREPROCESS).accuracy == kept.best_accuracy < 0.9


def test_batch_norm_can_keep_its_statistics_while_its_scales_learn(dataset: data.Dataset, tmp_path: Path) -> None:
    net = model()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    loop.train(net, job(dataset, tmp_path, dataclasses.replace(SPEC, epochs=1, average=0.0, freeze_norm=True)))
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not [name for name in changed if "running" in name or "tracked" in name]
    assert {"1.weight", "1.bias", "0.weight"} <= changed


def test_only_the_head_learns_in_frozen_epochs(dataset: data.Dataset, tmp_path: Path) -> None:
    net = model()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    spec = dataclasses.replace(SPEC, epochs=1, freeze_epochs=1, average=0.0)
    loop.train(net, job(dataset, tmp_path, spec, head="6"))
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"6.weight", "6.bias"}
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_distill_weighs_the_teacher_against_the_labels(dataset: data.Dataset, tmp_path: Path) -> None:
    teacher = model()  # trained to predict the next class
    wrong = mislabelled(dataset, "train", "val")
    loop.train(teacher, job(wrong, tmp_path / "teacher", dataclasses.replace(SPEC, epochs=12, average=0.0)))

    def student_accuracy(distill: float) -> float:
        student = model()
        spec = dataclasses.replace(SPEC, epochs=10, distill=distill, average=0.0)
        loop.train(student, job(dataset, tmp_path / str(distill), spec, teacher=teacher))
        return loop.evaluate(student, dataset.splits["train"], PREPROCESS).accuracy

    assert student_accuracy(1.0) < 0.6 < 0.9 < student_accuracy(0.0)


@pytest.mark.parametrize("exported", [False, True])
def test_the_running_average_is_that_of_each_tensor_by_name(
    dataset: data.Dataset, tmp_path: Path, exported: bool
) -> None:
    net = model()
    if exported:
        net, _ = pt2e.prepare(net, torch.zeros(1, 3, 12, 10), Placement(), QuantScheme())
        pt2e.configure_fake_quantize(net, ranges=True, rounding=True)
        net(torch.randn(8, 3, 12, 10))
    state = training_state.TrainingState(net, SPEC, 1, tmp_path / "none")
    assert state.averaged_model is not None
    with torch.no_grad():
        for tensor in state.averaged_model.state_dict().values():
            tensor.add_(1)  # far from the weights, so that only averaging brings it back
    for _ in range(400):  # the weights do not change, so their average must converge to them
        state.finish_step(net)
    averaged = state.averaged_model.state_dict()
    assert set(averaged) == set(net.state_dict())
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(averaged[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_schedules_rise_and_fall_as_named() -> None:
    rates = [loop.learning_rate_at(TrainSpec(warmup=0.25, learning_rate=1.0), step, 100) for step in range(100)]
    assert max(rates) == rates[25] == 1.0
    assert rates[0] < 0.05
    assert rates[99] < 0.01
    falling = [loop.learning_rate_at(TrainSpec(schedule="cosine", learning_rate=1.0), step, 10) for step in range(10)]
    assert falling == sorted(falling, reverse=True)


def test_the_rarer_class_is_favoured_as_far_as_the_balance_asks(dataset: data.Dataset, tmp_path: Path) -> None:
    train = dataset.splits["train"]
    rows = [row for row, label in enumerate(train.labels.tolist()) if label != 2 or row % 9 == 0]
    few = dataclasses.replace(dataset, splits={**dataset.splits, "train": train.select(rows)})

    def rare_class_probability(balance: float) -> float:
        net = model()
        spec = dataclasses.replace(SPEC, epochs=6, average=0.0)
        loop.train(net, job(few, tmp_path / str(balance), spec, balance=balance))
        return loop.predict(net, dataset.splits["val"], PREPROCESS).softmax(1)[:, 2].mean().item()

    assert rare_class_probability(0.0) + 0.05 < rare_class_probability(1.0)


def test_the_best_epoch_is_chosen_by_accuracy_or_balanced_accuracy() -> None:
    labels = torch.tensor([0] * 8 + [1] * 2)
    lazy, fair = torch.zeros(10, 2), torch.zeros(10, 2)
    lazy[:, 0] = 1.0  # always the frequent class: 80 %, balanced 50 %
    fair[[0, 1, 2, 3, 8, 9], [0, 0, 0, 0, 1, 1]] = fair[4:8, 1] = 1.0  # 60 %, balanced 75 %
    assert loop.score(lazy, labels) > loop.score(fair, labels)
    assert loop.score(lazy, labels, 1.0) < loop.score(fair, labels, 1.0)
    assert loop.score(fair, labels).balanced == pytest.approx(0.75)


def test_layers_further_from_the_head_learn_slower(dataset: data.Dataset, tmp_path: Path) -> None:
    def moved(decay: float) -> list[float]:
        net = model()
        before = {name: tensor.clone() for name, tensor in net.named_parameters()}
        spec = dataclasses.replace(SPEC, epochs=1, average=0.0, layer_decay=decay, weight_decay=0.0)
        loop.train(net, job(dataset, tmp_path / str(decay), spec))
        now = dict(net.named_parameters())
        return [(now[name] - before[name]).abs().mean().item() for name in ("0.weight", "6.weight")]

    even, slower = moved(1.0), moved(0.1)
    assert slower[0] < 0.1 * even[0]
    assert slower[1] > 0.5 * even[1]


def test_blocks_are_counted_from_the_head() -> None:
    shares = [share for _, share in training_state.group_by_block(model(), 0.5)]
    assert shares == [0.25, 0.5, 1.0]
