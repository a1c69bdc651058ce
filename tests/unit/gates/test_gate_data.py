"""A gate finds the labelled images again that the baseline was accepted with; without them it is incomplete, never green."""

import dataclasses
import json
import shutil
import sys
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from unit.gates.test_regression_gate import (
    CLASSES,
    SIZE,
    TARGET,
    accepted,
    archived,
    bundled,
    gated,
    home,
    seal,
    slower,
)

from toolchain.config import overrides
from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.edge import run
from toolchain.gates import baselines, data_source
from toolchain.report.pages import gate as gate_report

__all__ = ["home", "slower"]
RECIPE = "image-folder"


@pytest.fixture
def run_folder(home: Path, slower: Callable[[float], list[int]]) -> Path:
    """A finished run of a recipe that brings no images, whose measurements say where they were."""
    slower(1.0)
    draw(home / "photos", dict.fromkeys(CLASSES, 60), size=SIZE)
    folder = home / "out" / RECIPE / "cpu"
    archived(bundled(folder / "bundle", recipe=RECIPE), folder / "bundle.tar")
    _, domain = overrides.read_recipe(RECIPE, overrides.Flags(data="photos"))
    (home / ".git").mkdir()
    files.write_json(folder / "measurements.json", {"data": data_source.describe(domain, home / "out/data")})
    return folder


def destroy(run_folder: Path) -> None:
    """Replace the candidate by a model that answers wrongly for two of three classes."""
    shutil.rmtree(run_folder / "bundle")
    bundled(run_folder / "bundle", recipe=RECIPE, mistakes=2)


def gate(*arguments: str) -> tuple[int, str]:
    return gated("--recipe", RECIPE, *arguments)


def junit_failure(home: Path) -> ElementTree.Element | None:
    suite = ElementTree.parse(home / "out/gate/cpu/gate.xml").getroot()[0]
    return suite.find("testcase[@name='accuracy_drop']/failure")


def test_a_destroyed_candidate_fails_without_being_told_where_the_images_are(home: Path, run_folder: Path) -> None:
    accepted("--recipe", RECIPE)
    assert gate()[0] == 0
    destroy(run_folder)
    code, text = gate()
    assert (code, "accuracy drop" in text) == (1, True)
    failure = junit_failure(home)
    assert failure is not None
    assert failure.get("type") == "fail"


