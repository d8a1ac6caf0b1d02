"""Whose attention is looked at: models trained by train.py, or small new ones that are to read bytes of text."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.attention_maps import Caught, catch, check_mapped, distribution, places, scores, visible
from transnormer_jax.data import DataConfig
from transnormer_jax.distributed import make_mesh
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerConfig
from transnormer_jax.tasks import Task
from transnormer_jax.training import Config, load_workdir
from transnormer_jax.training.config import TaskConfig
from transnormer_jax.training.setup import TrainingSetup, load_setup

_TRIED_ROWS = 50  # for each row that is wanted


class Subject(NamedTuple):
    """A model, and whole rows of `length` tokens for it to read."""

    name: str
    step: int  # of its training
    config: TransNormerConfig
    task: Task
    params: Any
    batch: dict[str, np.ndarray]

    def distributions(self) -> list[jax.Array]:
        """p_ij of each layer, [B, H, N, N] float32."""

        @jax.jit
        def read(params: Any, batch: dict[str, jax.Array]) -> list[jax.Array]:
            _, caught = catch(lambda: self.task.sums(params, batch))
            ids, found = batch["segment_ids"], []
            for layer, word in enumerate(self.config.attentions):
                s = scores(self.config, layer, params, Caught(**caught[layer]), places(ids))
                found.append(distribution(word, s, visible(self.config, layer, ids)))
            return found

        return read(self.params, self.batch)


def text_config(attention: str, files: str, data_dir: str, length: int, **model: Any) -> Config:
    """A small bidirectional model, to learn masked bytes of text files, or of Python's standard library."""
    options = {"num_layers": 4, "model_dim": 128, "num_heads": 4, "feed_forward_dim": 256, **model}
    config = TransNormerConfig.preset(
        "tiny",
        vocab_size=260,  # bytes, three special tokens, and the mask
        attention=attention,
        causal=False,
        max_length=length,
        block_size=min(64, length),
        performer_features=options["model_dim"] // options["num_heads"],
        **options,
    )
    data = DataConfig("plain_text" if files else "python_source", files, held_out=0.0, data_dir=data_dir)
    if files:  # They may be one document, so nothing is held out.
        data = dataclasses.replace(data, eval_split="train")
    return Config("transnormer", config, TaskConfig("masked_lm"), data, sequence_length=length)


def load_subjects(workdirs: tuple[str, ...], fresh: list[Config], rows: int, length: int) -> list[Subject]:
    """The models of the work directories; without any, the fresh ones at initialisation.

    Rows are of the evaluation split, cut to their first `length` tokens, and each is one document to the model.

    Raises:
      UserError: a directory holds no run, an attention has no N x N matrix, or too few rows are that long.
    """
    if not workdirs:
        return [_subject("new", 0, config, None, rows, length) for config in fresh]
    runs = [(Path(workdir).name, load_workdir(workdir)) for workdir in workdirs]
    return [_subject(name, run.step, run.config, run.params, rows, length) for name, run in runs]


def whole_rows(setup: TrainingSetup, count: int, length: int) -> dict[str, np.ndarray]:
    """Stacks `count` rows of `length` tokens without padding.

    Raises:
      UserError: there are not so many.
    """
    rows = list[dict[str, np.ndarray]]()
    for index in range(min(len(setup.training.rows), _TRIED_ROWS * count)):
        row = dict(setup.training.rows[index])
        for name in ("inputs", "targets", "mask", "segment_ids"):
            if name in row:
                row[name] = row[name][:length]
        if row["segment_ids"].all():
            row["segment_ids"] = np.ones_like(row["segment_ids"])
            rows.append(row)
        if len(rows) == count:
            return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    raise UserError(f"{len(rows)} rows have {length} tokens: ask for fewer rows or a smaller length.")


def _subject(name: str, step: int, config: Config, params: Any, rows: int, length: int) -> Subject:
    model = check_mapped(config.model)
    held_out = dataclasses.replace(config.data, train_split=config.data.eval_split)
    setup = load_setup(dataclasses.replace(config, data=held_out), make_mesh(config.mesh))
    if params is None:
        params = jax.jit(setup.task.init)(jax.random.key(0))
    batch = whole_rows(setup, rows, min(length, config.sequence_length))
    return Subject(f"{name} {model.attention}", step, model, setup.task, params, batch)
