"""Decode image files into one array on disk, on all cores, in blocks: memory does not grow with the number of images.

A run that was killed goes on with the blocks that it has not written yet.
"""

import io
import json
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np

from toolchain.core import files, progress
from toolchain.core.errors import ToolchainError
from toolchain.core.types import Preprocessing
from toolchain.data.map_ahead import map_ahead
from toolchain.edge import run, served_pixels

IMAGES_PER_BLOCK = 64
DECODERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_files(
    paths: Sequence[Path], preprocess: Preprocessing, target: Path, on_corrupt: Literal["fail", "skip"]
) -> tuple[np.ndarray, set[int]]:
    """Decode and resize image files into one array, which is kept at `target` and read from there the next time.

    Args:
        paths: the image files.
        preprocess: input size (height, width), colour mode, and how an image is fitted to them.
        target: the .npy file; a .json file beside it lists the corrupt files and marks the array as complete.
        on_corrupt: whether a corrupt file is an error or left out.

    Returns:
        Pixels of the readable files, uint8 [files, height, width] or [files, height, width, 3], mapped from the file,
        and the indices of the corrupt ones.

    Raises:
        ToolchainError: a file is corrupt and `on_corrupt` is "fail", no file can be read, or the disk is full.
    """
    marker = target.with_suffix(".json")
    if marker.exists():
        return np.load(target, mmap_mode="c"), set(files.read_json(marker))
    shape = (*preprocess.image_size, *((3,) if preprocess.mode == "rgb" else ()))
    try:
        with UnfinishedArray(target, len(paths), shape) as unfinished:
            _decode_blocks(paths, preprocess, unfinished, on_corrupt)
            if len(unfinished.corrupt) == len(paths):
                raise ToolchainError(
                    f"none of the {len(paths)} images for {target.stem} can be read; `toolchain check-data` says why for each file"
                )
            unfinished.finish()
    except OSError as reason:
        raise files.disk_error(target, reason) from reason
    files.write_json(marker, sorted(unfinished.corrupt))
    unfinished.remove()
    return np.load(target, mmap_mode="c"), unfinished.corrupt


class UnfinishedArray:
    """An array of images on its way to disk, beside a journal of the blocks that are written."""

    def __init__(self, target: Path, images: int, shape: tuple[int, ...]) -> None:
        """Open what an earlier run of the same images left, or begin.

        Args:
            target: where the finished array goes.
            images: how many there are.
            shape: of one.
        """
        self.target, self.images, self.shape = target, images, shape
        self.path, self.journal_path = target.with_suffix(".part"), target.with_suffix(".journal")
        self.corrupt, self.done = set[int](), set[int]()
        begun = self.path.is_file()
        if begun:
            self._read_journal()
        self.header = self._make_header(images)
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        os.pwrite(self.file, self.header, 0)
        # of an array that a killed run moved to its place, a journal may be left, which says nothing of this one
        self.journal = self.journal_path.open("a" if begun else "w")

    def __enter__(self) -> "UnfinishedArray":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)
        self.journal.close()

    def _read_journal(self) -> None:
        lines = self.journal_path.read_text().splitlines() if self.journal_path.is_file() else []
        for line in lines:
            try:
                first, corrupt = json.loads(line)
            except ValueError:
                break  # the line that a kill cut short
            self.done.add(first)
            self.corrupt |= set(corrupt)

    def write(self, first: int, images: Sequence[np.ndarray | None]) -> None:
        """Write a block of images, the first of which has the index `first`; None stands for a corrupt file."""
        size = int(np.prod(self.shape))
        empty = np.zeros(self.shape, np.uint8)
        block = np.stack([empty if image is None else image for image in images]).tobytes()
        start, written = len(self.header) + first * size, 0
        while written < len(block):  # not through a mapping: there, a full disk would end the process
            written += os.pwrite(self.file, block[written:], start + written)
        corrupt = [first + row for row, image in enumerate(images) if image is None]
        os.fdatasync(self.file)
        self.journal.write(json.dumps([first, corrupt]) + "\n")
        self.journal.flush()
        self.done.add(first)
        self.corrupt |= set(corrupt)

    def finish(self) -> None:
        """Put the finished array in its place, without the corrupt files."""
        if not self.corrupt:
            self.path.replace(self.target)
            return
        rows = np.memmap(self.path, np.uint8, "r", len(self.header), (self.images, *self.shape))
        with files.open_atomic(self.target) as out:
            out.write(self._make_header(self.images - len(self.corrupt)))
            for first in range(0, self.images, IMAGES_PER_BLOCK):
                block = range(first, min(first + IMAGES_PER_BLOCK, self.images))
                out.write(rows[[row for row in block if row not in self.corrupt]].tobytes())

    def _make_header(self, images: int) -> bytes:
        header = io.BytesIO()
        shape = (images, *self.shape)
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return header.getvalue()

    def remove(self) -> None:
        """Remove the unfinished array and its journal."""
        self.path.unlink(missing_ok=True)
        self.journal_path.unlink(missing_ok=True)


def _decode_blocks(
    paths: Sequence[Path], preprocess: Preprocessing, unfinished: UnfinishedArray, on_corrupt: Literal["fail", "skip"]
) -> None:
    """Decode the blocks that are not written yet.

    Raises:
        ToolchainError: a file is corrupt and `on_corrupt` is "fail"; the first of them is named.
    """

    def decode(first: int) -> list[np.ndarray | run.Refused]:
        return [_decode(path, preprocess) for path in paths[first : first + IMAGES_PER_BLOCK]]

    label = f"decode {unfinished.target.stem}"
    pending = [first for first in range(0, len(paths), IMAGES_PER_BLOCK) if first not in unfinished.done]
    blocks = map_ahead(decode, pending, threads=DECODERS, ahead=2 * DECODERS)
    with progress.show_bar(label, len(paths)) as bar, closing(blocks):
        bar.step(count=len(paths) - sum(len(paths[first : first + IMAGES_PER_BLOCK]) for first in pending))
        for first, images in zip(pending, blocks, strict=True):
            refused = [image for image in images if isinstance(image, run.Refused)]
            if refused and on_corrupt == "fail":
                raise ToolchainError(
                    f'{refused[0]}; repair or remove it, or set on_corrupt = "skip" in the domain (--on-corrupt skip)'
                ) from refused[0]
            unfinished.write(first, [None if isinstance(image, run.Refused) else image for image in images])
            bar.step(count=len(images))


def _decode(path: Path, preprocess: Preprocessing) -> np.ndarray | run.Refused:
    try:
        return served_pixels.read(path, preprocess)
    except run.Refused as reason:
        return reason
