"""Accuracy control: the block that does the harm goes back to float, and only as far as latency allows."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import job_of
from torch import Tensor, nn

from toolchain.config.recipe import AugmentSpec, Budget, ModelSpec, Recipe
from toolchain.config.target import QuantScheme, Target
from toolchain.core.types import Preprocessing
from toolchain.data.decoded_dataset import Dataset, Images
from toolchain.quantization import bias_correction, float_restorer, placement, pt2e, ranges
from toolchain.quantization.placement import Placement
from toolchain.quantization.placement_result import PlacementResult, TimedPlacement
from toolchain.quantization.quantize import Network, QuantizedModel
from toolchain.search import accuracy_control, place
from toolchain.training import loop
from toolchain.training import trained_model as trained_module
from toolchain.training.finetune import FinetunedModel

IMAGE = torch.zeros(1, 3, 8, 8)
TARGET = Target(name="t", runtime="onnxruntime")
HARMED = "middle"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(torch.relu(self.middle(torch.relu(self.first(x))))).flatten(1))


@pytest.fixture
def data() -> Dataset:
    torch.manual_seed(0)
    pixels = torch.randint(0, 255, (120, 8, 8, 3), dtype=torch.uint8)
    with torch.no_grad():
        labels = model()(pixels.permute(0, 3, 1, 2) / 255).argmax(1)
    images = Images(pixels, labels, tuple(Path(str(i)) for i in range(120)), torch.ones(120))
    preprocess = Preprocessing(image_size=(8, 8), mode="rgb", mean=(0.0,) * 3, std=(1.0,) * 3)
    return Dataset(
        ("a", "b", "c", "d"), dict.fromkeys(("train", "val", "test"), images), preprocess, "k", (0, 1), "d", ()
    )


def model() -> nn.Module:
    """A net whose middle layer loses everything in integers: a weight that never counts is a thousand times the others."""
    torch.manual_seed(1)
    net = Net().eval()
    with torch.no_grad():
        net.first.weight[0], net.first.bias[0] = 0.0, -1.0  # its rectified output is always zero
        net.middle.weight[:, 0, 1, 1] = 100.0
        net.head.bias.sub_(
            net.head(net.last(torch.relu(net.middle(torch.relu(net.first(torch.rand(200, 3, 8, 8)))))).flatten(1)).mean(
                0
            )
        )
    return net


def harmed(data: Dataset) -> QuantizedModel:
    graph, planned = pt2e.prepare(model(), IMAGE, Placement(), QuantScheme())
    images = data.splits["val"].pixels.permute(0, 3, 1, 2) / 255
    found = ranges.collect_histograms(graph, [images])
    ranges.calibrate(graph, found, "minmax")
    trained = trained_module.TrainedModel(graph, "quantized", {"best_epoch": -1}, 0.0)
    return QuantizedModel(trained, Placement(), planned, "ptq", "ptq")


def placed(speedup: float = 2.0, floating: float = 1.0) -> PlacementResult:
    def one(label: str, precision: str, fast: float) -> TimedPlacement:
        return TimedPlacement(label=label, placement=Placement(), precision=precision, speedup=fast, latency_ms=1.0)

    return PlacementResult(Placement(), "p", (one("all", "int8", speedup), one("float", "f32", floating)), 1.0, "all")


def run(data: Dataset, tmp_path: Path, budget: Budget, where: PlacementResult):
    adapted = FinetunedModel(
        trained_module.TrainedModel(model(), "dense", {}, 0.0), "head", data, AugmentSpec(), (), ()
    )
    family = Network("dense", adapted.trained, harmed(data), data)
    job = job_of(Recipe(name="r", domain="tiny", model=ModelSpec(name="m")), TARGET, out=tmp_path, budget=budget)
    networks, found = accuracy_control.run(job, {"dense": family}, {"dense": where}, adapted)
    return networks["dense"].quantized, found


def test_the_harmful_block_goes_back_to_float_and_the_budget_is_kept(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "measure_speedup", lambda *_: 1.8)
    own, found = run(data, tmp_path, Budget(accuracy_drop=0.05), placed())
    assert found.needed
    assert found.before > 0.2
    assert found.after <= 0.05
    assert [one.block for one in found.ranking if one.returned] == [HARMED] == [found.ranking[0].block]
    assert own.placement == Placement(float_modules=(HARMED,))
    assert HARMED not in own.planned_layers
    answers = loop.predict(own.graph, data.splits["val"], data.preprocess).argmax(1)
    assert float((answers == data.splits["val"].labels).float().mean()) >= 0.95
    again, same = run(data, tmp_path, Budget(accuracy_drop=0.05), placed())
    assert (again.placement, again.trained.key, same) == (own.placement, own.trained.key, found)


@pytest.mark.parametrize(
    ("speedup", "budget", "why"),
    [
        (0.9, Budget(accuracy_drop=0.05), "not worth it"),
        (1.5, Budget(accuracy_drop=0.05, speedup=1.7), "below the budget of 1.70x"),
    ],
)
def test_latency_is_never_given_up_for_it(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speedup: float, budget: Budget, why: str
) -> None:
    monkeypatch.setattr(place, "measure_speedup", lambda *_: speedup)
    own, found = run(data, tmp_path, budget, placed())
    assert own.placement == Placement()
    assert why in found.why
    assert not [one for one in found.ranking if one.returned]
    assert found.after == found.before


def test_nothing_is_changed_where_the_budget_is_kept_or_there_is_none(data: Dataset, tmp_path: Path) -> None:
    own, found = run(data, tmp_path, Budget(accuracy_drop=0.99), placed())
    assert (own.placement, found.needed, found.ranking) == (Placement(), False, ())
    assert run(data, tmp_path, Budget(), placed())[1] is None
    assert run(data, tmp_path, Budget(accuracy_drop=0.0), placed(0.5))[1] is None  # float ships, integers do not


@pytest.mark.parametrize("correction", ["bias", "norm"])
def test_a_layer_that_goes_back_to_float_loses_its_correction(data: Dataset, correction: str) -> None:
    quantized, plain = harmed(data), model()
    images = data.splits["val"].pixels.permute(0, 3, 1, 2) / 255
    bias_correction.correct_layers(quantized.graph, images, match_std=correction == "norm")
    record = {"best_epoch": -1, "starts": [{"correction": correction}]}
    quantized = dataclasses.replace(quantized, trained=dataclasses.replace(quantized.trained, record=record))
    network = Network("dense", trained_module.TrainedModel(plain, "dense", {}, 0.0), quantized, data)
    restorer = float_restorer.prepare(network, quantized, QuantScheme())
    expected = loop.predict(plain, data.splits["val"], data.preprocess)

    def error(chosen: Placement) -> float:
        return float(
            (loop.predict(restorer.restore(chosen), data.splits["val"], data.preprocess) - expected).abs().max()
        )

    assert error(placement.ALL_FLOAT) < 1e-4
    assert error(Placement(float_modules=("first", "middle", "last"))) < 0.2 * error(Placement())


def test_a_cheaper_block_goes_before_a_dearer_one_that_does_the_same_harm(data: Dataset) -> None:
    network, where = (
        Network("dense", trained_module.TrainedModel(model(), "dense", {}, 0.0), harmed(data), data),
        placed(),
    )
    assert network.quantized is not None
    quantized = float_restorer.prepare(network, network.quantized, QuantScheme())
    reference = accuracy_control.ValidationReference(data, loop.predict(model(), data.splits["val"], data.preprocess))
    first = accuracy_control.rank_blocks(quantized, reference, where)[0]
    dear = [dataclasses.replace(where.timed_placements[0], label=f"{first.block} in float", speedup=2.0 / np.exp(5.0))]
    slow = dataclasses.replace(where, timed_placements=(*where.timed_placements, *dear))
    assert slow.slowdown(first.block) == pytest.approx(np.exp(5.0))
    costs = {one.block: one.slowdown for one in accuracy_control.rank_blocks(quantized, reference, slow)}
    assert costs[first.block] == pytest.approx(np.exp(5.0))
