"""Decoding in blocks: the same array as one image after the other, resumed where it ended, bounded in memory."""

import dataclasses
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import draw

from toolchain.core import files
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data import decoded_files
from toolchain.data.decoded_files import decode_files
from toolchain.edge import served_pixels

PREPROCESS = Preprocessing(image_size=(8, 9), mode="gray", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(decoded_files, "IMAGES_PER_BLOCK", 4)
    return sorted(draw(tmp_path / "pictures", {"ant": 30, "bee": 17}).rglob("*.png"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache" / "train.npy"


def one_by_one(paths: Sequence[Path], preprocess: Preprocessing = PREPROCESS) -> np.ndarray:
    return np.stack([served_pixels.read(path, preprocess) for path in paths])


def count_reads(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None] = lambda count: None) -> list[Path]:
    """Return the list that files are noted in as they are read; `before` is called with the count so far."""
    seen, read = list[Path](), served_pixels.read

    def note(path: Path, preprocess: Preprocessing) -> np.ndarray:
        before(len(seen))
        seen.append(path)
        return read(path, preprocess)

    monkeypatch.setattr(served_pixels, "read", note)
    return seen


@pytest.mark.parametrize("mode", ["gray", "rgb"])
def test_blocks_on_all_cores_give_what_one_image_after_the_other_gives(
    paths: list[Path], target: Path, mode: str
) -> None:
    preprocess = dataclasses.replace(PREPROCESS, mode=mode)  # type: ignore[arg-type]
    for _ in range(2):  # decoded, and read again
        pixels, corrupt = decode_files(paths, preprocess, target, "fail")
        assert np.array_equal(pixels, one_by_one(paths, preprocess))
        assert not corrupt
    assert sorted(path.name for path in target.parent.iterdir()) == ["train.json", "train.npy"]


def test_corrupt_files_leave_no_row(paths: list[Path], target: Path) -> None:
    for row in (0, 5, 46):
        paths[row].write_bytes(b"no picture")
    pixels, corrupt = decode_files(paths, PREPROCESS, target, "skip")
    assert corrupt == {0, 5, 46}
    assert np.array_equal(pixels, one_by_one([path for row, path in enumerate(paths) if row not in corrupt]))
    assert decode_files(paths, PREPROCESS, target, "skip")[1] == corrupt


def test_the_first_corrupt_file_is_named_and_after_its_repair_only_the_rest_is_decoded(
    paths: list[Path], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {row: paths[row].read_bytes() for row in (21, 23, 40)}
    for row in content:
        paths[row].write_bytes(b"no picture")
    with pytest.raises(ToolchainError, match=rf"{paths[21].name} is not a readable picture.*--on-corrupt skip"):
        decode_files(paths, PREPROCESS, target, "fail")
    for row, data in content.items():
        paths[row].write_bytes(data)
    seen = count_reads(monkeypatch)
    pixels, _ = decode_files(paths, PREPROCESS, target, "fail")
    assert sorted(seen) == paths[20:]
    monkeypatch.undo()
    assert np.array_equal(pixels, one_by_one(paths))


def test_a_run_that_was_killed_goes_on_where_it_ended(
    paths: list[Path], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(count: int) -> None:
        if count == 31:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoded_files, "DECODERS", 1)
        count_reads(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            decode_files(paths, PREPROCESS, target, "fail")
    with target.with_suffix(".journal").open("a") as journal:
        journal.write("[24, ")  # a line that was cut short
    seen = count_reads(monkeypatch)
    pixels, _ = decode_files(paths, PREPROCESS, target, "fail")
    assert 0 < len(set(paths) - set(seen)) < 31
    monkeypatch.undo()
    assert np.array_equal(pixels, one_by_one(paths))


def test_the_journal_of_an_array_that_was_moved_to_its_place_says_nothing_of_the_next(
    paths: list[Path], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # killed between the array and the file that marks it as complete
        patch.setattr(files, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            decode_files(paths, PREPROCESS, target, "fail")
    with monkeypatch.context() as patch:  # and again, after the first block
        patch.setattr(decoded_files, "DECODERS", 1)
        write = decoded_files.UnfinishedArray.write

        def stop(array: decoded_files.UnfinishedArray, first: int, images: Sequence[np.ndarray | None]) -> None:
            if first:
                raise KeyboardInterrupt
            write(array, first, images)

        patch.setattr(decoded_files.UnfinishedArray, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            decode_files(paths, PREPROCESS, target, "fail")
    assert np.array_equal(decode_files(paths, PREPROCESS, target, "fail")[0], one_by_one(paths))


def test_a_full_disk_is_one_message_and_loses_nothing(
    paths: list[Path], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = os.pwrite, list[int]()

    def fill(file: int, data: bytes, start: int) -> int:
        calls.append(start)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[: max(1, len(data) // 2)], start)  # and short writes before that

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fill)
        with pytest.raises(ToolchainError, match="No space left on device; free some disk space"):
            decode_files(paths, PREPROCESS, target, "fail")
    assert not target.exists()
    assert np.array_equal(decode_files(paths, PREPROCESS, target, "fail")[0], one_by_one(paths))


def test_few_blocks_are_in_memory_at_a_time(paths: list[Path], target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, most = list[int](), list[int]()
    monkeypatch.setattr(decoded_files, "DECODERS", 1)
    seen = count_reads(monkeypatch, lambda count: most.append(count // 4 - len(written)))
    write = decoded_files.UnfinishedArray.write

    def note(array: decoded_files.UnfinishedArray, first: int, images: Sequence[np.ndarray | None]) -> None:
        write(array, first, images)
        written.append(first)

    monkeypatch.setattr(decoded_files.UnfinishedArray, "write", note)
    decode_files(paths, PREPROCESS, target, "fail")
    assert len(seen) == len(paths)
    assert max(most) <= 4
