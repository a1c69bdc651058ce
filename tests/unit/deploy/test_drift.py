"""Counting in the field and what it tells: bounded files that survive a cut, quiet where nothing moved, loud where it did."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from toolchain.core import statistics
from toolchain.core.errors import ToolchainError
from toolchain.deploy import drift, drift_reference
from toolchain.edge import watch
from toolchain.report.pages import drift as drift_report

CLASSES = ("ant", "bee", "cat")


def pictures(count: int, seed: int = 0, *, gain: float = 1.0, offset: float = 0.0, noise: float = 6.0) -> np.ndarray:
    """Gray blobs, each its own brightness and contrast, uint8 [count, 24, 20]."""
    order = np.random.default_rng(seed)
    y, x = np.mgrid[:24, :20]
    middle = order.uniform(6, 16, (2, count, 1, 1))
    blob = np.exp(-((y - middle[0]) ** 2 + (x - middle[1]) ** 2) / 30)
    whole = order.uniform(60, 120, (count, 1, 1)) + order.uniform(20, 90, (count, 1, 1)) * blob
    return (gain * whole + offset + order.normal(0, noise, whole.shape)).clip(0, 255).astype(np.uint8)


def answers(count: int, seed: int = 0, *, sure: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [count, 3] that are right the more often, the surer they are; and the true classes."""
    order = np.random.default_rng(seed + 1000)
    logits = order.normal(0, 1, (count, 3))
    logits[np.arange(count), order.integers(0, 3, count)] += order.uniform(0, sure, count)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    return logits, (order.uniform(size=(count, 1)) > odds.cumsum(1)).sum(1).clip(0, 2)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    logits, labels = answers(2000)
    return drift_reference.build_arrays(
        [drift_reference.SplitPredictions(pixels=pictures(2000), logits=logits, labels=labels)]
    )


