"""Show progress: a bar with a rate on a terminal; without one, a line every few seconds, which suits a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """Counts the steps of a long task and prints a line every SECONDS_BETWEEN_LINES; `total` may grow on the way."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done, self.note = label, total, 0, ""
        self.started = self.shown = time.monotonic()

    def step(self, note: str = "", count: int = 1) -> None:
        """Count `count` more steps as done; `note` is a short text to show, such as the loss."""
        self.done += count
        self.note = note or self.note
        now = time.monotonic()
        if now - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = now
            self.print_line()

    def print_line(self) -> None:
        """Print the steps done, the rate and the time left."""
        seconds = time.monotonic() - self.started
        rate = self.done / seconds if seconds else 0.0
        left = (self.total - self.done) / rate if rate else 0.0
        print(
            f"{self.label}: {self.done}/{self.total} ({rate:.3g}/s, {left:.0f} s left) {self.note}".rstrip(), flush=True
        )


class TerminalProgressBar(ProgressBar):
    """A progress bar on a terminal, drawn by rich."""

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
    """Show progress over `total` steps while the block runs."""
    if sys.stdout.isatty():
        terminal = TerminalProgressBar(label, total)
        try:
            yield terminal
        finally:
            terminal.display.stop()
    else:
        yield ProgressBar(label, total)


def log(text: str) -> None:
    """Print one line about what is happening."""
    print(text, flush=True)
