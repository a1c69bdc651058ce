"""A limit on the processor time of tracing: Torch-Pruning follows single channels, and some models keep it busy for hours."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from toolchain.core.errors import ToolchainError

SECONDS_BETWEEN_SIGNALS = 0.01


@contextlib.contextmanager
def limit_seconds(seconds: float, package: str) -> Iterator[None]:
    """Raise in the block once this process has computed for so long; in another thread than the main one, do nothing.

    Args:
        seconds: processor time, so that other work on the machine does not count.
        package: the error is raised in this package's own Python functions alone. Anywhere else, in the middle of an
            import or of code that C++ calls and that must not raise, it could take the process along.

    Raises:
        ToolchainError: the limit is reached.
    """
    expired = list[ToolchainError]()

    def stop(_: int, frame: FrameType | None) -> None:
        module = frame.f_globals.get("__name__", "") if frame else ""
        if module == package or module.startswith(f"{package}."):
            expired.append(ToolchainError(f"following single channels takes more than {seconds:.0f} s"))
            raise expired[0]

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, stop)
    # again and again: where the error is raised in code that catches all of them, the next one is not
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, SECONDS_BETWEEN_SIGNALS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    if expired:
        raise expired[0]