@pytest.fixture(scope="module")
def reference(
    arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> drift_reference.DriftReference:
    path = tmp_path_factory.mktemp("reference") / watch.REFERENCE_FILE
    np.savez(path, **arrays)
    return drift_reference.read(path)


def counted(path: Path, reference: drift_reference.DriftReference, pixels: np.ndarray, logits: np.ndarray) -> Path:
    counters = watch.Counters(path, "me", reference.bin_edges, len(CLASSES))
    for one, answer in zip(pixels, logits, strict=True):
        counters.add(one, answer)
    counters.close()
    return path


def judged(path: Path, reference: drift_reference.DriftReference) -> drift.DriftResult:
    files = drift.read_counters([path], "me", reference.count_bins(len(CLASSES)))
    return drift.detect("digits for cpu", reference, len(CLASSES), files)


def test_nothing_moved(tmp_path: Path, reference: drift_reference.DriftReference) -> None:
    found = judged(counted(tmp_path / "c.json", reference, pictures(1000, 7), answers(1000, 7)[0]), reference)
    assert (found.verdict, len(found.windows), found.left_out) == ("fine", 2, 0)
    assert found.false_alarms.estimate <= 0.01
    assert "FINE: no significant drift" in drift_report.describe_verdict(found)


def test_one_window_in_a_hundred_at_most_is_called_by_chance(reference: drift_reference.DriftReference) -> None:
    sizes = reference.count_bins(len(CLASSES))
    alone = drift.estimate_false_alarms(reference, sizes, 500, drift.FALSE_ALARM_LEVEL / len(watch.READINGS), 1)
    assert 0 < alone.estimate <= 0.015  # not deaf either
    half = drift_reference.DriftReference(
        bin_edges=reference.bin_edges,
        bin_indices={k: v[::4] for k, v in reference.bin_indices.items()},
        correct=reference.correct[::4],
    )
    few = drift.estimate_false_alarms(
        half, sizes, 500, drift.FALSE_ALARM_LEVEL / len(watch.READINGS), 1
    )  # more than half of it
    assert 0 < few.estimate <= 0.02, len(half.correct)


@pytest.mark.parametrize(
    ("change", "reading", "way"),
    [
        ({"offset": 25.0}, "brightness", "up"),
        ({"gain": 0.7, "offset": 25.0}, "contrast", "down"),
        ({"noise": 14.0}, "noise", "up"),
        ({"noise": 2.0}, "noise", "down"),
        ({"offset": 120.0}, "saturated", "up"),
    ],
)
def test_pictures_that_changed_are_called(
    change: dict[str, float], reading: str, way: str, tmp_path: Path, reference: drift_reference.DriftReference
) -> None:
    found = judged(counted(tmp_path / "c.json", reference, pictures(500, 7, **change), answers(500, 7)[0]), reference)
    assert found.verdict == "recalibrate"  # it is as sure as it was
    moved = {one.reading: one for one in found.windows[0].moved}
    assert moved[reading].called
    assert f"{reading} {way}" in drift_report.tabulate_windows(found)[0].rows[0][4]
    assert not moved["confidence"].called


def test_a_model_that_is_less_sure_is_to_be_retrained(
    tmp_path: Path, reference: drift_reference.DriftReference
) -> None:
    found = judged(counted(tmp_path / "c.json", reference, pictures(500, 7), answers(500, 7, sure=1.0)[0]), reference)
    assert found.verdict == "retrain"
    assert found.windows[0].moved[0].reading == "confidence"
    logits, labels = answers(4000, 9, sure=1.0)  # the truth that nobody in the field knows
    lost = reference.correct.mean() - (logits.argmax(1) == labels).mean()
    assert found.windows[0].expected_drop.low <= lost <= found.windows[0].expected_drop.high
    assert f"{100 * found.windows[0].expected_drop.estimate:.1f} points [" in found.why


def test_another_mix_of_classes_alone_is_only_mentioned(
    tmp_path: Path, reference: drift_reference.DriftReference
) -> None:
    logits = answers(500, 7)[0]
    order = np.argsort(-logits, axis=1)
    mixed = np.take_along_axis(logits, order, axis=1)  # always the first class, as sure as before
    found = judged(counted(tmp_path / "c.json", reference, pictures(500, 7), mixed), reference)
    assert (found.verdict, found.why) == ("fine", "no significant drift, except in the mix of classes")


def test_too_few_pictures_tell_nothing(tmp_path: Path, reference: drift_reference.DriftReference) -> None:
    found = judged(counted(tmp_path / "c.json", reference, pictures(99, 7), answers(99, 7)[0]), reference)
    assert (found.verdict, found.left_out) == ("cannot_tell", 1)


def test_what_happened_last_is_not_drowned(tmp_path: Path, reference: drift_reference.DriftReference) -> None:
    dark = np.concatenate([pictures(2000, 5), pictures(500, 8, offset=-30)])
    found = judged(counted(tmp_path / "c.json", reference, dark, answers(2500, 5)[0]), reference)
    assert [one.verdict for one in found.windows] == ["fine"] * 4 + ["recalibrate"]
    assert "in 1 of 5 windows" in found.why


def test_counting_goes_on_and_stays_small(tmp_path: Path, reference: drift_reference.DriftReference) -> None:
    path, sizes = tmp_path / "c.json", reference.count_bins(len(CLASSES))
    for seed in range(2):
        counted(path, reference, pictures(300, seed), answers(300, seed)[0])
    assert [window["pictures"] for window in watch.read(path, "me", sizes)["windows"]] == [500, 100]
    some = pictures(100, 3), answers(100, 3)[0]
    for _ in range(watch.MAX_WINDOWS * watch.IMAGES_PER_WINDOW // 100 + 5):
        counted(path, reference, *some)
    assert len(watch.read(path, "me", sizes)["windows"]) == watch.MAX_WINDOWS
    assert path.stat().st_size < 20_000
    assert {file.name for file in tmp_path.iterdir()} == {"c.json", ".c.json.lock"}


def test_a_killed_counter_leaves_whole_counts(
    tmp_path: Path, arrays: dict[str, np.ndarray], reference: drift_reference.DriftReference
) -> None:
    np.savez(tmp_path / watch.REFERENCE_FILE, **arrays)
    body = f"""
import sys, numpy as np
from toolchain.edge import watch
folder = sys.argv[1]
counters = watch.Counters(folder + "/c.json", "me", watch.read_bin_edges(folder + "/{watch.REFERENCE_FILE}"), 3)
watch.IMAGES_PER_WRITE = 1
print("counting", flush=True)
while True:
    counters.add(np.zeros((24, 20), np.uint8), np.zeros(3))
"""
    order = np.random.default_rng(0)
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", body, tmp_path], stdout=subprocess.PIPE, cwd=ROOT)
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(order.uniform(0.05, 0.3))
        child.kill()
        child.wait()
        child.stdout.close()
        watch.read(tmp_path / "c.json", "me", reference.count_bins(3))
    assert {one.name for one in tmp_path.iterdir()} <= {"c.json", ".c.json.lock", ".c.json.tmp", watch.REFERENCE_FILE}


@pytest.mark.parametrize("where", ["measure_image", "confidence", "find_bin"])
@pytest.mark.parametrize("before", [0, 3, watch.IMAGES_PER_WINDOW])
def test_an_interrupted_picture_leaves_whole_counts(
    where: str, before: int, tmp_path: Path, reference: drift_reference.DriftReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters, sizes = watch.Counters(tmp_path / "c.json", "me", reference.bin_edges, 3), reference.count_bins(3)
    one, answer = np.full((24, 20), 90, np.uint8), np.zeros(3)
    for _ in range(before):
        counters.add(one, answer)
    real, calls = getattr(watch, where), iter(range(4))

    def cut(*given: Any) -> Any:
        if next(calls) == (3 if where == "find_bin" else 0):
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(watch, where, cut)
        with pytest.raises(KeyboardInterrupt):
            counters.add(one, answer)
    counters.close()
    assert sum(window["pictures"] for window in watch.read(tmp_path / "c.json", "me", sizes)["windows"]) == before


def test_a_full_disk_is_one_message_and_counting_goes_on(
    tmp_path: Path, reference: drift_reference.DriftReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = watch.Counters(tmp_path / "c.json", "me", reference.bin_edges, 3)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for number in range(watch.IMAGES_PER_WRITE):
        if number == watch.IMAGES_PER_WRITE - 1:
            with pytest.raises(watch.CounterFileError, match="cannot write .*: No space left"):
                counters.add(np.zeros((24, 20), np.uint8), np.zeros(3))
        else:
            counters.add(np.zeros((24, 20), np.uint8), np.zeros(3))
    monkeypatch.undo()
    counters.close()
    found = watch.read(tmp_path / "c.json", "me", reference.count_bins(3))
    assert found["windows"][0]["pictures"] == watch.IMAGES_PER_WRITE


def test_many_windows_of_other_pictures_are_not_taken_for_a_model_that_is_less_sure(
    tmp_path: Path, reference: drift_reference.DriftReference
) -> None:
    names = []
    for seed in range(20):
        names.append(
            counted(
                tmp_path / f"{seed}.json", reference, pictures(100, seed + 50, offset=25), answers(100, seed + 50)[0]
            )
        )
    files = drift.read_counters(names, "me", reference.count_bins(len(CLASSES)))
    found = drift.detect("digits", reference, len(CLASSES), files)
    assert (found.verdict, len(found.windows)) == ("recalibrate", 20)


def test_two_do_not_count_into_one_file(tmp_path: Path, reference: drift_reference.DriftReference) -> None:
    first = watch.Counters(tmp_path / "c.json", "me", reference.bin_edges, 3)
    with pytest.raises(watch.CounterFileError, match="another process counts into"):
        watch.Counters(tmp_path / "c.json", "me", reference.bin_edges, 3)
    first.close()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: text[: len(text) // 2], "truncated or damaged"),
        (lambda text: "", "truncated or damaged"),
        (lambda text: "[" * 100_000, "truncated or damaged"),
        (lambda text: "[1]", "holds no counters"),
        (lambda text: text.replace('"me"', '"somebody else"'), "belongs to another bundle"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema 2; this version reads 1"),
        (lambda text: text.replace('"pictures": 200', '"pictures": 201'), "its window 1 do not add up"),
        (lambda text: text.replace('"pictures": 200', '"pictures": true'), "its window 1 do not add up"),
        (lambda text: text.replace('"noise"', '"smell"'), "its window 1 do not add up"),
        (lambda text: text + " " * watch.MAX_BYTES, "holds no counters"),
    ],
)
def test_counters_that_are_not_whole_are_refused(
    spoil: Any, said: str, tmp_path: Path, reference: drift_reference.DriftReference
) -> None:
    path = counted(tmp_path / "c.json", reference, pictures(200), answers(200)[0])
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ToolchainError, match=said):
        drift.read_counters([path], "me", reference.count_bins(len(CLASSES)))
    with pytest.raises(watch.CounterFileError, match=said):
        watch.Counters(path, "me", reference.bin_edges, len(CLASSES))


def test_missing_counters_are_one_message(tmp_path: Path, reference: drift_reference.DriftReference) -> None:
    with pytest.raises(ToolchainError, match="cannot read .*: No such file"):
        drift.read_counters([tmp_path / "none.json"], "me", reference.count_bins(3))


def test_readings_say_what_they_are_called() -> None:
    order = np.random.default_rng(0)
    flat, loud = np.full((24, 20), 100, np.uint8), order.integers(90, 110, (24, 20)).astype(np.uint8)
    colourful = np.stack([flat, flat // 2, flat], axis=2)
    read = {name: dict(zip(watch.INPUT_READINGS, watch.measure_image(one), strict=True)) for name, one in
            {"flat": flat, "loud": loud, "colour": colourful, "black": 0 * flat}.items()}  # fmt: skip
    assert (read["flat"]["brightness"], read["flat"]["contrast"], read["flat"]["noise"]) == (100, 0, 0)
    assert read["loud"]["noise"] > 10
    assert (read["colour"]["colour"], read["flat"]["colour"]) == (50, 0)
    assert (read["black"]["saturated"], read["flat"]["saturated"]) == (1, 0)
    assert all(np.isfinite(list(one.values())).all() for one in read.values())


def test_the_two_sample_test_agrees_with_scipy() -> None:
    from scipy.stats import chi2_contingency

    order = np.random.default_rng(0)
    for _ in range(20):
        rows = order.integers(0, 30, (2, 8))
        rows[:, 3] = 0
        used = rows[:, rows.sum(0) > 0]
        assert statistics.homogeneity_p_value(*rows) == pytest.approx(chi2_contingency(used, correction=False).pvalue)
    assert statistics.homogeneity_p_value(np.array([5, 0]), np.array([9, 0])) == 1.0
    assert statistics.homogeneity_p_value(np.array([0, 0]), np.array([9, 1])) == 1.0


def test_the_page_and_the_json_are_written(tmp_path: Path, reference: drift_reference.DriftReference) -> None:
    found = judged(counted(tmp_path / "c.json", reference, pictures(500, 7, offset=25), answers(500, 7)[0]), reference)
    own = drift_reference.WatchedBundle(name="digits for cpu", identity="me", classes=CLASSES, reference=reference)
    drift_report.write(found, own, tmp_path / "drift")
    text = (tmp_path / "drift" / "drift.html").read_text()
    assert "<h1>Recalibrate</h1>" in text
    assert "brightness moved" in text
    row = json.loads((tmp_path / "drift" / "drift.json").read_text())
    assert (row["verdict"], row["windows"][0]["pictures"]) == ("recalibrate", 500)
