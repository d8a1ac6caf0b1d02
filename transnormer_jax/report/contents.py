"""The contents of a report: metrics, parameters, a sample of each checkpoint, and the memory of the heads."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from transnormer_jax import storage
from transnormer_jax.data import load_split
from transnormer_jax.errors import UserError
from transnormer_jax.inference import Generator
from transnormer_jax.models import ModelConfig
from transnormer_jax.training import Config, load_workdir
from transnormer_jax.training.metrics import metrics_of, read_metrics
from transnormer_jax.training.parameters import saved_steps
from transnormer_jax.training.workdir import Run

_TOKENS_READ = 2048


class Parameter(NamedTuple):
    """A row of the table of parameters."""

    name: str
    shape: str
    dtype: str
    size: int
    root_mean_square: float


class Spent(NamedTuple):
    """A row of the table of where the time went."""

    what: str
    seconds: float
    share: float


class Sample(NamedTuple):
    """What a checkpoint wrote."""

    step: int
    text: str


def metrics_by_name(workdir: storage.AnyPath) -> dict[str, list[tuple[int, float]]]:
    """Returns every metric of a run as (step, value), rising; steps at which it was not finite are left out.

    Raises:
      UserError: the run has written none.
    """
    metrics: dict[str, dict[int, float]] = {}
    for line in read_metrics(workdir):
        for name, value in metrics_of(line).items():
            if value is not None:
                metrics.setdefault(name, {})[line["step"]] = value
    return {name: sorted(values.items()) for name, values in metrics.items()}


_ACTIVITIES = {
    "seconds/step": "steps",
    "seconds/data": "waiting for data",
    "seconds/save": "saving",
    "seconds/evaluate": "evaluating",
    "seconds/compile": "compiling",
    "seconds/start": "starting",
    "seconds/down": "down, or steps that were lost",
}


def time_spent(metrics: Mapping[str, Sequence[tuple[int, float]]]) -> list[Spent]:
    """What the time since the first start of the run went into, by its last metrics; nothing if it did not say."""
    seconds = {what: metrics[key][-1][1] for key, what in _ACTIVITIES.items() if metrics.get(key)}
    total = sum(seconds.values())
    return [Spent(what, value, value / total) for what, value in seconds.items() if total > 0]


def parameter_table(params: Any) -> list[Parameter]:
    """Returns every parameter with its size and root mean square."""
    return [
        Parameter(
            jax.tree_util.keystr(path, simple=True, separator="/"),
            "×".join(map(str, x.shape)),
            str(x.dtype),
            x.size,
            float(np.sqrt(np.mean(np.square(np.asarray(x, np.float32))))),
        )
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]


def samples(
    workdir: storage.AnyPath, prompt: str, max_new_tokens: int, temperature: float, config: Config | None = None
) -> Iterator[Sample]:
    """Yields how every checkpoint that can be read goes on from the prompt, from the first to the last."""
    for step in saved_steps(workdir):
        try:
            run = load_workdir(workdir, step=step, config=config)
        except UserError as error:  # damaged, or deleted by a run that goes on
            print(f"warning: no sample of step {step}: {error}", file=sys.stderr)
            continue
        [text] = _generator(run).generate([prompt], max_new_tokens, temperature)
        yield Sample(step, prompt + text)


def half_lives(config: ModelConfig) -> npt.NDArray[np.float64]:
    """Returns after how many tokens a head has kept half of what it saw, [L, H]; infinite where nothing decays."""
    with np.errstate(divide="ignore"):
        return np.log(2) / -np.asarray(config.log_decays(), np.float64)


def state_norms(run: Run) -> npt.NDArray[np.float64]:
    """Returns the Frobenius norm of every head's state after held-out text of up to 2,048 tokens, [L, H].

    Raises:
      UserError: the held-out data of the run are not to be had.
    """
    source = next(iter(run.config.data.sources().values()))
    documents = load_split(source, run.tokenizer, source.eval_split)
    longest = documents[int(np.argmax(documents.lengths))]
    text = run.tokenizer.decode(longest[:_TOKENS_READ].tolist())
    states = _generator(run).read(text).state.cache.states
    return np.stack([np.linalg.norm(state, axis=(-2, -1)) for state in _layers(states)])


def config_text(run: Run) -> str:
    """Returns the configuration as JSON."""
    return json.dumps(dataclasses.asdict(run.config), indent=2)


def _layers(states: Sequence[Any]) -> Iterator[npt.NDArray[np.float64]]:
    """The state of each layer, [H, K, V], of the one text in arrays [layers, 1, H, K, V]."""
    for state in states:
        yield from np.asarray(state, np.float64)[:, 0]


def _generator(run: Run) -> Generator:
    assert isinstance(run.model_config, ModelConfig)
    return Generator(run.model_config, run.params, run.tokenizer)
