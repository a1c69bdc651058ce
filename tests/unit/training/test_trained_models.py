"""Models that are trained already: their head and class order are kept, and images without labels learn from them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import own_models
import pytest
import torch
from conftest import draw, job_of, tiny_recipe
from safetensors.torch import save_file

from toolchain import pipeline
from toolchain.config import overrides, read_config
from toolchain.config.dataset import Domain
from toolchain.config.job import Job
from toolchain.config.recipe import ModelSpec, PruneSpec, Recipe, TrainSpec
from toolchain.core.errors import ToolchainError
from toolchain.data import prepare
from toolchain.models import build, class_order
from toolchain.models.sources import python_file
from toolchain.pruning.surgery import Surgery
from toolchain.report import assemble
from toolchain.search import place, search_pruning
from toolchain.training import finetune, loop, pseudo_labels


@pytest.fixture(autouse=True)
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the trial in a process of its own, which takes seconds."""
    monkeypatch.setattr(python_file, "_try_in_process", lambda *_: None)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Path]:
    with own_models.forget_imports(tmp_path):
        yield own_models.write(tmp_path / "trained")


def trained_spec(net: Path, function: str = "residual", **more: object) -> ModelSpec:
    weights = own_models.save_checkpoint(net, function, net.with_name(f"{function}.pth"), **more)
    return ModelSpec(name=f"{net}:{function}", weights=str(weights), head="keep", mean=(0.5,) * 3, std=(0.5,) * 3)


def trained_job(spec: ModelSpec, domain: Domain, out: Path) -> Job:
    recipe = dataclasses.replace(tiny_recipe(), model=spec, adapt=TrainSpec(epochs=0))
    return class_order.resolve(job_of(recipe, domain=domain, out=out))


def test_a_trained_model_keeps_all_its_weights(net: Path, domain: Domain, tmp_path: Path) -> None:
    job = trained_job(trained_spec(net), domain, tmp_path)
    dense = finetune.run(job, prepare.run(job)[0])
    for name, tensor in own_models.trained(net, "residual").state_dict().items():
        torch.testing.assert_close(dense.trained.model.state_dict()[name], tensor, msg=name)
    assert dense.trained.record["best_epoch"] == -1
    assert 0 <= dense.trained.record["best_accuracy"] <= 1


def test_a_function_may_return_the_trained_model(net: Path) -> None:
    spec = ModelSpec(name=f"{net}:residual", head="keep")
    assert build.build_trained(spec, 3)[1] == "head"
    with pytest.raises(ToolchainError, match="resnet18 has no weights, so there is no trained head to keep"):
        build.build_trained(ModelSpec(name="resnet18", head="keep"), 3)


