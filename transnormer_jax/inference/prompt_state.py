"""The state after a prompt, saved as a file of constant size."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from transnormer_jax.errors import UserError
from transnormer_jax.inference.decoding import DecodeState
from transnormer_jax.models import Cache, ModelConfig

_KIND = "transnormer_jax.PromptState"


class PromptState(NamedTuple):
    """The state after a prompt, to go on from as often as wanted: `Generator.read` makes it.

    Attributes:
      state: of one row; the states of a loaded one are a flat tuple.
      last_ids: the last tokens, so that the text that follows is written as after them.
      model: fingerprint of the model whose state it is.
    """

    state: DecodeState
    last_ids: tuple[int, ...]
    model: str

    @property
    def num_tokens(self) -> int:
        """Number of tokens read, the begin token included."""
        return int(self.state.cache.position[0])

    def save(self, path: Path | str) -> None:
        """Writes a safetensors file. Its size depends on the model alone."""
        cache, seen, logits = jax.device_get(self.state)
        arrays = {"position": cache.position, "seen": seen, "logits": logits}
        arrays |= {f"states_{i}": state for i, state in enumerate(jax.tree.leaves(cache.states))}
        metadata = {"kind": _KIND, "model": self.model, "last_ids": json.dumps(self.last_ids)}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, metadata)

    @classmethod
    def load(cls, path: Path | str) -> "PromptState":
        """Reads what `save` wrote.

        Raises:
          UserError: there is no such file, or it holds something else.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read a prompt's state from {str(path)!r}: {error}.") from error
        if metadata.get("kind") != _KIND:
            raise UserError(f"{str(path)!r} holds no prompt's state: give a file that PromptState.save wrote.")
        states = tuple(arrays[f"states_{i}"] for i in range(len(arrays) - 3))
        state = DecodeState(Cache(arrays["position"], states), arrays["seen"], arrays["logits"])
        return cls(state, tuple(json.loads(metadata["last_ids"])), metadata["model"])


def model_fingerprint(config: ModelConfig, params: Any) -> str:
    """Differs between models that read differently: the architecture, and a few of the numbers of every parameter."""
    digest = hashlib.sha256(repr(config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        few = leaf[(0,) * (leaf.ndim - 1)][:64]
        digest.update(np.asarray(few, np.float32).tobytes())
    return digest.hexdigest()
