"""How large a tree of arrays or of their shapes is."""

import math
from typing import Any

import jax
import numpy as np


def tree_size(tree: Any) -> int:
    """Numbers in it."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def tree_bytes(tree: Any) -> int:
    """Bytes of its arrays."""
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