def test_weights_that_do_not_cover_the_model_are_refused(net: Path, tmp_path: Path) -> None:
    state = own_models.build(net, "residual").state_dict()
    del state["parts.0.body.1.running_mean"]
    save_file(state, tmp_path / "part.safetensors")
    spec = ModelSpec(name=f"{net}:residual", weights=str(tmp_path / "part.safetensors"), head="keep")
    with pytest.raises(ToolchainError, match=r"lacks 1 of the tensors of .*:residual \(parts.0.body.1.running_mean\)"):
        build.build_trained(spec, 3)
    del state["head.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ToolchainError, match="the head head of part.safetensors has no values in the checkpoint"):
        build.build_trained(spec, 3)


@pytest.mark.parametrize(("function", "classes"), [("residual", 4), ("branches", 3)])
def test_another_number_of_classes_asks_for_a_labels_file(net: Path, function: str, classes: int) -> None:
    with pytest.raises(ToolchainError, match=rf"{classes} (outputs|classes).*--labels FILE with one name a line"):
        build.build_trained(trained_spec(net, function), classes)


def test_classes_come_in_the_order_of_the_checkpoint(net: Path, domain: Domain, tmp_path: Path) -> None:
    spec = trained_spec(net, class_to_idx={"cat": 0, "ant": 1, "bee": 2})
    job = trained_job(spec, domain, tmp_path)
    data, _ = prepare.run(job)
    assert data.classes == ("cat", "ant", "bee")
    first = data.splits["test"].files[0]
    assert data.classes[data.splits["test"].labels[0]] == first.parent.name


def test_images_may_show_some_of_the_model_s_classes_and_no_others(net: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\nmoth\nant\n")
    spec = dataclasses.replace(trained_spec(net), labels=str(labels))
    some = Domain(
        name="tiny", path=str(draw(tmp_path / "some", {"ant": 20, "cat": 20})), mode="gray", image_size=(16, 16)
    )
    named = overrides._use_model_classes(some, spec)
    data, _ = prepare.run(trained_job(spec, named, tmp_path))
    assert data.classes == ("cat", "moth", "ant")
    assert set(data.splits["test"].labels.tolist()) == {0, 2}
    draw(tmp_path / "some", {"wasp": 20})
    with pytest.raises(ToolchainError, match="class folders that the model does not know: wasp; .* cat, moth, ant"):
        prepare.run(trained_job(spec, named, tmp_path))


def test_labels_without_the_trained_head_are_refused() -> None:
    with pytest.raises(ToolchainError, match=r"labels l.txt name the classes of a trained head.* give --compress-only"):
        overrides._use_model_classes(Domain(name="tiny"), ModelSpec(name="resnet18", labels="l.txt"))


def unlabelled(folder: Path, counts: dict[str, int], **more: str) -> Domain:
    draw(folder, counts)
    return Domain(name="tiny", unlabelled=str(folder), mode="gray", image_size=(16, 16), calibration_images=8, **more)  # type: ignore[arg-type]


def test_images_without_labels_get_the_dense_model_s_predictions(net: Path, tmp_path: Path) -> None:
    domain = unlabelled(tmp_path / "camera", {"x": 30, "y": 30})
    job = trained_job(trained_spec(net, "branches"), domain, tmp_path)
    assert job.domain.classes == tuple(f"class {index}" for index in range(10))
    data, _ = prepare.run(job)
    dense = finetune.run(job, data)
    reported, labelled = pseudo_labels.run(job, data, dense)
    assert reported is labelled.dataset
    assert "accuracy is agreement with the dense model, on 12 test images" in pseudo_labels.list_notes(job, labelled)[0]
    for images in labelled.dataset.splits.values():
        logits = loop.predict(dense.trained.model, images, dense.dataset.preprocess)
        assert torch.equal(images.labels, logits.argmax(1))
    assert sum(map(len, labelled.dataset.splits.values())) == 60
    assert labelled.trained.key != dense.trained.key
    assert labelled.dataset.digest != dense.dataset.digest


def test_images_without_labels_join_the_training_split(net: Path, domain: Domain, tmp_path: Path) -> None:
    camera = draw(tmp_path / "camera", {"x": 12}, seed=5)
    known = next((Path(domain.path) / "ant").iterdir())
    (camera / "x" / "copy.png").write_bytes(known.read_bytes())
    job = trained_job(trained_spec(net), dataclasses.replace(domain, unlabelled=str(camera)), tmp_path)
    data, _ = prepare.run(job)
    dense = finetune.run(job, data)
    reported, extended = pseudo_labels.run(job, data, dense)
    before, after = dense.dataset.splits, extended.dataset.splits
    assert reported is data
    assert len(after["train"]) == len(before["train"]) + 12
    assert {path.name for path in after["train"].files[-12:]} == {f"{number:03d}.png" for number in range(12)}
    assert after["test"] is before["test"]
    none = dataclasses.replace(job, domain=domain)
    assert pseudo_labels.run(none, data, dense) == (data, dense)


def flags(**more: object) -> tuple[Recipe, Domain]:
    return overrides.read_recipe("compress", overrides.Flags(**more))  # type: ignore[arg-type]


def test_compress_only_trains_nothing_before_quantization(tmp_path: Path) -> None:
    recipe, _ = overrides.read_recipe("image-folder", overrides.Flags(compress_only=True, data=str(tmp_path), epochs=3))
    assert recipe.model.head == "keep"
    assert recipe.adapt.epochs == 0
    assert recipe.recover.epochs == 3
    assert overrides.choose_recipe("", "", compress_only=True) == "compress"
    assert flags(data=str(tmp_path))[0].model.head == "keep"


def test_without_labels_every_training_learns_the_dense_model_s_outputs_alone(tmp_path: Path) -> None:
    recipe, domain = flags(unlabelled=str(tmp_path))
    assert not domain.has_labels
    assert (recipe.recover.distill, recipe.quantize.train.distill) == (1.0, 1.0)
    recipe, domain = flags(unlabelled=str(tmp_path), data=str(tmp_path))
    assert domain.has_labels
    assert recipe.recover.distill == 0.9
    with pytest.raises(
        ToolchainError, match="images without labels cannot train a model from the start: .*--compress-only"
    ):
        overrides.read_recipe("image-folder", overrides.Flags(unlabelled=str(tmp_path)))


def test_too_few_images_without_labels_are_refused(net: Path, tmp_path: Path) -> None:
    domain = unlabelled(tmp_path / "few", {"x": 6})
    with pytest.raises(ToolchainError, match="few holds 6 images; in place of labelled ones at least 20 are needed"):
        prepare.run(trained_job(trained_spec(net), domain, tmp_path))
    absent = dataclasses.replace(domain, unlabelled=str(tmp_path / "absent"))
    with pytest.raises(ToolchainError, match=r"the folder of images without labels .*absent does not exist"):
        prepare.run(trained_job(trained_spec(net), absent, tmp_path))


def test_what_torch_cannot_export_is_said_with_its_line_before_anything_is_trained(
    net: Path, tmp_path: Path, domain: Domain
) -> None:
    recipe = dataclasses.replace(tiny_recipe(), model=ModelSpec(name=f"{net}:dynamic"))
    with pytest.raises(ToolchainError, match=r"cannot be exported .*\(net.py, line \d+: if y.mean\(\) > 0.5:\)"):
        pipeline.export(job_of(recipe, domain=domain, out=tmp_path))
    assert not (tmp_path / "work" / "adapt").exists()


def test_nothing_is_ranked_where_nothing_is_pruned(net: Path, domain: Domain, tmp_path: Path) -> None:
    job = trained_job(trained_spec(net), domain, tmp_path)
    job = dataclasses.replace(
        job, recipe=dataclasses.replace(job.recipe, prune=PruneSpec(ratio=0.0, criterion="fisher"))
    )
    dense = finetune.run(job, prepare.run(job)[0])
    plan = search_pruning.run(job, dense)
    assert plan.surgery == Surgery()
    assert not (tmp_path / "work" / "gradients").exists()


def test_the_placement_of_a_user_s_model_is_timed_anew_when_its_code_changes(net: Path) -> None:
    model, target = own_models.build(net, "residual"), read_config.read_target("cpu")
    before = place._compute_key(model, torch.zeros(1, 3, 12, 10), target)
    layers = net.with_name("user_layers.py")
    layers.write_text(layers.read_text().replace("torch.relu(x +", "torch.relu(2 * x +"))
    assert place._compute_key(model, torch.zeros(1, 3, 12, 10), target) != before


def test_the_seed_that_was_chosen_stays_chosen_with_images_without_labels(net: Path, tmp_path: Path) -> None:
    job = trained_job(trained_spec(net, "branches"), unlabelled(tmp_path / "camera", {"x": 30}), tmp_path)
    data, _ = prepare.run(job)
    _, labelled = pseudo_labels.run(job, data, finetune.run(job, data))
    assert [seed["chosen"] for seed in assemble.finetuning(job.recipe, labelled)["seeds"]] == [True]
