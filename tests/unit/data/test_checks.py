"""The examination of an image set names what is wrong with its files and its numbers, and never stumbles over them."""

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
from toolchain.data import image_folder
from toolchain.data.checks import class_balance, run_checks
from toolchain.data.checks.finding import DatasetCheck, Finding
from toolchain.data.checks.wording import from_display_path, to_display_path
from toolchain.edge import run
from toolchain.report.pages import data_checks, data_checks_text


def found(checkup: DatasetCheck, kind: str) -> Finding:
    """The one finding of a kind."""
    (finding,) = [finding for finding in checkup.findings if finding.kind == kind]
    return finding


def kinds(checkup: DatasetCheck) -> set[str]:
    return {finding.kind for finding in checkup.findings}


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    shape = (24, 20, 3) if mode == "RGB" else (24, 20)
    return Image.fromarray(np.random.default_rng([7, seed]).integers(0, 255, shape, dtype=np.uint8))


def test_a_clean_set_is_found_clean(domain: Domain, tmp_path: Path) -> None:
    checkup = run_checks.check_dataset(domain, tmp_path, image_size=(12, 10))
    assert not checkup.has_severe_finding
    assert kinds(checkup) == {"small classes", "test size"}  # eight test pictures a class
    assert (checkup.pictures, checkup.unreadable, checkup.ignored, checkup.searched) == (120, 0, 0, 120)
    assert checkup.copies == ()
    assert [count.label for count in checkup.classes] == ["ant", "bee", "cat"]
    split = image_folder.find_images(domain, tmp_path)
    for name, files in split.files.items():
        assert sum(count.pictures[name] for count in checkup.classes) == len(files)


@pytest.mark.parametrize(("body", "said"), [(b"", "is empty"), (b"not a picture", "is not an image")])
def test_unreadable_files_are_all_named(domain: Domain, pictures: Path, tmp_path: Path, body: bytes, said: str) -> None:
    for name in ("003", "017"):
        (pictures / "bee" / f"{name}.png").write_bytes(body)
    broken = pictures / "cat" / "005.png"
    broken.write_bytes(broken.read_bytes()[:60])
    checkup = run_checks.check_dataset(domain, tmp_path)
    finding = found(checkup, "unreadable")
    assert finding.severity == "severe"
    assert set(finding.files) == {"bee/003.png", "bee/017.png", "cat/005.png"}
    assert said in finding.text
    assert (checkup.pictures, checkup.unreadable) == (117, 3)
    skipping = run_checks.check_dataset(dataclasses.replace(domain, on_corrupt="skip"), tmp_path)
    assert found(skipping, "unreadable").severity == "warning"


def test_enormous_pictures_are_named_and_not_decoded(
    domain: Domain, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (300, 200)).save(pictures / "ant" / "wide.png")
    monkeypatch.setattr(run, "LARGEST_PICTURE", 50_000)
    assert found(run_checks.check_dataset(domain, tmp_path), "enormous").files == ("ant/wide.png",)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # Pillow's own guard comes first
    checkup = run_checks.check_dataset(domain, tmp_path)
    assert found(checkup, "enormous").files == ("ant/wide.png",)
    assert "unreadable" not in kinds(checkup)


def animated(path: Path) -> None:
    frames = [picture(seed, "L") for seed in range(3)]
    frames[0].save(path / "x.gif", save_all=True, append_images=frames[1:])


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, "L").save(path / "x.jpg", exif=exif)


def wide(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 65_535, (9, 7), dtype=np.uint16)).save(path / "x.png")


def elsewhere(path: Path) -> None:
    picture(0, "L").save(path.parent / "x.png")


DEFECTS: dict[str, Callable[[Path], None]] = {
    "animated": animated,
    "rotated": rotated,
    "16 bit": wide,
    "CMYK": lambda path: picture(0).convert("CMYK").save(path / "x.tif"),
    "palette": lambda path: picture(0).convert("P").save(path / "x.png"),
    "transparent": lambda path: picture(0).convert("RGBA").save(path / "x.png"),
    "two levels": lambda path: picture(0).convert("1").save(path / "x.png"),
}


