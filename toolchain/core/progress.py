"""Progress that a person can watch and a log can keep: a bar with a rate on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """Counts steps of one piece of long work; `total` may grow on the way."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done, self.note = label, total, 0, ""
        self.started = self.shown = time.monotonic()

    def step(self, note: str = "", count: int = 1) -> None:
        """One more done; `note` is a short figure worth seeing, such as a loss."""
        self.done += count
        self.note = note or self.note
        now = time.monotonic()
        if now - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = now
            self.print_line()

    def print_line(self) -> None:
        """Prints where the work stands."""
        took = time.monotonic() - self.started
        rate = self.done / took if took else 0.0
        left = (self.total - self.done) / rate if rate else 0.0
        print(
            f"{self.label}: {self.done}/{self.total} ({rate:.3g}/s, {left:.0f} s left) {self.note}".rstrip(), flush=True
        )


class TerminalProgressBar(ProgressBar):
    """The same on a terminal, drawn by rich."""

    def __init__(self, label: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__(label, total)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self.display = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), transient=True)
        self.task = self.display.add_task(label, total=total, note="", rate="")
        self.display.start()

    def step(self, note: str = "", count: int = 1) -> None:
        self.done += count
        self.note = note or self.note
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        self.display.update(self.task, completed=self.done, total=self.total, note=self.note, rate=f"{rate:.3g}/s")


@contextmanager
def show_bar(label: str, total: int) -> Iterator[ProgressBar]:
    """A progress display for `total` steps."""
    if sys.stdout.isatty():
        terminal = TerminalProgressBar(label, total)
        try:
            yield terminal
        finally:
            terminal.display.stop()
    else:
        yield ProgressBar(label, total)


def log(text: str) -> None:
    """One line about what is happening."""
    print(text, flush=True)
