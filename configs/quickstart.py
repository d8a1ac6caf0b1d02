"""placeholder."""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(vocab_size=259, num_layers=4, model_dim=192, num_heads=3, glu_dim=512, dtype="float32")
    config.num_steps = 300
    config.batch_size = 16
    config.sequence_length = 512
    config.optimizer.learning_rate = 3e-3
    return config
