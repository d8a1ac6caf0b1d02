"""What int8 weights change: the logits of a trained model on held-out text, the bytes of the weights, and the speed.

The parameters are those of a run; each row of the record is a pair of dtype and weights, compared with float32:

- logits over `tokens` tokens of the run's own held-out documents, every row of 512 read from its beginning: the largest
  difference, its root mean square over that of the logits themselves, KL(float32 || this) in nats per token, how often
  the likeliest token is the same, and bits per byte;
- decoding at batch 1, of this model and of a random one of 100M parameters (12 layers of 768), all pairs in turn.

    python -m benchmarks.int8 --workdir=runs/quickstart

Writes a JSON file. The last line on stdout is a summary in JSON.
"""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inference_subjects import MODELS, Linear
from benchmarks.measure import time_in_turn
from benchmarks.record import check_positive, main, prepare, write
from benchmarks.trees import tree_size
from transnormer_jax.data import PackedRows, load_split
from transnormer_jax.errors import UserError
from transnormer_jax.inference import quantize
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig, unstack_layers
from transnormer_jax.training import Run, load_workdir

_ROW = 512
_BATCH = 8
_CONTEXT = 100  # tokens before those that are written


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      workdir: of a run on text.
      tokens: of its held-out split.
      block_size: tokens that one call writes.
      seconds: how long decoding is repeated, for each pair.
    """

    workdir: str = "runs/quickstart"
    tokens: int = 65536
    block_size: int = 16
    seconds: float = 5.0

    def __post_init__(self):
        check_positive(self)


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Measures, writes the record and returns the summary."""
    prepare(output)
    trained = load_workdir(settings.workdir)
    if not isinstance(trained.model_config, TransNormerLLMConfig):
        raise UserError(f"{settings.workdir!r} holds no TransNormerLLM: give the workdir of one.")
    larger = MODELS["100m"]
    drawn = jax.jit(TransNormerLLM(larger).init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    own = _ways(trained.model_config, trained.params, settings.block_size)
    of_100m = _ways(larger, drawn, settings.block_size)
    batches, num_bytes = _held_out(trained, settings.tokens)
    rows = {}
    for (dtype, weights), subject in own.items():
        row: dict[str, Any] = {"dtype": dtype, "weights": weights}
        row |= {"megabytes": subject.parameter_bytes / 1e6}
        row |= {"megabytes_100m": of_100m[dtype, weights].parameter_bytes / 1e6}
        rows[dtype, weights] = row | _compared(own["float32", "float32"], subject, batches, num_bytes)
    for name, ways in (("tokens_per_second", own), ("tokens_per_second_100m", of_100m)):
        steps = {way: subject.decode for way, subject in ways.items()}
        states = {way: subject.read(_CONTEXT) for way, subject in ways.items()}
        for way, times in time_in_turn(steps, states, seconds=settings.seconds).items():
            rows[way][name] = settings.block_size / statistics.median(times)
    for row in rows.values():
        print(row, flush=True)
    model = {"parameters": tree_size(trained.params), "step": trained.step}
    write(output, command_line, settings, {"model": model, "rows": list(rows.values())})
    told = ("relative_logit_error", "kl_nats_per_token", "bits_per_byte")
    return {"output": str(output), **{name: rows["float32", "int8"][name] for name in told}}


def _ways(config: TransNormerLLMConfig, params: Any, block_size: int) -> dict[tuple[str, str], Linear]:
    """The same parameters by the dtypes of the computation and of the weights."""
    ways = {}
    for dtype in ("float32", "bfloat16"):
        for weights in (dtype, "int8"):
            unstacked, own = unstack_layers(config, quantize(params) if weights == "int8" else params)
            ways[dtype, weights] = Linear(unstacked, dtype, block_size, own)
    return ways


def _held_out(run: Run, num_tokens: int) -> tuple[list[dict[str, np.ndarray]], float]:
    """Batches of rows, and the bytes of text in them."""
    documents = load_split(run.config.data, run.tokenizer, run.config.data.eval_split)
    special = {"bos_id": run.tokenizer.bos_id, "eos_id": run.tokenizer.eos_id, "pad_id": run.tokenizer.pad_id}
    rows = PackedRows(documents, _ROW, seed=0, **special)
    count = max(1, min(num_tokens // _ROW, rows.rows_per_epoch) // _BATCH) * _BATCH
    batches = []
    for start in range(0, count, _BATCH):
        batch = [rows[row] for row in range(start, start + _BATCH)]
        batches.append({name: np.stack([row[name] for row in batch]) for name in batch[0]})
    bytes_per_token = documents.num_bytes.sum() / (documents.num_tokens + len(documents))
    return batches, float(sum((batch["segment_ids"] > 0).sum() for batch in batches) * bytes_per_token)


@jax.jit
def _differences(expected: jax.Array, logits: jax.Array, targets: jax.Array, real: jax.Array) -> dict[str, jax.Array]:
    """Sums over the real tokens [B, N] of logits [B, N, V]."""
    log_p, log_q = jax.nn.log_softmax(expected), jax.nn.log_softmax(logits)
    difference = jnp.where(real[..., None], logits - expected, 0)
    of_target = jnp.take_along_axis(log_q, targets[..., None], axis=-1)[..., 0]
    return {
        "largest": jnp.max(jnp.abs(difference)),
        "squares": jnp.sum(difference**2),
        "squares_expected": jnp.sum(jnp.where(real[..., None], expected, 0) ** 2),
        "kl": jnp.sum(jnp.where(real, jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), 0)),
        "same": jnp.sum(real & (jnp.argmax(expected, axis=-1) == jnp.argmax(logits, axis=-1))),
        "nats": -jnp.sum(jnp.where(real, of_target, 0)),
        "tokens": jnp.sum(real),
    }


def _compared(
    reference: Linear, subject: Linear, batches: list[dict[str, np.ndarray]], num_bytes: float
) -> dict[str, float]:
    found = [
        jax.device_get(_differences(reference.logits(*read), subject.logits(*read), b["targets"], b["segment_ids"] > 0))
        for b in batches
        for read in [(b["inputs"], b["segment_ids"])]
    ]
    total = {name: float(np.sum([each[name] for each in found], dtype=np.float64)) for name in found[0]}
    return {
        "largest_logit_error": float(max(each["largest"] for each in found)),
        "relative_logit_error": (total["squares"] / total["squares_expected"]) ** 0.5,
        "kl_nats_per_token": total["kl"] / total["tokens"],
        "same_likeliest_token": total["same"] / total["tokens"],
        "bits_per_byte": float(total["nats"] / np.log(2) / num_bytes),
        "tokens": int(total["tokens"]),
    }


if __name__ == "__main__":
    main("int8", Settings(), run)