@pytest.mark.parametrize("kind", DEFECTS)
def test_pictures_of_odd_kinds_are_named(domain: Domain, pictures: Path, tmp_path: Path, kind: str) -> None:
    DEFECTS[kind](pictures / "ant")
    checkup = run_checks.check_dataset(domain, tmp_path)
    (name,) = found(checkup, kind).files
    assert name.startswith("ant/x.")
    assert checkup.pictures == 121
    assert not checkup.has_severe_finding


def test_a_phones_second_picture_is_no_animation(domain: Domain, pictures: Path, tmp_path: Path) -> None:
    path = pictures / "ant" / "phone.jpg"
    picture(0).save(path, "MPO", save_all=True, append_images=[picture(1)])
    with Image.open(path) as photo:
        assert getattr(photo, "n_frames", 1) == 2
    assert "animated" not in kinds(run_checks.check_dataset(domain, tmp_path))


def test_files_that_nobody_reads_are_counted(domain: Domain, pictures: Path, tmp_path: Path) -> None:
    (pictures / "ant" / "notes.txt").write_text("")
    (pictures / "ant" / "phone.HEIC").write_bytes(b"x")
    elsewhere(pictures / "ant")
    (pictures / "ant" / ".hidden").write_text("")
    checkup = run_checks.check_dataset(domain, tmp_path)
    assert checkup.ignored == 3
    assert found(checkup, "ignored files").files == ("ant/notes.txt",)
    finding = found(checkup, "ignored pictures")
    assert finding.files == ("ant/phone.HEIC", "x.png")
    assert finding.severity == "warning"


def test_names_that_are_no_text_reach_every_output(domain: Domain, pictures: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(pictures) + b"/bee/caf\xe9\n[bold]<b>.png"))
    picture(0, "L").save(odd)
    copy = Path(os.fsdecode(os.fsencode(pictures) + b"/ant/caf\xe9.png"))
    copy.write_bytes(odd.read_bytes())
    broken = Path(os.fsdecode(os.fsencode(pictures) + b"/cat/\xff.png"))
    broken.write_bytes(b"")
    checkup = run_checks.check_dataset(domain, tmp_path)
    assert set(found(checkup, "file names").files) == {
        "ant/caf\\xe9.png",
        "bee/caf\\xe9\\x0a[bold]<b>.png",
        "cat/\\xff.png",
    }
    assert found(checkup, "label conflict").files == ("ant/caf\\xe9.png", "bee/caf\\xe9\\x0a[bold]<b>.png")
    records.write_json(tmp_path / "checkup.json", checkup)
    again = json.loads((tmp_path / "checkup.json").read_text())
    assert again["unreadable"] == 1
    page = data_checks.render_html(checkup, None)
    assert "&lt;b&gt;.png" in page.encode().decode()
    assert page.count("<img") == 2  # both copies are found again under their escaped names
    data_checks_text.print_results(checkup, None)


@pytest.mark.parametrize("name", [b"a/b.png", b"caf\xe9", b"tab\there", b"back\\xslash", "grün".encode(), b"\\xe9"])
def test_shown_names_lead_back_to_their_files(name: bytes) -> None:
    path = Path(os.fsdecode(name))
    assert to_display_path(path).isprintable()
    assert from_display_path(to_display_path(path)) == path


def test_mixed_colours_and_sizes_are_told(domain: Domain, pictures: Path, tmp_path: Path) -> None:
    for seed in range(6):
        picture(seed).resize((64, 60)).save(pictures / "bee" / f"colour{seed}.png")
    checkup = run_checks.check_dataset(dataclasses.replace(domain, mode="rgb"), tmp_path)
    colours = found(checkup, "gray and colour")
    assert set(colours.files) == {f"bee/colour{seed}.png" for seed in range(6)}
    assert "in class bee, 6 of 46" in colours.text
    assert found(checkup, "small").severity == "warning"  # 10x12 beside 64x60, before an input of 32x32
    assert len(found(checkup, "small").files) == 120
    assert [(s.width, s.height, s.pictures) for s in checkup.sizes] == [(10, 12, 120), (64, 60, 6)]
    assert checkup.modes == {"L": 120, "RGB": 6}
    gray = run_checks.check_dataset(domain, tmp_path)
    assert set(found(gray, "gray and colour").files) == set(colours.files)


