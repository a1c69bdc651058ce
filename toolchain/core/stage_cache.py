"""Stage cache: carried out of a larger module; to be described."""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolchain.core.files import lock_folder, read_json, to_jsonable, write_json

RECORD_FILE = "record.json"


@dataclasses.dataclass(frozen=True)
class CachedStage:
    """A stage's own folder while it works, and its record when it is done."""

    folder: Path
    key: str
    record: Mapping[str, Any] | None  # None: not done yet
    seconds: float = 0.0


@contextlib.contextmanager
def open_stage(work: Path, name: str, key: str) -> Iterator[CachedStage]:
    """The folder `work/name/key`, held for this process; leftovers of a killed writer are swept."""
    folder = work / name / key
    with lock_folder(folder, wait=True):
        for orphan in folder.glob(".*.tmp"):
            orphan.unlink() if orphan.is_file() else shutil.rmtree(orphan)
        record = read_json(folder / RECORD_FILE) if (folder / RECORD_FILE).exists() else None
        yield CachedStage(folder, key, record and record["figures"], record["seconds"] if record else 0.0)


def finish(stage: CachedStage, started: float, figures: Mapping[str, Any]) -> CachedStage:
    """Marks a stage as done; `started` is `time.monotonic()` at its start."""
    seconds = round(time.monotonic() - started, 3)
    write_json(stage.folder / RECORD_FILE, {"key": stage.key, "seconds": seconds, "figures": figures})
    return dataclasses.replace(stage, record=to_jsonable(figures), seconds=seconds)
