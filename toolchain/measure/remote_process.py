"""Local `ssh` processes whose other end runs on a board: start one, tell it that the host still waits, and stop it.

The other end ends itself when its standard input closes or stays silent, so a heartbeat is written to it for as long as its
work is wanted.
"""

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import IO

from toolchain.core.errors import ToolchainError

HEARTBEAT_SECONDS = 10.0


def start(command: Sequence[str], errors: IO[str]) -> "subprocess.Popen[str]":
    """Start `ssh` with pipes for its input and output; its standard error goes to `errors`.

    Raises:
        ToolchainError: `ssh` is not installed.
    """
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
    except FileNotFoundError as reason:
        raise ToolchainError(
            "--device needs the system's ssh, which is not installed. Install it (Debian: apt-get install openssh-client)"
        ) from reason


def stop(child: "subprocess.Popen[str]", timeout_seconds: float) -> None:
    """Close a process's input, which tells the other end to stop, and wait for it; kill it after the timeout."""
    try:
        with contextlib.suppress(BrokenPipeError, ValueError):
            child.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


@contextlib.contextmanager
def send_heartbeats(child: "subprocess.Popen[str]") -> Iterator[None]:
    """Write an empty line to a process every few seconds: the other end ends itself without them."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError, ValueError):
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def read_text(file: IO[str]) -> str:
    """Return everything that was written to a file."""
    file.seek(0)
    return file.read()
