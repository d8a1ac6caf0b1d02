"""Held-out loss on whole documents: the state is carried from window to window, so no document is cut."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transnormer_jax.data import TokenizedDocuments, Tokenizer, evaluation_windows, load_split
from transnormer_jax.distributed import batch_sharding, make_mesh, state_shardings
from transnormer_jax.errors import UserError
from transnormer_jax.models import Cache, TransNormerLLM
from transnormer_jax.tasks import CausalLM, Sums
from transnormer_jax.tasks.causal_lm import Batch, Params
from transnormer_jax.training.config import Config, EvaluationConfig
from transnormer_jax.training.workdir import load_workdir, write_json


class EvaluationResult(NamedTuple):
    """Totals over a split. Every token and the end of every document is predicted once, from all before it."""

    loss: float  # nats per token
    perplexity: float  # per token
    bits_per_byte: float  # of UTF-8 text; comparable between tokenizers
    accuracy: float
    tokens: int  # predicted, ends of documents included
    bytes: int
    documents: int
    seconds: float


class Evaluator:
    """Evaluates parameters on documents; compiles once, so it is kept through a run."""

    def __init__(self, task: CausalLM, tokenizer: Tokenizer, config: EvaluationConfig, mesh: Mesh):
        """Reads nothing yet."""
        self._task, self._tokenizer, self._config = task, tokenizer, config
        rows = batch_sharding(mesh)
        layers_then_rows = NamedSharding(mesh, PartitionSpec(None, *rows.spec))
        self._rows, self._cache_sharding = rows, Cache._make([rows, layers_then_rows])
        self._step = jax.jit(self._window_sums, donate_argnums=1, out_shardings=(self._cache_sharding, None))

    def __call__(self, params: Params, documents: TokenizedDocuments) -> EvaluationResult:
        """Returns the totals over `documents`."""
        begin = time.perf_counter()
        cache = jax.device_put(self._task.model.init_cache(self._config.batch_size), self._cache_sharding)
        total, previous = np.zeros(3), None
        for window in self._windows(documents):
            batch = jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, self._rows, x.__getitem__), window)
            cache, sums = self._step(params, cache, batch)
            # One window late, so that the device never waits; in float64, since float32 stops counting at 2^24 tokens.
            total += 0.0 if previous is None else np.array(jax.device_get(previous), np.float64)
            previous = sums
        total += np.array(jax.device_get(previous), np.float64)
        loss, tokens, correct = total
        num_bytes = int(documents.num_bytes.sum())
        return EvaluationResult(
            loss=loss / tokens,
            perplexity=float(np.exp(loss / tokens)),
            bits_per_byte=loss / np.log(2) / num_bytes,
            accuracy=correct / tokens,
            tokens=int(tokens),
            bytes=num_bytes,
            documents=len(documents),
            seconds=time.perf_counter() - begin,
        )

    def _windows(self, documents: TokenizedDocuments) -> Iterator[dict[str, np.ndarray]]:
        return evaluation_windows(
            documents,
            batch_size=self._config.batch_size,
            window=self._config.window,
            bos_id=self._tokenizer.bos_id,
            eos_id=self._tokenizer.eos_id,
            pad_id=self._tokenizer.pad_id,
        )

    def _window_sums(self, params: Params, cache: Cache, batch: Batch) -> tuple[Cache, Sums]:
        keep = ~batch["restart"]
        cache = Cache(
            jnp.where(keep, cache.position, 0),
            tuple(jnp.where(keep[None, :, None, None, None], state, 0) for state in cache.states),
        )
        sums, cache = self._task.sums_from(params, batch, cache)
        return cache, sums


def evaluate_run(workdir: Path, config: Config | None = None, split: str = "") -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run on a whole split, and writes `eval.json` into the workdir.

    Args:
      workdir: of the run, which also gives the architecture and the tokenizer.
      config: the dataset and the batch; None is the run's own.
      split: of the dataset; "" is `config.data.eval_split`.

    Returns:
      The fields of `EvaluationResult`, with `step`, `dataset` and `split`.

    Raises:
      UserError: there is no such run or split, or the config's tokenizer is not the run's.
    """
    run = load_workdir(workdir)
    config = config or run.config
    if config.data.tokenizer != run.config.data.tokenizer:
        raise UserError(
            f"the run has tokenizer {run.config.data.tokenizer!r}, the config {config.data.tokenizer!r}: "
            "evaluate with the run's own."
        )
    mesh = make_mesh(config.mesh)
    split = split or config.data.eval_split
    documents = load_split(config.data, run.tokenizer, split)
    evaluator = Evaluator(CausalLM(TransNormerLLM(run.config.model)), run.tokenizer, config.evaluation, mesh)
    params = jax.device_put(run.params, state_shardings(run.params, mesh))
    with jax.set_mesh(mesh):
        result = evaluator(params, documents)
    report = {"step": run.step, "dataset": config.data.dataset, "split": split, **result._asdict()}
    if jax.process_index() == 0:
        write_json(workdir / "eval.json", report)
    return report
