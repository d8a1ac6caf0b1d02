"""Runs the real commands in processes of their own, on one CPU device, as a user does."""

from pathlib import Path

from tests import forked

ROOT = Path(__file__).resolve().parents[1]

# A model and a corpus so small that a run takes seconds, most of them imports and tracing.
TINY_CONFIG = """
from transnormer_jax.training.config import default_config

def get_config():
    config = default_config(
        vocab_size=259, num_layers=1, model_dim=32, num_heads=2, glu_dim=48, dtype="float32", init_std=0.1
    )
    config.data.dataset = "plain_text"
    config.data.files = {files!r}
    config.data.documents = "line"
    config.data.held_out = 0.1
    config.data.data_dir = {data_dir!r}
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 3
    config.optimizer.schedule = "inverse_sqrt"  # runs of any number of steps are one compiled program
    config.num_steps = 40
    config.batch_size = 16
    config.sequence_length = 64
    config.log_every = 1
    config.checkpoint_every = 5
    config.evaluation.batch_size = 2
    config.evaluation.window = 32
    return config
"""


def write_tiny_config(directory: Path) -> Path:
    """Writes a corpus and a config file that trains on it; returns the config's path."""
    corpus = directory / "corpus.txt"
    corpus.write_text("".join(f"line {i} says {i} times {i % 7} is {i * (i % 7)}\n" for i in range(400)))
    config = directory / "tiny.py"
    config.write_text(TINY_CONFIG.format(files=str(corpus), data_dir=str(directory / "datasets")))
    return config


_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}


def start(*command: object, **environment: str) -> forked.Program:
    """Starts `python COMMAND` in the repository's root; warnings of Python are shown, none is an error."""
    return forked.Program([str(each) for each in command], ROOT, _ENVIRONMENT | environment)


def run(*command: object) -> tuple[int, str, str]:
    """Runs `python COMMAND` to its end; returns the exit status, stdout and stderr."""
    return forked.run([str(each) for each in command], ROOT, _ENVIRONMENT)


def assert_fails(result: tuple[int, str, str], *words: str) -> None:
    """The command failed as a command should: status 2, one sentence on stderr that has these words, no traceback."""
    status, out, err = result
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2, (out, err)
    assert len(errors) == 1, err
    assert "Traceback" not in out + err
    for word in words:
        assert word in errors[0], errors[0]
