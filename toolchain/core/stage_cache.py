"""Stage cache: carried out of a larger module; to be described."""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolchain.core.files import locked, plain, read_json, write_json

RECORD = "record.json"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage's own folder while it works, and its record when it is done."""

    folder: Path
    key: str
    figures: Mapping[str, Any] | None  # None: not done yet
    seconds: float = 0.0


@contextlib.contextmanager
def stage(work: Path, name: str, key: str) -> Iterator[Stage]:
    """The folder `work/name/key`, held for this process; leftovers of a killed writer are swept."""
    folder = work / name / key
    with locked(folder, wait=True):
        for orphan in folder.glob(".*.tmp"):
            orphan.unlink() if orphan.is_file() else shutil.rmtree(orphan)
        record = read_json(folder / RECORD) if (folder / RECORD).exists() else None
        yield Stage(folder, key, record and record["figures"], record["seconds"] if record else 0.0)


def finish(stage: Stage, started: float, figures: Mapping[str, Any]) -> Stage:
    """Marks a stage as done; `started` is `time.monotonic()` at its start."""
    seconds = round(time.monotonic() - started, 3)
    write_json(stage.folder / RECORD, {"key": stage.key, "seconds": seconds, "figures": figures})
    return dataclasses.replace(stage, figures=plain(figures), seconds=seconds)
