"""A model and a run that take seconds."""

from ml_collections import ConfigDict

from transnormer_jax.training import default_config


def small_config(directory, **model) -> ConfigDict:
    """A TransNormerLLM on lines of text by bytes; datasets are prepared below `directory`."""
    fields = {"vocab_size": 259, "num_layers": 1, "model_dim": 32, "num_heads": 2, "glu_dim": 48, "init_std": 0.1}
    config = default_config(dtype="float32", **fields | model)
    config.data.dataset, config.data.documents, config.data.held_out = "plain_text", "line", 0.1
    config.data.data_dir = str(directory / "datasets")
    config.num_steps, config.batch_size, config.sequence_length = 40, 16, 64
    config.log_every = config.checkpoint_every = 20
    # A schedule that does not depend on the number of steps: runs of any length are one compiled program.
    config.optimizer.schedule, config.optimizer.learning_rate, config.optimizer.warmup_steps = "inverse_sqrt", 1e-2, 3
    config.evaluation.every, config.evaluation.batch_size, config.evaluation.window = 0, 8, 32
    return config


def write_counting(directory) -> str:
    """Writes 400 lines that can be learnt; returns the path."""
    file = directory / "counting.txt"
    file.write_text("".join(f"{i} and {i + 1} are {2 * i + 1}\n" for i in range(400)))
    return str(file)
