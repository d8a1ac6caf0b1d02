"""What int8 weights change: the logits of a trained model on held-out text, the bytes of the weights, and the speed.

The parameters are those of a run; each row of the record is a pair of dtype and weights, compared with float32:

- logits over `tokens` tokens of the run's own held-out documents, every row of 512 read from its beginning: the largest
  difference, its root mean square over that of the logits themselves, KL(float32 || this) in nats per token, how often
  the likeliest token is the same, and bits per byte;
- decoding at batch 1, of this model and of a random one of 100M parameters (12 layers of 768).

    python -m benchmarks.int8 --workdir=runs/quickstart

Writes a JSON file. The last line on stdout is a summary in JSON.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.report import check_positive, main, prepare, write
from transnormer_jax.data import PackedRows, load_split
from transnormer_jax.errors import UserError
from transnormer_jax.inference import SamplingSettings, quantize
from transnormer_jax.inference.decoding import decode, empty_state, prefill
from transnormer_jax.inference.precision import at_compute_dtype
from transnormer_jax.inference.sampling import stack_settings
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig, unstack_layers
from transnormer_jax.training import Run, load_workdir

_ROW = 512
_BATCH = 8
_LARGER = TransNormerLLMConfig(vocab_size=8192, num_layers=12, model_dim=768, num_heads=12, glu_dim=2112)
_KINDS = (("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      workdir: of a run on text.
      tokens: of its held-out split.
      block_size: tokens that one call writes.
      seconds: how long decoding is repeated.
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
    larger = jax.jit(TransNormerLLM(_LARGER).init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    batches, num_bytes = _held_out(trained, settings.tokens)
    rows = []
    for dtype, int8 in _KINDS:
        own = _Model(trained.model_config, trained.params, dtype, int8)
        of_100m = _Model(_LARGER, larger, dtype, int8)
        row: dict[str, Any] = {"dtype": dtype, "weights": "int8" if int8 else dtype}
        row |= {"megabytes": own.megabytes, "megabytes_100m": of_100m.megabytes}
        row |= _compared(_Model(trained.model_config, trained.params, "float32", False), own, batches, num_bytes)
        for name, model in (("tokens_per_second", own), ("tokens_per_second_100m", of_100m)):
            row[name] = model.tokens_per_second(settings.block_size, settings.seconds)
        rows.append(row)
        print(row, flush=True)
    model = {"parameters": sum(x.size for x in jax.tree.leaves(trained.params)), "step": trained.step}
    write(output, command_line, settings, {"model": model, "rows": rows})
    int8_row = rows[1]
    told = ("relative_logit_error", "kl_nats_per_token", "bits_per_byte")
    return {"output": str(output), **{name: int8_row[name] for name in told}}


class _Model:
    """One way to keep and to use the same parameters."""

    def __init__(self, config: TransNormerLLMConfig, params: Any, dtype: str, int8: bool):
        config, own = unstack_layers(dataclasses.replace(config, dtype=dtype), quantize(params) if int8 else params)
        self._model = TransNormerLLM(config)
        self._params = at_compute_dtype(own, dtype)
        self.megabytes = sum(x.nbytes for x in jax.tree.leaves(self._params)) / 1e6
        self._apply = jax.jit(self._model.apply)

    def logits(self, batch: dict[str, np.ndarray]) -> jax.Array:
        return self._apply({"params": self._params}, batch["inputs"], segment_ids=batch["segment_ids"])

    def tokens_per_second(self, block_size: int, seconds: float) -> float:
        vocab_size = self._model.config.vocab_size
        state = prefill(self._model, self._params, empty_state(self._model, self._params, 1, vocab_size), [[1] * 100])
        settings, seed = stack_settings([SamplingSettings(temperature=0.0)]), np.zeros(1, np.uint32)
        times: list[float] = []
        while sum(times[1:]) < seconds:  # The first call compiles.
            begin = time.perf_counter()
            state, tokens, _ = decode(
                self._model, self._params, state, seed, settings, np.zeros(1, np.int32), np.bool_(False), block_size
            )
            tokens.block_until_ready()
            times.append(time.perf_counter() - begin)
        return block_size / float(np.median(times[1:]))


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
    reference: _Model, model: _Model, batches: list[dict[str, np.ndarray]], num_bytes: float
) -> dict[str, float]:
    found = [
        jax.device_get(_differences(reference.logits(b), model.logits(b), b["targets"], b["segment_ids"] > 0))
        for b in batches
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
