"""The faults that `planted_faults` plants: path, text before, text after, and the tests that should fail."""

_PACKING = "tests/data/test_packing.py"
_STOPPING = "tests/training/test_stopping.py"
_STEP = "tests/training/test_step.py"

FAULTS = [
    # Rows made of documents.
    ("transnormer_jax/data/concatenation.py", "documents.lengths[order] + 1)", "documents.lengths[order])", _PACKING),
    ("transnormer_jax/data/concatenation.py", "= self._eos_id", "= self._pad_id", _PACKING),
    ("transnormer_jax/data/concatenation.py", "if skipped == 0:", "if skipped <= 1:", _PACKING),
    ("transnormer_jax/data/packing.py", "places - places[0] + 1", "places - places[0]", _PACKING),
    ("transnormer_jax/data/packing.py", "self._seed, number, 0)", "self._seed, 0, 0)", _PACKING),
    ("transnormer_jax/data/packing.py", "self._seed, number, 1)", "self._seed, number, 0)", _PACKING),
    ("transnormer_jax/data/shuffle.py", "np.argsort(keys, kind=\"stable\")", "np.argsort(keys)[::-1]", _PACKING),
    ("transnormer_jax/data/pipeline.py", "self._first_row + batch", "batch", "tests/data/test_pipeline.py"),
    ("transnormer_jax/data/pipeline.py", "start + offset]", "start]", "tests/data/test_pipeline.py"),
    ("transnormer_jax/data/mixture.py", "(np.arange(count) + 0.5) / count", "np.arange(count)", "tests/data/test_mixture.py"),
    ("transnormer_jax/data/mixture.py", "period * self._per_period[source] + ", "", "tests/data/test_mixture.py"),
    # A run that resumes.
    ("transnormer_jax/training/loop.py", "self._first_row, self._mesh", "0, self._mesh", _STOPPING),
    ("transnormer_jax/training/loop.py", "+= config.batch_size\n", "+= 1\n", _STOPPING),
    ("transnormer_jax/training/loop.py", "for step in range(first, last + 1)", "for step in range(first, last)", _STOPPING),
    ("transnormer_jax/training/loop.py", 'self._save_due |= "save" in due', "pass", _STOPPING),
    ("transnormer_jax/training/loop.py", "first_step=first_step + 1", "first_step=1", _STOPPING),
    ("transnormer_jax/training/checkpoints.py", "jax.tree.structure(abstract.opt_state), leaves)",
     "jax.tree.structure(abstract.opt_state), leaves[::-1])", _STOPPING),
    ("transnormer_jax/training/checkpoints.py", "verify(state.params, saved.get", "len(saved.get", _STOPPING),
    ("transnormer_jax/training/checkpoints.py", "self._set_aside(found.broken)", "pass", _STOPPING),
    ("transnormer_jax/training/checkpoints.py", "[: self._count]", "[self._count :]", _STOPPING),
    ("transnormer_jax/training/checksums.py", "(2 * np.arange(", "(0 * np.arange(", "tests/training/test_checksums.py"),
    ("transnormer_jax/training/reading.py", "step = left.pop()", "step = left.pop(0)", "tests/training/test_reading.py"),
    ("transnormer_jax/training/workdir.py", '"sequence_length": config["sequence_length"], ', "",
     "tests/training/test_resume_changes.py"),
    # A step of training.
    ("transnormer_jax/training/step.py", "jnp.maximum(sums.predictions, 1)", "sums.predictions", _STEP),
    ("transnormer_jax/training/step.py", "finite=jnp.isfinite(sums.loss) & jnp.isfinite(norm)", "finite=True", _STEP),
    ("transnormer_jax/training/step.py", "jax.tree.map(jnp.add, total, gradient(params, *one))",
     "gradient(params, *one)", _STEP),
    ("transnormer_jax/training/step.py", "state.step + 1", "state.step + 2", _STEP),
]