def test_images_are_found_from_any_folder_of_the_repository(
    home: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, record = baselines.accept(run_folder / "bundle.tar", TARGET, RECIPE, "", data_source.read_from_run(run_folder))
    assert record.data is not None
    assert (record.data.folder, record.data.images, record.data.classes) == ("photos", 180, CLASSES)
    (home / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(home / "deep/er")
    assert data_source.locate(record.data) == home / "photos"


@pytest.mark.parametrize("change", ["moved", "other images", "other class", "never recorded"])
def test_without_its_images_a_gate_is_incomplete_and_red(home: Path, run_folder: Path, change: str) -> None:
    if change == "never recorded":
        (run_folder / "measurements.json").unlink()
    accepted("--recipe", RECIPE)
    destroy(run_folder)
    expected = {
        "moved": "does not exist any more", "other images": "holds other images than when", "other class": "has other classes",
        "never recorded": "no test images are known",
    }[change]  # fmt: skip
    if change == "moved":
        (home / "photos").rename(home / "elsewhere")
    elif change == "other images":
        (home / "photos/ant/000.png").unlink()
    elif change == "other class":
        (home / "photos/cat").rename(home / "photos/dog")
    code, text = gate()
    assert (code, expected in text, "--data" in text) == (2, True, True), text
    failure = junit_failure(home)
    assert failure is not None
    assert failure.get("type") == "not_measured"
    result = files.read_json(home / "out/gate/cpu/gate.json")
    assert (result["outcome"], result["exit_status"]) == ("not_measured", 2)
    assert gate_report.render_annotations(result)[0].startswith("::error ")
    assert gate_report.build_code_quality(result)[0]["severity"] == "critical"


def test_the_folder_may_be_given_and_is_then_remembered(home: Path, run_folder: Path) -> None:
    (run_folder / "measurements.json").unlink()
    accepted("--recipe", RECIPE, "--data", "photos")
    destroy(run_folder)
    assert gate()[0] == 1
    (home / "photos").rename(home / "elsewhere")
    assert gate("--data", "elsewhere")[0] == 1


def test_waiving_accuracy_is_visible_everywhere_and_never_hides_a_failure(home: Path, run_folder: Path) -> None:
    accepted("--recipe", RECIPE)
    (home / "photos").rename(home / "elsewhere")
    code, text = gate("--waive", "accuracy")
    assert (code, "waived: image-folder accuracy drop" in text) == (0, True)
    folder = home / "out/gate/cpu"
    assert "| not measured, waived |" in (folder / "gate.md").read_text()
    skipped = ElementTree.parse(folder / "gate.xml").getroot()[0].find("testcase[@name='accuracy_drop']/skipped")
    assert skipped is not None
    assert "waived" in str(skipped.get("message"))
    assert "waived" in gate_report.render_annotations(files.read_json(folder / "gate.json"))[0]
    destroy(run_folder)
    assert gate("--waive", "accuracy", "--data", "elsewhere")[0] == 1
    code, text = gate("--waive", "everything")
    assert (code, "--waive 'everything': accepted are accuracy" in text) == (2, True)


def test_a_record_of_an_older_version_is_read(home: Path, run_folder: Path) -> None:
    accepted("--recipe", RECIPE)
    path = home / baselines.record_path("cpu", RECIPE)
    record = files.read_json(path)
    del record["data"]
    path.write_text(json.dumps({**record, "schema": 1}))
    assert gate()[0] == 0  # the run's own measurements still say where the images are
    (run_folder / "measurements.json").unlink()
    assert gate()[0] == 2


def test_damaged_measurements_are_one_message(run_folder: Path) -> None:
    (run_folder / "measurements.json").write_text('{"data": {"folder": 1}}')
    with pytest.raises(ToolchainError, match=r"measurements\.json is damaged"):
        data_source.read_from_run(run_folder)


def test_accuracy_is_measured_in_another_interpreter_too(home: Path, run_folder: Path) -> None:
    folder = run_folder / "bundle"
    manifest = {**files.read_json(folder / "manifest.json"), "golden": {"step": 1.0, "tolerance_steps": 2.0}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    shutil.copy(run.__file__, folder / "run.py")
    pixels = np.zeros((2, *SIZE), np.uint8)
    model = run._onnxruntime(manifest, folder / "model.onnx")
    logits = [model(run.normalise(image, [0.5] * 3, [0.5] * 3)[None])[0] for image in pixels]
    np.savez(folder / "golden.npz", pixels=pixels, logits=np.stack(logits))
    seal(folder)
    code, text = gate("--reference-python", sys.executable)
    assert code == 0, text
    checks = {v["check"]: v for v in files.read_json(home / "out/gate/cpu/gate.json")["gates"][0]["verdicts"]}
    assert checks["accuracy_drop"]["outcome"] == "pass"
    assert "on 36 images" in checks["accuracy_drop"]["why"]
    (folder / "run.py").unlink()
    seal(folder)
    code, text = gate("--reference-python", sys.executable)
    assert (code, "cannot run" in text) == (2, True)


def test_a_bundle_that_was_not_accepted_is_not_compared(home: Path, run_folder: Path) -> None:
    accepted("--recipe", RECIPE)
    manifest = {**files.read_json(run_folder / "bundle/manifest.json"), "accepted": False}
    (run_folder / "bundle/manifest.json").write_text(json.dumps(manifest))
    seal(run_folder / "bundle")
    code, text = gate()
    assert (code, "missed a budget and was not accepted" in text) == (2, True)


@pytest.mark.parametrize("in_bundle", ["NFC", "NFD"])
def test_class_names_are_compared_in_one_unicode_form(home: Path, run_folder: Path, in_bundle: str) -> None:
    manifest = files.read_json(run_folder / "bundle/manifest.json")
    manifest["classes"][0] = unicodedata.normalize(in_bundle, "Ämeise")
    (run_folder / "bundle/manifest.json").write_text(json.dumps(manifest))
    seal(run_folder / "bundle")
    archived(run_folder / "bundle", run_folder / "bundle.tar")
    other = {"NFC": "NFD", "NFD": "NFC"}[in_bundle]
    (home / "photos/ant").rename(home / "photos" / unicodedata.normalize(other, "Ämeise"))
    accepted("--recipe", RECIPE, "--data", "photos")
    assert gate()[0] == 0
    checks = files.read_json(home / "out/gate/cpu/gate.json")["gates"][0]["verdicts"]
    assert [v["measured"] for v in checks if v["check"] == "accuracy_drop"] == [0.0]
    assert files.read_json(home / "out/gate/cpu/gate.json")["gates"][0]["accuracy"]["estimate"] == 1.0


def test_a_damaged_record_is_to_be_restored(home: Path, run_folder: Path) -> None:
    accepted("--recipe", RECIPE)
    (home / baselines.record_path("cpu", RECIPE)).write_text("{")
    code, text = gate()
    assert (code, "restore it from version control" in text, "remove it" in text) == (2, True, False)


def test_a_csv_is_remembered_with_its_content_and_its_folder(home: Path, run_folder: Path) -> None:
    table = home / "photos.csv"
    rows = [
        f"{path.relative_to(home / 'photos').as_posix()},{path.parent.name}" for path in (home / "photos").glob("*/*")
    ]
    table.write_text("\n".join(["file,label", *rows]))
    _, domain = overrides.read_recipe(RECIPE, overrides.Flags(data="photos.csv"))
    domain = dataclasses.replace(domain, images="photos")
    recorded = data_source.describe(domain, home / "out/data")
    assert (recorded.folder, recorded.images_folder, recorded.images) == ("photos.csv", "photos", 180)
    files.write_json(run_folder / "measurements.json", {"data": recorded})
    accepted("--recipe", RECIPE)
    assert gate()[0] == 0
    destroy(run_folder)
    assert gate()[0] == 1
    table.write_text("\n".join(["file,label", *rows[::-1]]) + "\n")  # the same images, but not the same file
    code, text = gate()
    assert (code, "photos.csv holds other images than when" in text) == (2, True)
    table.unlink()
    code, text = gate()
    assert (code, "the dataset photos.csv, which the baseline was accepted with, does not exist" in text) == (2, True)
