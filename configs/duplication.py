"""Sequence duplication by the Linear Transformer (arXiv 2006.16236, section 4.1.1): 3,163,787 parameters.

    python train.py --config=configs/duplication.py --workdir=runs/duplication

A row is n symbols (32 to 62, of 10 kinds), a separator, and the symbols again; the separator and the copy are scored.
The data are made on the way; --config.model.attention=softmax and lsh are the other models of the paper. Up to the
separator no other prediction is scored, so a model that always expects it there is always right: an accuracy of 1 can
be reached. A model that predicts every token honestly would miss most separators, 1 in n + 1 (accuracy 0.98).

Published: a curve only. The linear and the softmax model reach the same loss, LSH stays above it.

Settings are those of the authors' code but for two: it clips the gradient of each parameter by itself, here one norm is
taken over all; and its chunks of 32 tokens are hashed to 64 buckets in 4 rounds that are averaged with equal weights,
here the rounds are combined exactly, as the Reformer has them.

Made for one GPU. It has not been run in full; `python -m benchmarks.study --name=duplication` is a smaller run for two
CPU cores.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(
        "baseline",
        preset="linear_transformer",
        task="duplication",
        vocab_size=11,
        num_layers=4,
        max_length=128,
        linformer_dim=(32,),
        lsh_rounds=4,
        lsh_chunk=32,
        lsh_buckets=64,
        dtype="float32",
    )
    config.num_steps = 10_000
    config.batch_size = 64
    config.sequence_length = 128
    config.optimizer.name = "radam"
    config.optimizer.learning_rate = 1e-3
    # 1e-3 for 3,000 steps, then 1e-4.
    config.optimizer.schedule = "step"
    config.optimizer.warmup_steps = 0
    config.optimizer.decay_fraction = 0.7
    config.optimizer.final_fraction = 0.1
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.log_every = 50
    config.checkpoint_every = 1000
    config.evaluation.every = 500
    config.evaluation.batch_size = 64
    return config
