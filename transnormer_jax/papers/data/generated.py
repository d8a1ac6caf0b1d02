"""What generated datasets share: options in their name, `"listops/max_length=200"`, and processes that draw them."""

import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from transnormer_jax.data import DataConfig
from transnormer_jax.errors import UserError, did_you_mean


def config_from_name[T: tfds.core.BuilderConfig](config: DataConfig, kind: type[T]) -> T:
    """Returns a builder config of a kind, with the options in `config.dataset`.

    Raises:
      UserError: an option is unknown or is not of its default's type, or `config.files` is given.
    """
    dataset = config.dataset
    if config.files:
        raise UserError(f"dataset {dataset!r} is generated: leave `files` empty.")
    of_tfds = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
    known = {field.name: field.default for field in dataclasses.fields(kind) if field.name not in of_tfds}
    options: dict[str, Any] = {}
    for option in filter(None, dataset.partition("/")[2].split(",")):
        name, _, value = option.partition("=")
        if name not in known:
            raise UserError(f"dataset {dataset!r} has no option {name!r}: {did_you_mean(name, known)}")
        parsed: int | str | bool = value
        if value in ("True", "False"):
            parsed = value == "True"
        elif value.removeprefix("-").isdecimal():
            parsed = int(value)
        if known[name] is not None and type(parsed) is not type(known[name]):
            raise UserError(
                f"option {name!r} of dataset {dataset!r} is {value!r}: give a value like {known[name]!r}, its default."
            )
        options[name] = parsed
    return kind(**options)


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
