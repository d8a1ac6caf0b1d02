"""Maps the tensors of a released checkpoint to our parameters."""

from typing import NamedTuple

import numpy as np

from transnormer_jax.models import TransNormerLLMConfig
from transnormer_jax.models.block import layer_groups

HEAD = "lm_head.weight"


class Part(NamedTuple):
    """A parameter, or of one that is stacked over layers the entry of one layer.

    Attributes:
      path: of the parameter.
      layer: its place in the group; None for one that is not stacked.
    """

    path: tuple[str, ...]
    layer: int | None

    def from_torch(self, tensor: np.ndarray) -> np.ndarray:
        """Our layout. PyTorch keeps a matrix as [out, in], and theta as [H, 1, K]."""
        if self.path[-1] == "kernel":
            return tensor.T
        return tensor[:, 0] if self.path[-1] == "theta" else tensor

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The inverse."""
        if self.path[-1] == "kernel":
            return array.T
        return array[:, None] if self.path[-1] == "theta" else array


def tensor_parts(config: TransNormerLLMConfig) -> dict[str, tuple[Part, ...]]:
    """Name of a tensor -> the parts that it holds, one after the other along its first axis.

    >>> sorted(tensor_parts(TransNormerLLMConfig(num_layers=2, lrpe_layers=())))[-1]
    'model.layers.1.token_mixer.qkvu_proj.weight'
    """
    ends = {"weight": "kernel"} | ({"bias": "bias"} if config.use_bias else {})
    norm_ends = {"weight": "scale", "bias": "bias"} if config.norm == "layer_norm" else {}
    names: dict[str, tuple[Part, ...]] = {"model.embed_tokens.weight": (Part(("embedding",), None),)}
    for group in layer_groups(config):
        for index, layer in enumerate(group):
            theirs, ours = f"model.layers.{layer}", f"layers_{group[0]}"

            def part(*path: str, ours: str = ours, index: int = index) -> Part:
                return Part((ours, *path), index)

            for end, our_end in ends.items():
                names[f"{theirs}.token_mixer.qkvu_proj.{end}"] = tuple(part("attention", x, our_end) for x in "qkvu")
                names[f"{theirs}.token_mixer.out_proj.{end}"] = (part("attention", "out", our_end),)
                for linear, our_linear in {"l1": "gate", "l2": "value", "l3": "out"}.items():
                    names[f"{theirs}.channel_mixer.{linear}.{end}"] = (part("glu", our_linear, our_end),)
            if layer in config.lrpe_layers:
                names[f"{theirs}.token_mixer.lrpe.theta"] = (part("attention", "theta"),)
            for end, our_end in norm_ends.items():
                names[f"{theirs}.token_norm.{end}"] = (part("attention_norm", our_end),)
                names[f"{theirs}.channel_norm.{end}"] = (part("glu_norm", our_end),)
                names[f"{theirs}.token_mixer.norm.{end}"] = (part("attention", "out_norm", our_end),)
    for end, our_end in norm_ends.items():
        names[f"model.final_norm.{end}"] = (Part(("final_norm", our_end), None),)
    if not config.tie_embeddings:
        names[HEAD] = (Part(("head",), None),)
    return names
