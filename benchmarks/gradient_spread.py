"""How much the gradients of attention vary in training: their standard deviation over their mean (lower is steadier).

Small models learn masked bytes of text, alike but for their attention. At every step and in every layer two norms are
taken of the gradient of the mean loss: by all scores s_ij ("scores", of which the theory of arXiv 2210.10340, section
3.1, speaks; s is q . k / sqrt(K) for softmax, and phi(q) . phi(k) otherwise, LRPE included), and by the parameters of
the attention ("parameters"). The spread of a layer is that of its norms over the steps after the warm-up; the table
takes the mean over layers. The published numbers (table 2) are those of a bidirectional model of 12 layers on
WikiText-103 over 50,000 steps; of which gradients, is not known here.

    python -m benchmarks.gradient_spread
    python -m benchmarks.gradient_spread --files=corpus.txt --steps=2000
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.attention_maps import Caught, catch, check_mapped, mix, positions, scores, visible
from benchmarks.common import Panel, Record, check_positive, main
from transnormer_jax.data import DataConfig, batches_of
from transnormer_jax.distributed import make_mesh
from transnormer_jax.papers.config import BaselineConfig
from transnormer_jax.tasks import Task
from transnormer_jax.training import Config
from transnormer_jax.training.config import OptimizerConfig, TaskConfig
from transnormer_jax.training.optimizer import make_optimizer, make_schedule
from transnormer_jax.training.setup import load_setup

PUBLISHED = {"linear": 0.58, "performer": 0.47, "softmax": 0.25, "norm_t2": 0.20}
KINDS = ("scores", "parameters")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to train.

    Attributes:
      attentions: of the models, as in `config.model.attention`.
      files: text to train on: paths and patterns. Empty takes Python's standard library.
      data_dir: of prepared datasets; empty for TFDS's own.
      steps: of training.
      warmup_steps: whose gradients do not count.
      batch_size: rows per step.
      length: tokens per row, N.
      num_layers: L.
      model_dim: D; heads have 32 features.
      learning_rate: after the warm-up, constant.
    """

    attentions: tuple[str, ...] = tuple(PUBLISHED)
    files: str = ""
    data_dir: str = ""
    steps: int = 300
    warmup_steps: int = 50
    batch_size: int = 16
    length: int = 128
    num_layers: int = 4
    model_dim: int = 128
    learning_rate: float = 5e-4

    def __post_init__(self):
        check_positive(self)


def run(settings: Settings, record: Record) -> dict[str, Any]:
    """Trains, prints, records and plots, and returns the summary."""
    attentions, summary = dict[str, Any](), dict[str, Any]()
    for word in settings.attentions:
        losses, norms = gradient_norms(settings, word)
        spread = {kind: relative_std(norms[kind][settings.warmup_steps :]) for kind in KINDS}
        means = {kind: round(float(np.mean(spread[kind])), 4) for kind in KINDS}
        summary[word] = {**means, "published": PUBLISHED.get(word), "loss": float(np.mean(losses[-20:]))}
        attentions[word] = {
            "spread_by_layer": {kind: spread[kind].tolist() for kind in KINDS},
            "loss": losses.tolist(),
            "norms": {kind: norms[kind].tolist() for kind in KINDS},
        }
        print(word, summary[word], flush=True)
        record.write(attentions=attentions, summary=summary)
    panels = []
    for kind in KINDS:
        # Each by its own mean, since it is the spread that is compared.
        lines = {word: _relative(found["norms"][kind]) for word, found in attentions.items()}
        panels.append(Panel(f"gradient by {kind}", "norm over its mean, all layers", lines, log=False, style="-"))
    record.plot(panels, title="Gradients of attention in training", xlabel="step")
    return summary


