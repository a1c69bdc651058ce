"""The reuse advisor: what it proposes from curves, that training follows it, and that `auto` is settled before training."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import Run, job_of

from toolchain.config.dataset import Domain
from toolchain.config.recipe import AugmentSpec, ModelSpec, Recipe, ReuseSpec, TrainSpec
from toolchain.core.files import to_jsonable
from toolchain.core.types import Interval, Preprocessing
from toolchain.data import decoded_dataset
from toolchain.data.augmentation import resolve
from toolchain.models import blocks, build
from toolchain.report import html_report, markdown
from toolchain.report.sections import reuse_depths
from toolchain.selection import extract_features, reuse_advice, transfer_scores
from toolchain.selection.reuse_advice import DepthAssessment
from toolchain.training import finetune, loop

GLYPHS = ModelSpec(name="squeezenet1_1", weights="zoo:squeezenet1_1_glyphs", mean=(0.5,) * 3, std=(0.5,) * 3)
SHOWN = Preprocessing(image_size=(32, 32), mode="gray", mean=(0.5,) * 3, std=(0.5,) * 3)
TRAIN = TrainSpec(epochs=2, batch_size=8, learning_rate=1e-3)


def around(value: float, half: float = 0.02) -> Interval:
    return Interval(estimate=value, low=value - half, high=value + half, samples=200)


def depths(levels: list[float], gains: list[float]) -> list[DepthAssessment]:
    return [
        DepthAssessment(
            block=f"b{number}", macs=number, levels=value, untrained_levels=value - gain, accuracy=around(0.9),
            untrained=around(0.9), gain=around(0.0),
        )
        for number, (value, gain) in enumerate(zip(levels, gains, strict=True))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("levels", "gains", "per_class", "wanted"),
    [
        ([0.1, 0.2, 0.3], [0.1, 0.1, 0.1], 100, ReuseSpec()),  # the last one tells most: all of it
        ([0.1, 0.3, 0.2], [0.1, 0.1, 0.1], 100, ReuseSpec(keep="b1")),
        ([0.1, 0.2985, 0.3, 0.2], [0.1] * 4, 100, ReuseSpec(keep="b1")),  # as much as the best
        ([0.1, 0.2, 0.3], [0.1, 0.1, -0.1], 100, ReuseSpec(fresh="b2")),
        ([0.1, 0.2, 0.3], [0.1, 0.1, -0.001], 100, ReuseSpec()),  # no worse than random is no reason to give it up
        ([0.1, 0.2, 0.3], [0.1, -0.1, 0.1], 100, ReuseSpec()),  # what is above needs what is below
        ([0.1, 0.3, 0.2], [-0.1, -0.1, 0.1], 100, ReuseSpec(keep="b1", fresh="b0")),  # the architecture only
        ([0.1, 0.2, 0.3], [0.1, 0.1, 0.1], 5, ReuseSpec(freeze="b1")),  # few images
    ],
)
def test_what_is_proposed(levels: list[float], gains: list[float], per_class: float, wanted: ReuseSpec) -> None:
    found, why = reuse_advice.choose_reuse(depths(levels, gains), per_class, 500)
    assert found == wanted
    assert len(why) == 1 + bool(wanted.fresh) + bool(wanted.freeze)


def test_nothing_is_cut_where_nobody_could_tell_what_it_costs() -> None:
    found, why = reuse_advice.choose_reuse(depths([0.3, 0.3, 0.3], [0.1] * 3), 100, 15)
    assert found == ReuseSpec()
    assert why[0].startswith("15 validation images are too few")


def test_of_random_weights_nothing_is_advised(domain: Domain, tmp_path: Path) -> None:
    data = decoded_dataset.load(domain, SHOWN, tmp_path / "data")
    found = reuse_advice.advise("bare", dataclasses.replace(GLYPHS, weights=""), data, tmp_path / "work")
    assert (found.reuse, found.depths) == (ReuseSpec(), ())
    assert reuse_depths.describe(to_jsonable(found)).startswith(
        "bare: the whole network is used: it has random weights"
    )


def test_the_curve_ends_where_the_network_does(domain: Domain, tmp_path: Path) -> None:
    data = decoded_dataset.load(domain, SHOWN, tmp_path / "data")
    found = reuse_advice.advise("glyphs", GLYPHS, data, tmp_path / "work")
    whole = build.build_untrained(dataclasses.replace(GLYPHS, weights=""), 3)
    assert [one.block for one in found.depths][0::8] == ["features.0", "features.12"]
    assert found.depths == tuple(sorted(found.depths, key=lambda one: one.macs))
    assert found.speedup is None  # no target was named
    bare = extract_features.extract("bare", dataclasses.replace(GLYPHS, weights=""), data, tmp_path / "work")
    trained = extract_features.extract("glyphs", GLYPHS, data, tmp_path / "work")
    for depth in found.depths[0::4]:
        assert depth.levels == transfer_scores.compute(trained, tmp_path / "work", depth.block)["levels"]
        assert depth.untrained_levels == transfer_scores.compute(bare, tmp_path / "work", depth.block)["levels"]
    assert whole.features[12] is not None
    shown = reuse_depths.tabulate_depths(to_jsonable(found))
    assert len(shown.rows) == len(found.depths)
    assert "glyphs: " in reuse_depths.describe(to_jsonable(found))
    cut = dataclasses.replace(found, reuse=ReuseSpec(keep="features.4"))
    assert ">cut here<" in reuse_depths.plot_depths(to_jsonable(cut))
    assert "cut here" not in reuse_depths.plot_depths(to_jsonable(dataclasses.replace(found, reuse=ReuseSpec())))


def test_a_network_that_is_no_chain_is_used_whole(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = decoded_dataset.load(domain, SHOWN, tmp_path / "data")
    monkeypatch.setattr(blocks, "find", lambda model, head: ())
    recipe = Recipe(name="r", domain="tiny", model=GLYPHS, reuse="auto")
    settled, found = reuse_advice.resolve_auto_reuse(job_of(recipe, out=tmp_path), data, timed=False)
    assert settled.recipe == dataclasses.replace(recipe, reuse=ReuseSpec())
    assert found is not None
    assert "it is not a chain of blocks" in reuse_depths.describe(to_jsonable(found))
    assert reuse_depths.plot_depths(to_jsonable(found)) == ""


def test_auto_is_settled_and_everything_else_is_left(domain: Domain, tmp_path: Path) -> None:
    data = decoded_dataset.load(domain, SHOWN, tmp_path / "data")
    recipe = Recipe(name="r", domain="tiny", model=GLYPHS, reuse="auto")
    settled, found = reuse_advice.resolve_auto_reuse(job_of(recipe, out=tmp_path), data, timed=False)
    assert found is not None
    assert settled.recipe.reuse == found.reuse
    asked = dataclasses.replace(recipe, reuse=ReuseSpec(keep="features.7"))
    job = job_of(asked, out=tmp_path)
    assert reuse_advice.resolve_auto_reuse(job, data, timed=False) == (job, None)


def test_training_follows_what_is_reused(domain: Domain, tmp_path: Path) -> None:
    data = decoded_dataset.load(domain, SHOWN, tmp_path / "data")
    reuse = ReuseSpec(keep="features.7", freeze="features.4", fresh="features.7")
    recipe = Recipe(name="r", domain="tiny", model=GLYPHS, reuse=reuse, adapt=TRAIN)
    before, _, _ = build.build_with_new_head(GLYPHS, 3, seed=0)
    found = finetune.run(job_of(recipe, out=tmp_path / "work"), data).trained.model
    for name in ("features.0.weight", "features.4.squeeze.weight"):
        assert torch.equal(found.state_dict()[name], before.state_dict()[name])
    assert not torch.equal(
        found.state_dict()["features.6.squeeze.weight"], before.state_dict()["features.6.squeeze.weight"]
    )
    assert isinstance(found.get_submodule("features.9"), torch.nn.Identity)
    assert all(parameter.requires_grad for parameter in found.parameters())
    again = finetune.run(job_of(recipe, out=tmp_path / "work"), data).trained.model
    assert torch.equal(again.features[6].squeeze.weight, found.features[6].squeeze.weight)


def test_frozen_blocks_keep_their_statistics(domain: Domain, tmp_path: Path) -> None:
    data = decoded_dataset.load(domain, SHOWN, tmp_path / "data")
    model, head, _ = build.build_with_new_head(
        ModelSpec(name="mobilenet_v2", arguments={"width_mult": 0.25}), 3, seed=0
    )
    job = loop.TrainingJob(
        dataset=data, spec=TRAIN, augment=resolve(AugmentSpec(), "photo", 30), seed=0, label="t", folder=tmp_path, head=head,
        frozen_modules=("features.0", "features.1"),
    )  # fmt: skip
    loop.train(model, job)
    state = model.state_dict()
    assert state["features.1.conv.0.1.num_batches_tracked"] == 0
    assert state["features.2.conv.0.1.num_batches_tracked"] > 0


def test_the_report_shows_the_curve_and_what_was_done_with_it(run: Run) -> None:
    found = reuse_advice.ReuseAdvice(
        model="net", reuse=ReuseSpec(keep="b1"), why=("because",), depths=tuple(depths([0.1, 0.3, 0.2], [0.1] * 3)),
        speedup=1.5, per_class=40.0,
    )  # fmt: skip
    assert reuse_depths.TITLE not in markdown.render(run.report)
    written = {**run.report, "reuse": {"used": to_jsonable(found.reuse), "advice": to_jsonable(found)}}
    assert f"## {reuse_depths.TITLE}" in markdown.render(written)
    shown = html_report.render(written)
    assert "net: cut after b1, 1.50× as fast as the whole network: because." in shown
    assert shown.count("<svg") == html_report.render(run.report).count("<svg") + 1
    untold = dataclasses.replace(found, depths=(), reuse=ReuseSpec(), why=("nobody can tell",))
    bare = html_report.render(
        {**run.report, "reuse": {"used": to_jsonable(untold.reuse), "advice": to_jsonable(untold)}}
    )
    assert "net: the whole network is used" in bare
    assert "nobody can tell." in bare
