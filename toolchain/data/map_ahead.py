"""Compute values in threads, a few ahead of the one that is needed, in their order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int,
    ahead: int,
    prepare_thread: Callable[[], object] | None = None,
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item; an error is raised when its item's turn comes.

    Args:
        threads: how many.
        ahead: values that may be computed before they are asked for, which bounds the memory.
        prepare_thread: called once in each thread.
    """
    with ThreadPoolExecutor(threads, initializer=prepare_thread) as pool:
        pending = deque[Future[Result]]()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
