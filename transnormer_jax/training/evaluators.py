"""Held-out metrics: over rows of examples, or over whole documents with the state carried from window to window."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transnormer_jax.data import TokenizedDocuments, Tokenizer, evaluation_windows
from transnormer_jax.distributed import RULES, batch_sharding
from transnormer_jax.models import Cache
from transnormer_jax.tasks import Batch, CausalLM, LossSums, Params, Task
from transnormer_jax.training.config import EvaluationConfig
from transnormer_jax.training.placement import place_cache

HostBatch = dict[str, np.ndarray]
OnBatch = Callable[[], None]

# Batches whose sums are read at once; the device is that many ahead, which a stop has to wait for.
_READ_TOGETHER = 4
# Parameters of fewer bytes are made whole on every device before an evaluation, and not gathered anew for each batch.
_MAX_WHOLE = 2**28


def _go_on() -> None:
    """Is called between two batches; what it raises ends the evaluation."""


class RowEvaluator:
    """Sums a task over batches of rows, each read by itself; compiles once, so it is kept through a run."""

    def __init__(self, task: Task, batches: Callable[[], Iterable[HostBatch]], mesh: Mesh, *, num_bytes: int = 0):
        """Reads nothing yet.

        Args:
          batches: begins the split anew at each call; every example is in it once, beside rows of padding alone.
          num_bytes: UTF-8 bytes of the text that the batches hold, for bits per byte; 0 if it is not text.
        """
        self._task, self._batches, self._num_bytes = task, batches, num_bytes
        self._mesh = mesh
        self._sums, self._whole = jax.jit(task.loss_and_metrics), _WholeParameters(mesh)

    def __call__(self, params: Params, on_batch: OnBatch = _go_on) -> dict[str, float]:
        """Returns the task's report and `seconds`."""
        begin = time.perf_counter()
        params = self._whole(params)
        totals = _total((self._sums(params, _on_devices(batch, self._mesh)) for batch in self._batches()), on_batch)
        report = self._task.report(totals)
        if self._num_bytes:
            report |= _by_bytes(totals, self._num_bytes)
        return report | {"seconds": time.perf_counter() - begin}


class DocumentEvaluator:
    """Evaluates a language model on whole documents: every token, and the end of each, from all before it."""

    def __init__(
        self,
        task: CausalLM,
        documents: TokenizedDocuments,
        tokenizer: Tokenizer,
        config: EvaluationConfig,
        mesh: Mesh,
    ):
        """Reads nothing yet."""
        self._task, self._documents, self._tokenizer, self._config = task, documents, tokenizer, config
        model: Any = task.model
        self._mesh, self._whole = mesh, _WholeParameters(mesh)
        self._cache_layout = jax.tree.map(
            lambda x: x.sharding, place_cache(jax.eval_shape(lambda: model.init_cache(config.batch_size)), mesh)
        )
        self._step = jax.jit(self._window_sums, donate_argnums=1, out_shardings=(self._cache_layout, None))

    def __call__(self, params: Params, on_batch: OnBatch = _go_on) -> dict[str, float]:
        """Returns the task's report, `bits_per_byte` (comparable between tokenizers), and what was read in how long."""
        begin = time.perf_counter()
        totals = _total(self._window_by_window(self._whole(params)), on_batch)
        return (
            self._task.report(totals)
            | _by_bytes(totals, int(self._documents.num_bytes.sum()))
            | {
                "documents": len(self._documents),
                "seconds": time.perf_counter() - begin,
            }
        )

    def _window_by_window(self, params: Params) -> Iterator[LossSums]:
        model: Any = self._task.model
        cache = jax.device_put(model.init_cache(self._config.batch_size), self._cache_layout)
        windows = evaluation_windows(
            self._documents,
            batch_size=self._config.batch_size,
            window=self._config.window,
            bos_id=self._tokenizer.bos_id,
            eos_id=self._tokenizer.eos_id,
            pad_id=self._tokenizer.pad_id,
        )
        for window in windows:
            cache, sums = self._step(params, cache, _on_devices(window, self._mesh))
            yield sums

    def _window_sums(self, params: Params, cache: Cache, batch: Batch) -> tuple[Cache, LossSums]:
        keep = ~batch["restart"]
        states = jax.tree.map(lambda x: jnp.where(keep.reshape(1, -1, *[1] * (x.ndim - 2)), x, 0), cache.states)
        cache = Cache(jnp.where(keep, cache.position, 0), states)
        sums, cache = self._task.loss_and_metrics_from(params, batch, cache)
        return cache, sums


class _WholeParameters:
    """Gathers the parameters of a small model over the axes that split them beside the batch or the rows."""

    def __init__(self, mesh: Mesh):
        """Compiles at the first call."""
        self._mesh = mesh
        self._gather: Any = None

    def __call__(self, params: Params) -> Params:
        """The same parameters, divided over `tensor` alone; larger ones as they are."""
        leaves = jax.tree.leaves(params)
        divided = math.prod(self._mesh.shape[axis] for axis in RULES.embed) > 1
        if not divided or sum(x.size * x.dtype.itemsize for x in leaves) > _MAX_WHOLE:
            return params
        if self._gather is None:
            self._gather = jax.jit(lambda x: x, out_shardings=jax.tree.map(self._layout, params))
        return self._gather(params)

    def _layout(self, x: jax.Array) -> NamedSharding:
        spec = getattr(x.sharding, "spec", PartitionSpec())
        kept = [_without(axes, RULES.embed) for axes in spec]
        return NamedSharding(self._mesh, PartitionSpec(*kept))


def _without(axes: Any, removed: Collection[str]) -> Any:
    left = tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes or ()) if axis not in removed)
    return left or None


def _by_bytes(totals: LossSums, num_bytes: int) -> dict[str, float]:
    """What is comparable between tokenizers."""
    return {"bits_per_byte": float(totals.loss / np.log(2) / num_bytes), "bytes": num_bytes}


def _on_devices(batch: HostBatch, mesh: Mesh) -> Batch:
    return {
        name: jax.make_array_from_callback(x.shape, batch_sharding(mesh, x.shape), x.__getitem__)
        for name, x in batch.items()
    }


def _total(sums: Iterable[LossSums], on_batch: OnBatch) -> LossSums:
    """Adds up, some batches late so that the device never waits; in float64, since float32 stops counting at 2^24."""
    total, waiting = np.zeros(len(LossSums._fields)), list[LossSums]()
    for one in sums:
        waiting.append(one)
        if len(waiting) == 2 * _READ_TOGETHER:
            total += _read(waiting[:_READ_TOGETHER])
            del waiting[:_READ_TOGETHER]
        on_batch()
    return LossSums._make(total + _read(waiting))


def _read(sums: list[LossSums]) -> np.ndarray:
    return np.array(jax.device_get(sums), np.float64).sum(axis=0)
