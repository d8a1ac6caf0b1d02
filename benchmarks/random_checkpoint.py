"""Writes a TransNormerLLM with random weights in the layout of the released ones, with a tokenizer of bytes.

    python -m benchmarks.random_checkpoint --preset=385m --directory=DIR

Converting it takes what converting a released one takes. Of a model above --drawn_gigabytes, one layer is drawn and
the others are copies of it, so that any size can be written in little memory.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from benchmarks.trees import tree_bytes
from transnormer_jax import command
from transnormer_jax.convert import save_hugging_face
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig

_SPECIAL = ("<unk>", "<s>", "</s>")


def random_params(config: TransNormerLLMConfig, *, copies: bool) -> Any:
    """NumPy arrays in the tree of `TransNormerLLM.init`; with `copies`, all layers of a group are views of one."""
    generator = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        stacked = copies and path[0].key.startswith("layers_")
        shape = (1, *leaf.shape[1:]) if stacked else leaf.shape
        values = np.empty(shape, leaf.dtype)
        for row in values:  # float32 of one row at a time
            row[...] = config.init_std * generator.standard_normal(row.shape, np.float32)
        return np.broadcast_to(values, leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, _abstract(config))


def num_bytes(config: TransNormerLLMConfig) -> int:
    """Of the parameters."""
    return tree_bytes(_abstract(config))


def write_byte_tokenizer(path: Path) -> None:
    """Writes a `tokenizer.json` of the 256 bytes and three special tokens."""
    names = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


def write_random_checkpoint(directory: Path, config: TransNormerLLMConfig, drawn_gigabytes: float) -> None:
    """Makes the directory."""
    params = random_params(config, copies=num_bytes(config) > drawn_gigabytes * 1e9)
    save_hugging_face(directory, config, params)
    write_byte_tokenizer(directory / "tokenizer.json")


def _abstract(config: TransNormerLLMConfig) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(TransNormerLLM(config).init, jax.random.key(0), tokens)["params"]


def _main() -> None:
    values = flags.FLAGS
    if values.directory is None:
        raise UserError("--directory=... is missing; --help lists the flags.")
    config = TransNormerLLMConfig.preset(values.preset, dtype=values.dtype, param_dtype=values.dtype)
    write_random_checkpoint(Path(values.directory), config, values.drawn_gigabytes)


if __name__ == "__main__":
    flags.DEFINE_string("preset", "385m", "Size.")
    flags.DEFINE_string("dtype", "bfloat16", "Of the weights.")
    flags.DEFINE_string("directory", None, "To be made.")
    flags.DEFINE_float("drawn_gigabytes", 4.0, "Of a larger model, one layer is drawn; 10^9 bytes.")
    command.run(_main)
