"""Cache of stage results, so that an interrupted run resumes and runs share their stages.

A stage's folder is named by a key over everything that decides its result. The stage is done when `record.json` exists,
which is written last; until then a later run repeats the stage, from the last epoch that it saved.
"""

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
    """A stage's folder and, when it is done, its record."""

    folder: Path
    key: str
    record: Mapping[str, Any] | None  # None: not done yet
    seconds: float = 0.0  # how long the stage took


@contextlib.contextmanager
def open_stage(work: Path, name: str, key: str) -> Iterator[CachedStage]:
    """Lock the folder `work/name/key` and read its record. Temporary files of a killed run are removed.

    Args:
        work: folder of the cache.
        name: of the stage.
        key: from `files.digest`, over everything that decides the result.
    """
    folder = work / name / key
    with lock_folder(folder, wait=True):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink() if leftover.is_file() else shutil.rmtree(leftover)
        record = read_json(folder / RECORD_FILE) if (folder / RECORD_FILE).exists() else None
        yield CachedStage(folder, key, record and record["figures"], record["seconds"] if record else 0.0)


def finish(stage: CachedStage, started: float, figures: Mapping[str, Any]) -> CachedStage:
    """Write the record, which marks the stage as done.

    Args:
        started: `time.monotonic()` at the start of the stage.
        figures: the stage's results, as JSON-like data.
    """
    seconds = round(time.monotonic() - started, 3)
    write_json(stage.folder / RECORD_FILE, {"key": stage.key, "seconds": seconds, "figures": figures})
    return dataclasses.replace(stage, record=to_jsonable(figures), seconds=seconds)
