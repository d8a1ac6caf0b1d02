"""A map over processes whose results come in order, a few ahead of the reader."""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator


def ordered_map[T, R](function: Callable[[T], R], items: Iterable[T], processes: int = 0) -> Iterator[R]:
    """Yields `function(item)` in the order of the items, which may be endless.

    Args:
      function: a picklable function; what it returns must depend on the item alone.
      items: picklable items.
      processes: how many work at once; 0 for one on each CPU, 1 for the caller alone.
    """
    processes = processes or os.cpu_count() or 1
    if processes == 1:
        yield from map(function, items)
        return
    # Spawned, since a fork of a process that runs JAX's threads may hang.
    context = multiprocessing.get_context("spawn")
    items = iter(items)
    with concurrent.futures.ProcessPoolExecutor(processes, context, _die_of_ctrl_c) as pool:
        ahead = collections.deque(pool.submit(function, item) for item in itertools.islice(items, 4 * processes))
        try:
            while ahead:
                result = ahead.popleft().result()
                ahead.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
                yield result
        finally:
            for future in ahead:
                future.cancel()


def _die_of_ctrl_c() -> None:
    """Ctrl-C reaches workers too: none prints a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
