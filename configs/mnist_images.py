"""MNIST byte by byte by the Linear Transformer (arXiv 2006.16236, section 4.2.1): 6,359,070 parameters.

    python train.py --config=configs/mnist_images.py --workdir=runs/mnist --config.data.files=mnist
    python -m transnormer_jax.papers.sample_images --workdir=runs/mnist

`mnist` is the directory of the four IDX files; without it, TFDS downloads its own copy.
--config.model.attention=softmax and lsh (with --config.model.lsh_rounds=1 or 4) are the other models of the paper.

Published bits/dim and images/s: linear 0.644 and 142.8, softmax 0.621 and 0.45, LSH 0.745 and 0.68 (one round) or 0.676
and 0.27 (four). `python -m benchmarks.images_per_second` measures the second.

The batch of 16 and the 937,500 steps (250 epochs) are those of the authors' code; the paper says batches of 10. That
code does not shuffle, and clips the gradient of each parameter by itself; here one norm is taken over all.

Made for one GPU. It has not been run in full; `python -m benchmarks.study --name=mnist` is a smaller run for two CPU
cores.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(
        "baseline", preset="linear_transformer", task="images", lsh_chunk=29, lsh_buckets=64, dtype="float32"
    )
    config.data.dataset = "mnist"
    config.data.eval_split = "test"
    config.num_steps = 937_500
    config.batch_size = 16
    config.sequence_length = 784
    config.optimizer.name = "radam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.final_fraction = 1.0  # of the cosine: the rate stays what it is
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.log_every = 100
    config.checkpoint_every = 5000
    config.evaluation.every = 18_750
    config.evaluation.batch_size = 16
    config.evaluation.max_tokens = 0  # all of the split, as the papers report it
    return config