def test_pictures_of_several_shapes_are_told(domain: Domain, pictures: Path, tmp_path: Path) -> None:
    for seed in range(20):
        picture(seed, "L").resize((40, 10)).save(pictures / "bee" / f"wide{seed}.png")
    assert "0.83 to 4.00" in found(run_checks.check_dataset(domain, tmp_path), "shapes").text


def test_what_training_refuses_is_examined_all_the_same(domain: Domain, tmp_path: Path) -> None:
    folder = draw(tmp_path / "single", {"ant": 30, "bee": 1})
    checkup = run_checks.check_dataset(dataclasses.replace(domain, path=str(folder)), tmp_path)
    assert checkup.has_severe_finding
    assert "too few images" in found(checkup, "refused").text
    assert "bee" in found(checkup, "single picture").text
    assert checkup.pictures == 31
    for split, held in (("train", {"ant": 9, "bee": 9}), ("val", {"ant": 9, "bee": 9}), ("test", {"ant": 9})):
        draw(tmp_path / "hole" / split, held, seed=len(split))
    checkup = run_checks.check_dataset(dataclasses.replace(domain, path=str(tmp_path / "hole")), tmp_path)
    assert "only in one of them: bee" in found(checkup, "refused").text
    assert "bee in test" in found(checkup, "missing class").text
    with pytest.raises(ToolchainError, match="does not exist"):
        run_checks.check_dataset(dataclasses.replace(domain, path=str(tmp_path / "nowhere")), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ToolchainError, match="no class folders"):
        run_checks.check_dataset(dataclasses.replace(domain, path=str(tmp_path / "empty")), tmp_path)


def test_uneven_and_small_classes_are_told(domain: Domain, tmp_path: Path) -> None:
    folder = draw(tmp_path / "uneven", {"ant": 200, "bee": 12, "cat": 60})
    checkup = run_checks.check_dataset(dataclasses.replace(domain, path=str(folder)), tmp_path)
    assert "16.7 to 1: 200 images of ant, 12 of bee" in found(checkup, "imbalance").text
    few = found(checkup, "small classes")
    assert few.severity == "warning"
    assert "bee (2, recall ±" in few.text
    assert "cat" not in few.text
    assert not checkup.has_severe_finding


def test_how_well_a_recall_can_be_known() -> None:
    assert class_balance.recall_half_width(0) is None
    assert class_balance.recall_half_width(10) == pytest.approx(
        0.26, abs=0.01
    )  # Wilson's interval of 5 in 10: 24 % to 76 %
    assert class_balance.recall_half_width(1000) == pytest.approx(0.031, abs=0.001)


def test_a_budget_that_the_test_set_cannot_show_is_told(domain: Domain, tmp_path: Path) -> None:
    strict = run_checks.check_dataset(domain, tmp_path, budget=Budget(accuracy_drop=0.01))
    assert found(strict, "test size").severity == "warning"
    assert "cannot detect: use about" in found(strict, "test size").text
    lax = run_checks.check_dataset(domain, tmp_path, budget=Budget(accuracy_drop=0.9))
    assert found(lax, "test size").severity == "note"
    assert strict.smallest_difference is not None
    assert 0.01 < strict.smallest_difference < 0.9


def test_the_worst_comes_first_and_is_said_on_the_terminal(
    domain: Domain, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rotated(pictures / "ant")
    (pictures / "bee" / "000.png").write_bytes(b"")
    checkup = run_checks.check_dataset(domain, tmp_path)
    severities = [finding.severity for finding in checkup.findings]
    assert severities == sorted(severities, key=["severe", "warning", "note"].index)
    capsys.readouterr()
    data_checks_text.print_results(checkup, None)
    said = capsys.readouterr().out
    assert "1 severe finding: fix before training" in said
    assert "bee/000.png" in said
    page = data_checks.render_html(checkup, None)
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
