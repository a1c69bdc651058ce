"""A limit on the processor time of tracing: Torch-Pruning follows single channels, and some models keep it busy for hours."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from toolchain.core.errors import ToolchainError


@contextlib.contextmanager
def limit_seconds(seconds: float) -> Iterator[None]:
    """Raise in the block once this process has computed for so long; in another thread than the main one, do nothing.

    Args:
        seconds: processor time, so that other work on the machine does not count.

    Raises:
        ToolchainError: the limit is reached.
    """

    def stop(_: int, __: FrameType | None) -> None:
        raise ToolchainError(f"following single channels takes more than {seconds:.0f} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
