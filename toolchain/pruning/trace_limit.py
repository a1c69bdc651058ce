"""A limit on the processor time of tracing: Torch-Pruning follows single channels, and some models keep it busy for hours."""

import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from toolchain.core.errors import ToolchainError

SECONDS_BETWEEN_CHECKS = 0.01


@contextlib.contextmanager
def limit_seconds(seconds: float, package: str) -> Iterator[None]:
    """Raise in the block once this process has computed for so long; in another thread than the main one, do nothing.

    A thread watches the clock and calls a signal's handler in the main thread. The signal itself is never sent: one that is
    on its way to another thread when the limit ends would kill the process.

    Args:
        seconds: processor time, so that other work on the machine does not count.
        package: the error is raised in this package's own Python functions alone. Anywhere else, in the middle of an
            import or of code that C++ calls and that must not raise, it could take the process along.

    Raises:
        ToolchainError: the limit is reached.
    """
    expired, done = list[ToolchainError](), threading.Event()

    def stop(_: int, frame: FrameType | None) -> None:
        module = frame.f_globals.get("__name__", "") if frame else ""
        if module == package or module.startswith(f"{package}."):
            expired.append(ToolchainError(f"following single channels takes more than {seconds:.0f} s"))
            raise expired[0]

    def watch(end: float) -> None:
        # again and again: where the error is raised in code that catches all of them, the next one is not
        while not done.wait(SECONDS_BETWEEN_CHECKS):
            if time.process_time() > end:
                _thread.interrupt_main(signal.SIGVTALRM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, stop)
    watcher = threading.Thread(target=watch, args=(time.process_time() + seconds,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        signal.signal(signal.SIGVTALRM, before)
    if expired:
        raise expired[0]
