"""Processes that answer each line of JSON with another line, and work that is shared among several of them.

They end when their input ends, so none outlives the process that started it, however that one ended.
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

TIMEOUT_SECONDS = 600  # for one answer
STOP_SECONDS = 30  # that a process may take to end after its input has ended
MAX_SHOWN_CHARACTERS = 80  # of a line that is not JSON, in a message


class WorkerEnded(ToolchainError):
    """A process ended without an answer, perhaps for lack of memory; the next one may answer."""


class WorkerProcess:
    """A process that was started."""

    def __init__(self, child: "subprocess.Popen[str]", errors: Any, process_name: str) -> None:
        """Wrap a process.

        Args:
            child: the process.
            errors: file that its standard error is written to.
            process_name: its name in messages, such as "a timing process".
        """
        self._child, self._errors, self.process_name = child, errors, process_name

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Send a request and return the answer.

        Raises:
            WorkerEnded: the process ended without an answer, or took longer than TIMEOUT_SECONDS.
            ToolchainError: the answer is not JSON.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the process has ended, which is reported below with the reason
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        watchdog = threading.Timer(TIMEOUT_SECONDS, self._child.kill)
        watchdog.start()
        try:
            line = self._child.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            self._child.wait()
            self._errors.seek(0)
            raise describe_failure(self.process_name, self._errors.read(), self._child.returncode)
        return parse_line(self.process_name, line)


@contextlib.contextmanager
def start_worker(
    command: Sequence[str], environment: Mapping[str, str] | None, process_name: str
) -> Iterator[WorkerProcess]:
    """Start a process, and end it when the context is left.

    Args:
        command: the program and its arguments.
        environment: variables of the process; None: those of this one.
        process_name: its name in messages.
    """
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )  # fmt: skip
        try:
            yield WorkerProcess(child, errors, process_name)
        finally:
            watchdog = threading.Timer(STOP_SECONDS, child.kill)
            watchdog.start()
            with contextlib.suppress(BrokenPipeError, ValueError):
                child.communicate()  # closes its input, at which it stops
            watchdog.cancel()


def share_work(
    module: str, requests: Mapping[str, Mapping[str, Any]], process_name: str, max_processes: int | None = None
) -> Iterator[tuple[str, Any]]:
    """Share requests among processes of `python -m toolchain.<module>`, and yield the answers as they come.

    A process that ends is replaced, so its request fails alone.

    Args:
        module: reads requests from its standard input, one a line.
        requests: by name.
        process_name: name of such a process in messages.
        max_processes: None: as many as there are cores.

    Yields:
        the name of a request, and its answer or the ToolchainError that came instead.
    """
    command = [sys.executable, "-P", "-m", f"toolchain.{module}"]
    count = min(max_processes or _count_cores(), len(requests))
    idle: queue.SimpleQueue[WorkerProcess | None] = queue.SimpleQueue()  # None: a process that is not started yet
    for _ in range(count):
        idle.put(None)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(max(1, count)) as pool:

        def ask(request: Mapping[str, Any]) -> Any:
            process = idle.get() or stack.enter_context(start_worker(command, None, process_name))
            try:
                answer = process.ask(request)
            except ToolchainError as reason:
                idle.put(None)
                return reason
            idle.put(process)
            return answer

        names = {pool.submit(ask, request): name for name, request in requests.items()}
        try:
            for future in as_completed(names):
                yield names[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # a caller that stops early does not wait for requests not yet begun


def parse_line(process_name: str, line: str) -> Any:
    """Return the answer in a line of JSON.

    Raises:
        ToolchainError: the line is not JSON.
    """
    try:
        return json.loads(line)
    except ValueError as reason:
        raise ToolchainError(
            f"{process_name} answered {line.strip()[:MAX_SHOWN_CHARACTERS]!r}, which is not a result in JSON"
        ) from reason


def describe_failure(process_name: str, errors: str, status: int) -> WorkerEnded:
    """Return the error of a process that ended without an answer: the last line of its errors, or its exit status."""
    return WorkerEnded(f"{process_name} failed: {last_line(errors, f'exit status {status}')}")


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
