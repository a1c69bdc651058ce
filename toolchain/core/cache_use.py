"""Which cached folders a run used, so that `toolchain clean` keeps them as long as the run's results are there."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

_used: ContextVar[set[Path] | None] = ContextVar("used", default=None)


def note(folder: Path) -> None:
    """Note that the surrounding `record` block uses a cached folder; without one, do nothing."""
    used = _used.get()
    if used is not None:
        used.add(folder)


@contextlib.contextmanager
def record() -> Iterator[set[Path]]:
    """Collect the cached folders that are used while the block runs."""
    used = set[Path]()
    token = _used.set(used)
    try:
        yield used
    finally:
        _used.reset(token)
