"""Writes a trained model as two programs and their parameters, for use with JAX alone.

    python -m transnormer_jax.export --workdir=runs/quickstart --out=exported

`prefill.bin` and `decode.bin` are StableHLO for CPU, CUDA and TPU (`jax.export`), for any batch size. Both map
(parameters, cache, tokens, ...) to a cache, which holds the logits of the next token: see docs/export.md.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from absl import flags
from jaxtyping import Array, Int
from safetensors.flax import save_file

from transnormer_jax import command, storage
from transnormer_jax.data.tokenizer_export import write_tokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.inference import Generator
from transnormer_jax.inference.decoding import DecodeState, advance, empty_state, read
from transnormer_jax.models import Cache, LanguageModel
from transnormer_jax.run_flags import define_int8, define_run_flags

_RUN = define_run_flags()
_INT8 = define_int8()
_OUT = flags.DEFINE_string("out", None, "Directory to create.", required=True)
_WINDOW = flags.DEFINE_integer("window", 512, "Number of tokens that one call of prefill reads.", lower_bound=1)

PLATFORMS = ("cpu", "cuda", "tpu")

# {"position": int32 [B], "states_0": float32 [layers, B, H, K, V], ..., "logits": float32 [B, V]}
ExportedCache = dict[str, Array]


def export_model(generator: Generator, directory: Path, window: int = 512) -> None:
    """Writes `prefill.bin`, `decode.bin`, `params.safetensors` and `manifest.json` into a new directory.

    Args:
      generator: the model; its parameters are written at the dtype of the computation.
      directory: must not exist.
      window: tokens of a prompt that one call reads.

    Raises:
      UserError: the directory exists.
    """
    _check_new(directory)
    # The kernels of one platform are not those of another.
    model = LanguageModel(generator.config.replace(backend="chunked"))
    vocab_size = generator.tokenizer.vocab_size
    params = _flat(generator.params)

    empty: Any = jax.eval_shape(lambda: empty_state(model, generator.params, 1, vocab_size))

    def state_of(cache: ExportedCache) -> DecodeState:
        states = [cache[f"states_{i}"] for i in range(len(cache) - 2)]
        states = jax.tree.unflatten(jax.tree.structure(empty.cache.states), states)
        # Which tokens were read matters to the repetition penalty alone, and nobody here samples.
        seen = jnp.zeros(cache["logits"].shape, bool)
        return DecodeState(Cache(cache["position"], states), seen, cache["logits"])

    def prefill(
        params: dict[str, Array], cache: ExportedCache, tokens: Int[Array, "B N"], segment_ids: Int[Array, "B N"]
    ) -> ExportedCache:
        return _exported(read(model, _nested(params), state_of(cache), tokens, segment_ids))

    def decode(params: dict[str, Array], cache: ExportedCache, token: Int[Array, " B"]) -> ExportedCache:
        return _exported(advance(model, _nested(params), state_of(cache), token))

    [batch] = jax.export.symbolic_shape("batch")
    shapes = {
        name: _with_batch(x, batch, 1 if name.startswith("states") else 0) for name, x in _exported(empty).items()
    }
    tokens = jax.ShapeDtypeStruct((batch, window), jnp.int32)
    programs = {
        "prefill": _export(prefill, params, shapes, tokens, tokens),
        "decode": _export(decode, params, shapes, jax.ShapeDtypeStruct((batch,), jnp.int32)),
    }
    manifest = {
        "format": 1,
        "window": window,
        "vocab_size": vocab_size,
        "bos_id": generator.tokenizer.bos_id,
        "eos_id": generator.tokenizer.eos_id,
        "cache": {name: {"shape": [str(n) for n in x.shape], "dtype": x.dtype.name} for name, x in shapes.items()},
        "platforms": PLATFORMS,
        "jax": jax.__version__,
        "calling_convention_version": programs["decode"].calling_convention_version,
    }
    directory.mkdir(parents=True)
    for name, program in programs.items():
        (directory / f"{name}.bin").write_bytes(program.serialize())
    save_file(params, directory / "params.safetensors")
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _export(function: Callable[..., Any], *arguments: Any) -> jax.export.Exported:
    # The cache is donated, as in generation.
    return jax.export.export(jax.jit(function, donate_argnums=1), platforms=PLATFORMS)(*arguments)


def _with_batch(x: jax.ShapeDtypeStruct, batch: Any, axis: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*x.shape[:axis], batch, *x.shape[axis + 1 :]), x.dtype)


def _exported(state: DecodeState) -> Any:
    states = {f"states_{i}": x for i, x in enumerate(jax.tree.leaves(state.cache.states))}
    return {"position": state.cache.position, **states, "logits": state.logits}


def _flat(params: Any) -> dict[str, Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def _nested(flat: dict[str, Array]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = leaf
    return nested


def _check_new(directory: storage.AnyPath) -> None:
    if directory.exists():
        raise UserError(f"{str(directory)!r} exists: choose another --out.")


def main() -> None:
    """Exports."""
    out = storage.as_path(_OUT.value)
    _check_new(out)  # before the model is read
    with storage.written_locally(out) as directory:
        export_model(_RUN.load_generator(int8=_INT8.value), directory, _WINDOW.value)
        name = _RUN.config.data.tokenizer
        write_tokenizer(directory / "tokenizer", name if name == "bytes" else str(storage.local_copy(name)))
        megabytes = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 1e6
    print(f"wrote {out}: prefill, decode and parameters, {megabytes:,.1f} MB")


if __name__ == "__main__":
    command.run(main)