def text_config(settings: Settings, attention: str) -> Config:
    """A small bidirectional model, to learn masked bytes of text files, or of Python's standard library."""
    num_heads = max(settings.model_dim // 32, 1)
    config = BaselineConfig.preset(
        "tiny",
        vocab_size=260,  # bytes, three special tokens, and the mask
        attention=attention,
        causal=False,
        max_length=settings.length,
        block_size=min(64, settings.length),
        num_layers=settings.num_layers,
        model_dim=settings.model_dim,
        num_heads=num_heads,
        feed_forward_dim=2 * settings.model_dim,
        performer_features=settings.model_dim // num_heads,
        scan_layers=False,  # their attentions are read
    )
    dataset = "plain_text" if settings.files else "python_source"
    data = DataConfig(dataset, settings.files, held_out=0.0, data_dir=settings.data_dir)
    if settings.files:  # They may be one document, so nothing is held out.
        data = dataclasses.replace(data, eval_split="train")
    return Config("baseline", config, TaskConfig("masked_lm"), data, sequence_length=settings.length)


def gradient_norms(settings: Settings, attention: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Trains one model and returns the losses [steps] and, by kind, the norms [steps, L]."""
    config = text_config(settings, attention)
    model = check_mapped(config.model)
    setup = load_setup(config, make_mesh(config.mesh))
    schedule = make_schedule(
        OptimizerConfig(learning_rate=settings.learning_rate, warmup_steps=settings.warmup_steps, final_fraction=1.0),
        settings.steps,
    )
    optimizer = make_optimizer(OptimizerConfig(b2=0.98, weight_decay=0.01, clip_norm=0.0), schedule)
    params = jax.jit(setup.task.init)(jax.random.key(0))
    opt_state = jax.jit(optimizer.init)(params)

    @jax.jit
    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        loss, gradients, by_scores = loss_and_gradients(setup.task, model, params, batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        norms = (
            jnp.stack([jnp.linalg.norm(x.ravel()) for x in by_scores]),
            jnp.stack([optax.tree.norm(_of_attention(gradients, i)) for i in range(model.num_layers)]),
        )
        return optax.apply_updates(params, updates), opt_state, loss, norms

    losses, norms = [], []
    for batch in batches_of(setup.training.rows, settings.steps * settings.batch_size, settings.batch_size):
        params, opt_state, loss, found = step(params, opt_state, batch)
        losses.append(loss)
        norms.append(found)
    scores_norms, parameter_norms = (np.stack(jax.device_get([found[i] for found in norms])) for i in range(2))
    return np.stack(jax.device_get(losses)), {"scores": scores_norms, "parameters": parameter_norms}


def loss_and_gradients(
    task: Task, config: BaselineConfig, params: Any, batch: Any
) -> tuple[jax.Array, Any, list[jax.Array]]:
    """The mean loss, its gradient by the parameters, and that by the scores of each layer, [B, H, N, N]."""

    def mean_loss(params: Any, nudges: jax.Array) -> Any:
        sums, caught = catch(lambda: task.loss_and_metrics(params, batch), nudges)
        return sums.loss / sums.predictions, caught

    nothing = jnp.zeros((config.num_layers, *batch["inputs"].shape, config.model_dim))
    gradient = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)
    (loss, caught), (by_params, by_mixed) = gradient(params, nothing)
    by_scores = []
    for layer, word in enumerate(config.attentions):
        passed, ids = Caught(**caught[layer]), batch["segment_ids"]
        seen = visible(config, layer, ids)
        s = scores(config, layer, params, passed, positions(ids))
        _, pull_back = jax.vjp(lambda s, word=word, seen=seen, v=passed.v: mix(word, s, seen, v), s)
        by_scores += pull_back(by_mixed[layer])
    return loss, by_params, by_scores


def relative_std(norms: np.ndarray) -> np.ndarray:
    """Standard deviation over mean, along the steps: [steps, L] to [L]."""
    return np.std(norms, axis=0) / np.mean(norms, axis=0)


def _of_attention(gradients: Any, layer: int) -> Any:
    return gradients[f"layers_{layer}"]["attention"]


def _relative(norms: list[list[float]]) -> list[tuple[float, float]]:
    relative = np.mean(np.array(norms) / np.mean(norms, axis=0), axis=1)
    return [(step + 1, float(y)) for step, y in enumerate(relative)]


if __name__ == "__main__":
    main("gradient_spread", Settings(), run)
