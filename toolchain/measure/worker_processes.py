"""Processes that answer one line of JSON with another, and work that is shared among several of them.

They end with their input, so none outlives whoever started it, however that ended.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from toolchain.core.errors import ToolchainError, last_line

TIMEOUT_SECONDS = 600
STOP_SECONDS = 30  # that a process may take to end once it is told to


class WorkerEnded(ToolchainError):
    """A process came to its end without an answer: perhaps for want of memory, and the next one may give it."""


class WorkerProcess:
    """One that was started; `what` is what messages call it."""

    def __init__(self, child: "subprocess.Popen[str]", errors: Any, what: str) -> None:
        self._child, self._errors, self.process_name = child, errors, what

    def ask(self, question: Mapping[str, Any]) -> Any:
        """Its answer.

        Raises:
            Ended: it ended without one.
            ToolchainError: it answered something else.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # said below, with the reason
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
        late = threading.Timer(TIMEOUT_SECONDS, self._child.kill)
        late.start()
        try:
            line = self._child.stdout.readline()
        finally:
            late.cancel()
        if not line:
            self._child.wait()
            self._errors.seek(0)
            raise describe_failure(self.process_name, self._errors.read(), self._child.returncode)
        return parse_line(self.process_name, line)


@contextlib.contextmanager
def start_worker(command: Sequence[str], environment: Mapping[str, str] | None, what: str) -> Iterator[WorkerProcess]:
    """A process while it is needed."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )  # fmt: skip
        try:
            yield WorkerProcess(child, errors, what)
        finally:
            late = threading.Timer(STOP_SECONDS, child.kill)
            late.start()
            with contextlib.suppress(BrokenPipeError, ValueError):
                child.communicate()  # an end of input is its sign to stop
            late.cancel()


def share_work(
    room: str, questions: Mapping[str, Mapping[str, Any]], what: str, most: int | None = None
) -> Iterator[tuple[str, Any]]:
    """Answers to all questions as they come, from as many `python -m toolchain.<room>` as there are cores.

    Args:
        room: reads questions from its standard input, one a line.
        questions: by name.
        what: such a process is called in messages.
        most: of them; None: as many as there are cores.

    Yields:
        the name of a question and its answer, or the ToolchainError that came instead: a process that ends is replaced.
    """
    command, count = [sys.executable, "-P", "-m", f"toolchain.{room}"], min(most or _cores(), len(questions))
    idle: queue.SimpleQueue[WorkerProcess | None] = queue.SimpleQueue()
    for _ in range(count):
        idle.put(None)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(max(1, count)) as pool:

        def ask(question: Mapping[str, Any]) -> Any:
            process = idle.get() or stack.enter_context(start_worker(command, None, what))
            try:
                answer = process.ask(question)
            except ToolchainError as reason:
                idle.put(None)
                return reason
            idle.put(process)
            return answer

        waiting = {pool.submit(ask, question): name for name, question in questions.items()}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)  # nobody waits for the rest


def parse_line(what: str, line: str) -> Any:
    """An answer.

    Raises:
        ToolchainError: it is none.
    """
    try:
        return json.loads(line)
    except ValueError as reason:
        raise ToolchainError(f"{what} answered {line.strip()[:80]!r}, which is no result") from reason


def describe_failure(what: str, errors: str, status: int) -> WorkerEnded:
    """What is said of a process that ended without an answer."""
    return WorkerEnded(f"{what} failed: {last_line(errors, f'exit status {status}')}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
