"""Fine-tuning by itself: every seed on the test split, balance without a second long training, a larger teacher."""

import dataclasses
from pathlib import Path

import pytest
from conftest import job_of, tiny_recipe

from toolchain import pipeline
from toolchain.config.dataset import Domain
from toolchain.config.recipe import JoinSpec, ModelSpec, Recipe, TrainSpec
from toolchain.core import files
from toolchain.data import prepare
from toolchain.report.pages import adapt
from toolchain.training import few_images, finetune, loop


def recipe(**more: object) -> Recipe:
    train = TrainSpec(epochs=4, batch_size=16, learning_rate=1e-3)
    return dataclasses.replace(tiny_recipe(), adapt=train, **more)  # type: ignore[arg-type]


def test_all_seeds_are_reported_and_the_best_on_validation_goes_on(domain: Domain, tmp_path: Path) -> None:
    written = pipeline.adapt(job_of(recipe(seeds=2), domain=domain, out=tmp_path))
    assert written == files.read_json(tmp_path / "tiny" / "adapt.json")
    assert [row["seed"] for row in written["test"]] == [0, 1]
    mean = sum(row["accuracy"]["estimate"] for row in written["test"]) / 2
    assert written["mean_accuracy"]["estimate"] == pytest.approx(mean)
    seeds = written["adapt"]["seeds"]
    best = max(seeds, key=lambda seed: seed["validation"])
    assert best["chosen"]
    assert sum(seed["chosen"] for seed in seeds) == 1
    tables = adapt.tabulate(written)
    assert [row[0] for row in tables[0].rows] == [
        "seed 0", "seed 1", "mean of 2 seeds", "linear probe", "gain over the linear probe, paired",
    ]  # fmt: skip
    assert tables[0].columns[0] == "On 24 test images"


def test_a_balance_shares_the_long_training(domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = prepare.run(job_of(recipe(), domain=domain, out=tmp_path))
    finetune.run(job_of(recipe(), out=tmp_path), data)
    trained: list[tuple[int, float]] = []
    train = loop.train

    def count_training(model: object, job: loop.TrainingJob, **more: bool) -> loop.TrainingResult:
        trained.append((job.spec.epochs, job.balance))
        return train(model, job, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train", count_training)
    finetuned = finetune.run(job_of(recipe(balance=0.5), out=tmp_path), data)
    assert trained == [(1, 0.5)]
    finetune.run(job_of(recipe(balance=0.5), out=tmp_path), data)
    assert len(trained) == 1
    assert [epoch["epoch"] for epoch in finetuned.trained.record["history"]] == [1, 2, 3, 4, 5]
    assert 0 <= finetuned.trained.record["best_epoch"] <= 4


def test_a_teacher_is_fine_tuned_first_and_changes_the_student(domain: Domain, tmp_path: Path) -> None:
    data, _ = prepare.run(job_of(recipe(), domain=domain, out=tmp_path))
    alone = finetune.run(job_of(recipe(), out=tmp_path), data)
    teacher = ModelSpec(name="squeezenet1_1", weights="zoo:squeezenet1_1_glyphs", mean=(0.4,) * 3, std=(0.6,) * 3)
    learning = dataclasses.replace(recipe(teacher=teacher), adapt=dataclasses.replace(recipe().adapt, distill=0.5))
    taught = finetune.run(job_of(learning, out=tmp_path), data)
    assert taught.trained.key != alone.trained.key
    again = finetune.run(job_of(learning, out=tmp_path), data)
    assert again.trained.key == taught.trained.key
    assert len(list((tmp_path / "work" / "adapt").iterdir())) == 3  # alone, the teacher, the student


def test_a_small_dataset_trains_for_at_least_least_steps() -> None:
    spec = TrainSpec(epochs=10, batch_size=32, least_steps=120)
    assert few_images.extend_epochs(spec, 60).epochs == 60
    assert few_images.extend_epochs(spec, 10_000).epochs == 10
    assert few_images.extend_epochs(dataclasses.replace(spec, epochs=0), 60).epochs == 0


def test_a_budget_that_the_test_split_cannot_decide_is_reported_before_compression(
    domain: Domain, tmp_path: Path
) -> None:
    hard = dataclasses.replace(recipe(), budget=dataclasses.replace(recipe().budget, accuracy_drop=0.01))
    (note,) = pipeline.adapt(job_of(hard, domain=domain, out=tmp_path))["notes"]
    assert "24 test images cannot show a drop of 1 points" in note
    assert "about 3,923 images would decide" in note


def test_joined_datasets_are_read_by_the_name_of_their_domain(domain: Domain, tmp_path: Path) -> None:
    joined = JoinSpec(domain="image-folder", path=domain.path)
    _, joins = prepare.run(job_of(recipe(join=(joined,)), domain=domain, out=tmp_path))
    assert joins[0].leaked_images == 15 + 24  # all of its own validation and test
