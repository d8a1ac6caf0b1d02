"""The names of the dimensions of every parameter, for `distributed.rules`.

The last one or two keys of a parameter's path name it in every model: matrices end in "kernel", under the name of their
layer. A model's tensor parallelism is what these names say: projections into heads and channels are split by
columns, the ones back by rows (arXiv 2405.17381, appendix E).
"""

_INTO_HEADS = ("q", "k", "v", "u", "qk")
_INTO_CHANNELS = ("gate", "value", "in")

_NAMES: dict[str, tuple[str | None, ...]] = {
    "embedding": ("vocab", "embed"),
    "head": ("vocab", "embed"),
    "head_bias": ("vocab",),
    "head/kernel": ("embed", "vocab"),
    "head/bias": ("vocab",),
    "positions": (None, "embed"),
    "attention/theta": ("heads", None),
    "attention/out/kernel": ("heads", "embed"),
    "attention/out/bias": ("embed",),
    "attention/out_norm/scale": ("heads",),
    "attention/out_norm/bias": ("heads",),
    "glu/out/kernel": ("mlp", "embed"),
    "glu/out/bias": ("embed",),
    "feed_forward/out/kernel": ("mlp", "embed"),
    "feed_forward/out/bias": ("embed",),
    "scale": ("embed",),
}
_NAMES |= {f"{name}/kernel": ("embed", "heads") for name in _INTO_HEADS}
_NAMES |= {f"{name}/bias": ("heads",) for name in _INTO_HEADS}
_NAMES |= {f"{name}/kernel": ("embed", "mlp") for name in _INTO_CHANNELS}
_NAMES |= {f"{name}/bias": ("mlp",) for name in _INTO_CHANNELS}


def parameter_axes(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """The name of each dimension of the parameter at `path`; None for one that no rule is about.

    >>> parameter_axes(("layers_1", "attention", "q", "kernel"), (23, 1024, 1024))
    ('layers', 'embed', 'heads')
    """
    for keys in (3, 2, 1):
        names = _NAMES.get("/".join(path[-keys:]))
        if names is not None and len(names) in (len(shape), len(shape) - 1):
            return names if len(names) == len(shape) else ("layers", *names)
    return (None,) * len(shape)
