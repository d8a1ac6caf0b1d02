"""The faults that `planted_faults` plants: file, the arguments of pytest that should fail, texts before and after."""

FAULTS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "data/concatenation.py": (
        "tests/data/test_packing.py",
        [
            ("documents.lengths[order] + 1)", "documents.lengths[order])"),
            ("= self._eos_id", "= self._pad_id"),
            ("if skipped == 0:", "if skipped <= 1:"),
        ],
    ),
    "data/packing.py": (
        "tests/data/test_packing.py",
        [
            ("places - places[0] + 1", "places - places[0]"),
            ("self._seed, number, 0)", "self._seed, 0, 0)"),
            ("self._seed, number, 1)", "self._seed, number, 0)"),
        ],
    ),
    "data/shuffle.py": (
        "tests/data/test_packing.py",
        [
            ('np.argsort(keys, kind="stable")', "np.argsort(keys)[::-1]"),
        ],
    ),
    "data/pipeline.py": (
        "tests/data/test_pipeline.py",
        [
            ("self._first_row + batch", "batch"),
            ("start + offset]", "start]"),
        ],
    ),
    "data/mixture.py": (
        "tests/data/test_mixture.py",
        [
            ("(np.arange(count) + 0.5) / count", "np.arange(count)"),
            ("period * self._per_period[source] + ", ""),
        ],
    ),
    "training/loop.py": (
        "tests/training/test_stopping.py",
        [
            ("self._first_row, self._mesh", "0, self._mesh"),
            ("+= config.batch_size\n", "+= 1\n"),
            ("for step in range(first, last + 1)", "for step in range(first, last)"),
            ('self._save_due |= "save" in due', "pass"),
            ("first_step=first_step + 1", "first_step=1"),
        ],
    ),
    "training/checkpoints.py": (
        "tests/training/test_stopping.py",
        [
            (
                "jax.tree.structure(abstract.opt_state), leaves)",
                "jax.tree.structure(abstract.opt_state), leaves[::-1])",
            ),
            ("verify(state.params, saved.get", "len(saved.get"),
            ("self._set_aside(found.broken)", "pass"),
            ("[: self._count]", "[self._count :]"),
        ],
    ),
    "training/checksums.py": (
        "tests/training/test_checksums.py",
        [
            ("(2 * np.arange(", "(0 * np.arange("),
        ],
    ),
    "training/reading.py": (
        "tests/training/test_reading.py",
        [
            ("step = left.pop()", "step = left.pop(0)"),
        ],
    ),
    "training/workdir.py": (
        "tests/training/test_resume_changes.py",
        [
            ('"sequence_length": config["sequence_length"], ', ""),
        ],
    ),
    "training/step.py": (
        "tests/training/test_step.py",
        [
            ("jnp.maximum(sums.predictions, 1)", "sums.predictions"),
            ("finite=jnp.isfinite(sums.loss) & jnp.isfinite(norm)", "finite=True"),
            ("jax.tree.map(jnp.add, total, gradient(params, *one))", "gradient(params, *one)"),
            ("state.step + 1", "state.step + 2"),
        ],
    ),
    "ops/linear_attention/decay.py": (
        "tests/ops/test_linear_attention.py -k test_float32",
        [
            ("of_query = jnp.where(index == before, of_query, -jnp.inf)", "pass"),
            ("of_key = jnp.where(index == index[..., -1:], of_key, -jnp.inf)", "pass"),
            ("across = jnp.where(before == index[..., -1:], across, -jnp.inf)", "pass"),
            ("rate * (steps[..., -1:] - steps)", "rate * steps"),
            (
                "jnp.tril(jnp.ones((1, 1, 1, *steps.shape[-1:] * 2), bool))",
                "jnp.tril(jnp.ones((1, 1, 1, *steps.shape[-1:] * 2), bool), -1)",
            ),
            (
                "jnp.cumsum(coarse, axis=3), jnp.cumsum(steps - coarse, axis=3)",
                "jnp.cumsum(steps, axis=3), jnp.zeros_like(steps)",
            ),
            ("decay_and_add(earlier[0], later[0], later[0])", "earlier[0] + later[0]"),
            ("keep_starts | (starts == 0)[..., None]", "True"),
        ],
    ),
    "ops/linear_attention/chunked.py": (
        "tests/ops/test_linear_attention.py -k test_float32",
        [
            ("new += w.q_decay[..., None] * _dot", "new += _dot"),
            ("_scale(v, w.k_decay), _scale(d_out, w.q_decay)", "_scale(v, w.k_decay), d_out"),
            ("dk += sum_group(", "sum_group("),
            ("border = jnp.sum(after * d_after", "border = jnp.sum(before * d_after"),
            ("jax.lax.cumsum(dc, axis=4, reverse=True)", "jax.lax.cumsum(dc, axis=4)"),
            ("return (after[:, -1], final_states", "return (before[:, -1], final_states"),
        ],
    ),
}
