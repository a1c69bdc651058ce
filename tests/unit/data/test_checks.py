"""The dataset checks report what is wrong with files and numbers of images, and no file makes them fail."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from toolchain.config.dataset import Domain
from toolchain.config.recipe import Budget
from toolchain.core import files as records
from toolchain.core.errors import ToolchainError
from toolchain.data import dataset_files
from toolchain.data.checks import class_balance, run_checks
from toolchain.data.checks.finding import DatasetCheck, Finding
from toolchain.data.checks.wording import from_display_path, to_display_path
from toolchain.edge import run
from toolchain.report.pages import data_checks, data_checks_text


def finding_of(result: DatasetCheck, kind: str) -> Finding:
    """Return the only finding of a kind."""
    (finding,) = [finding for finding in result.findings if finding.kind == kind]
    return finding


def finding_kinds(result: DatasetCheck) -> set[str]:
    return {finding.kind for finding in result.findings}


def image(seed: int, mode: str = "RGB") -> Image.Image:
    shape = (24, 20, 3) if mode == "RGB" else (24, 20)
    return Image.fromarray(np.random.default_rng([7, seed]).integers(0, 255, shape, dtype=np.uint8))


def test_a_clean_dataset_has_no_severe_finding(domain: Domain, tmp_path: Path) -> None:
    result = run_checks.check_dataset(domain, tmp_path, image_size=(12, 10))
    assert not result.has_severe_finding
    assert finding_kinds(result) == {"small classes", "test size"}  # eight test images per class
    assert (result.pictures, result.unreadable, result.ignored, result.searched) == (120, 0, 0, 120)
    assert result.copies == ()
    assert [count.label for count in result.classes] == ["ant", "bee", "cat"]
    split = dataset_files.find_images(domain, tmp_path)
    for name, files in split.files.items():
        assert sum(count.pictures[name] for count in result.classes) == len(files)


@pytest.mark.parametrize(("body", "problem"), [(b"", "is empty"), (b"not a picture", "is not an image")])
def test_unreadable_files_are_all_named(
    domain: Domain, pictures: Path, tmp_path: Path, body: bytes, problem: str
) -> None:
    for name in ("003", "017"):
        (pictures / "bee" / f"{name}.png").write_bytes(body)
    broken = pictures / "cat" / "005.png"
    broken.write_bytes(broken.read_bytes()[:60])
    result = run_checks.check_dataset(domain, tmp_path)
    finding = finding_of(result, "unreadable")
    assert finding.severity == "severe"
    assert set(finding.files) == {"bee/003.png", "bee/017.png", "cat/005.png"}
    assert problem in finding.text
    assert (result.pictures, result.unreadable) == (117, 3)
    skipping = run_checks.check_dataset(dataclasses.replace(domain, on_corrupt="skip"), tmp_path)
    assert finding_of(skipping, "unreadable").severity == "warning"


def test_images_that_are_too_large_are_named_and_not_decoded(
    domain: Domain, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (300, 200)).save(pictures / "ant" / "wide.png")
    monkeypatch.setattr(run, "LARGEST_PICTURE", 50_000)
    assert finding_of(run_checks.check_dataset(domain, tmp_path), "enormous").files == ("ant/wide.png",)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # Pillow's own guard comes first
    result = run_checks.check_dataset(domain, tmp_path)
    assert finding_of(result, "enormous").files == ("ant/wide.png",)
    assert "unreadable" not in finding_kinds(result)


def save_animated(path: Path) -> None:
    frames = [image(seed, "L") for seed in range(3)]
    frames[0].save(path / "x.gif", save_all=True, append_images=frames[1:])


def save_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image(0, "L").save(path / "x.jpg", exif=exif)


def save_16_bit(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 65_535, (9, 7), dtype=np.uint16)).save(path / "x.png")


def save_outside_class_folder(path: Path) -> None:
    image(0, "L").save(path.parent / "x.png")


DEFECTS: dict[str, Callable[[Path], None]] = {
    "animated": save_animated,
    "rotated": save_rotated,
    "16 bit": save_16_bit,
    "CMYK": lambda path: image(0).convert("CMYK").save(path / "x.tif"),
    "palette": lambda path: image(0).convert("P").save(path / "x.png"),
    "transparent": lambda path: image(0).convert("RGBA").save(path / "x.png"),
    "two levels": lambda path: image(0).convert("1").save(path / "x.png"),
}


@pytest.mark.parametrize("kind", DEFECTS)
def test_unusual_images_are_named(domain: Domain, pictures: Path, tmp_path: Path, kind: str) -> None:
    DEFECTS[kind](pictures / "ant")
    result = run_checks.check_dataset(domain, tmp_path)
    (name,) = finding_of(result, kind).files
    assert name.startswith("ant/x.")
    assert result.pictures == 121
    assert not result.has_severe_finding


def test_the_preview_in_a_phones_photo_is_not_an_animation(domain: Domain, pictures: Path, tmp_path: Path) -> None:
    path = pictures / "ant" / "phone.jpg"
    image(0).save(path, "MPO", save_all=True, append_images=[image(1)])
    with Image.open(path) as photo:
        assert getattr(photo, "n_frames", 1) == 2
    assert "animated" not in finding_kinds(run_checks.check_dataset(domain, tmp_path))


def test_ignored_files_are_counted(domain: Domain, pictures: Path, tmp_path: Path) -> None:
    (pictures / "ant" / "notes.txt").write_text("")
    (pictures / "ant" / "phone.HEIC").write_bytes(b"x")
    save_outside_class_folder(pictures / "ant")
    (pictures / "ant" / ".hidden").write_text("")
    result = run_checks.check_dataset(domain, tmp_path)
    assert result.ignored == 3
    assert finding_of(result, "ignored files").files == ("ant/notes.txt",)
    finding = finding_of(result, "ignored pictures")
    assert finding.files == ("x.png",)
    assert finding.severity == "warning"
    unread = finding_of(result, "unread formats")
    assert unread.files == ("ant/phone.HEIC",)
    assert "1 .heic): convert them to JPEG or PNG" in unread.text
    assert "1 system file ignored (.hidden)" in finding_of(result, "system files").text


def test_file_names_that_are_not_text_reach_every_output(domain: Domain, pictures: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(pictures) + b"/bee/caf\xe9\n[bold]<b>.png"))
    image(0, "L").save(odd)
    copy = Path(os.fsdecode(os.fsencode(pictures) + b"/ant/caf\xe9.png"))
    copy.write_bytes(odd.read_bytes())
    broken = Path(os.fsdecode(os.fsencode(pictures) + b"/cat/\xff.png"))
    broken.write_bytes(b"")
    result = run_checks.check_dataset(domain, tmp_path)
    assert set(finding_of(result, "file names").files) == {
        "ant/caf\\xe9.png",
        "bee/caf\\xe9\\x0a[bold]<b>.png",
        "cat/\\xff.png",
    }
    assert finding_of(result, "label conflict").files == ("ant/caf\\xe9.png", "bee/caf\\xe9\\x0a[bold]<b>.png")
    records.write_json(tmp_path / "result.json", result)
    again = json.loads((tmp_path / "result.json").read_text())
    assert again["unreadable"] == 1
    page = data_checks.render_html(result, None)
    assert "&lt;b&gt;.png" in page.encode().decode()
    assert page.count("<img") == 2  # both duplicates are read by their display paths
    data_checks_text.print_results(result, None)


@pytest.mark.parametrize("name", [b"a/b.png", b"caf\xe9", b"tab\there", b"back\\xslash", "grün".encode(), b"\\xe9"])
def test_display_paths_lead_back_to_their_files(name: bytes) -> None:
    path = Path(os.fsdecode(name))
    assert to_display_path(path).isprintable()
    assert from_display_path(to_display_path(path)) == path


def test_mixed_colours_and_sizes_are_reported(domain: Domain, pictures: Path, tmp_path: Path) -> None:
    for seed in range(6):
        image(seed).resize((64, 60)).save(pictures / "bee" / f"colour{seed}.png")
    result = run_checks.check_dataset(dataclasses.replace(domain, mode="rgb"), tmp_path)
    colours = finding_of(result, "gray and colour")
    assert set(colours.files) == {f"bee/colour{seed}.png" for seed in range(6)}
    assert "in class bee, 6 of 46" in colours.text
    assert finding_of(result, "small").severity == "warning"  # 10x12 beside 64x60, before an input of 32x32
    assert len(finding_of(result, "small").files) == 120
    assert [(s.width, s.height, s.pictures) for s in result.sizes] == [(10, 12, 120), (64, 60, 6)]
    assert result.modes == {"L": 120, "RGB": 6}
    gray = run_checks.check_dataset(domain, tmp_path)
    assert set(finding_of(gray, "gray and colour").files) == set(colours.files)


def test_different_aspect_ratios_are_reported(domain: Domain, pictures: Path, tmp_path: Path) -> None:
    for seed in range(20):
        image(seed, "L").resize((40, 10)).save(pictures / "bee" / f"wide{seed}.png")
    assert "0.83 to 4.00" in finding_of(run_checks.check_dataset(domain, tmp_path), "shapes").text


def test_a_folder_that_training_would_reject_is_checked(domain: Domain, tmp_path: Path) -> None:
    folder = draw(tmp_path / "single", {"ant": 30, "bee": 1})
    result = run_checks.check_dataset(dataclasses.replace(domain, path=str(folder)), tmp_path)
    assert result.has_severe_finding
    assert "too few images" in finding_of(result, "refused").text
    assert "bee" in finding_of(result, "single picture").text
    assert result.pictures == 31
    for split, held in (("train", {"ant": 9, "bee": 9}), ("val", {"ant": 9, "bee": 9}), ("test", {"ant": 9})):
        draw(tmp_path / "hole" / split, held, seed=len(split))
    result = run_checks.check_dataset(dataclasses.replace(domain, path=str(tmp_path / "hole")), tmp_path)
    assert "only in one of them: bee" in finding_of(result, "refused").text
    assert "bee in test" in finding_of(result, "missing class").text
    with pytest.raises(ToolchainError, match="does not exist"):
        run_checks.check_dataset(dataclasses.replace(domain, path=str(tmp_path / "nowhere")), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ToolchainError, match="no class folders"):
        run_checks.check_dataset(dataclasses.replace(domain, path=str(tmp_path / "empty")), tmp_path)


def test_imbalanced_and_small_classes_are_reported(domain: Domain, tmp_path: Path) -> None:
    folder = draw(tmp_path / "uneven", {"ant": 200, "bee": 12, "cat": 60})
    result = run_checks.check_dataset(dataclasses.replace(domain, path=str(folder)), tmp_path)
    assert "16.7 to 1: 200 images of ant, 12 of bee" in finding_of(result, "imbalance").text
    few = finding_of(result, "small classes")
    assert few.severity == "warning"
    assert "bee (2, recall ±" in few.text
    assert "cat" not in few.text
    assert not result.has_severe_finding


def test_how_well_a_recall_can_be_known() -> None:
    assert class_balance.recall_half_width(0) is None
    assert class_balance.recall_half_width(10) == pytest.approx(
        0.26, abs=0.01
    )  # Wilson's interval of 5 in 10: 24 % to 76 %
    assert class_balance.recall_half_width(1000) == pytest.approx(0.031, abs=0.001)


def test_a_budget_below_the_minimum_detectable_difference_is_reported(domain: Domain, tmp_path: Path) -> None:
    strict = run_checks.check_dataset(domain, tmp_path, budget=Budget(accuracy_drop=0.01))
    assert finding_of(strict, "test size").severity == "warning"
    assert "cannot detect: use about" in finding_of(strict, "test size").text
    lax = run_checks.check_dataset(domain, tmp_path, budget=Budget(accuracy_drop=0.9))
    assert finding_of(lax, "test size").severity == "note"
    assert strict.smallest_difference is not None
    assert 0.01 < strict.smallest_difference < 0.9


def test_the_most_severe_finding_comes_first_on_the_terminal(
    domain: Domain, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_rotated(pictures / "ant")
    (pictures / "bee" / "000.png").write_bytes(b"")
    result = run_checks.check_dataset(domain, tmp_path)
    severities = [finding.severity for finding in result.findings]
    assert severities == sorted(severities, key=["severe", "warning", "note"].index)
    capsys.readouterr()
    data_checks_text.print_results(result, None)
    output = capsys.readouterr().out
    assert "1 severe finding: fix before training" in output
    assert "bee/000.png" in output
    page = data_checks.render_html(result, None)
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
