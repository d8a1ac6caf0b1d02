"""CIFAR-10 byte by byte by the Linear Transformer (arXiv 2006.16236, section 4.2.2): 12,677,150 parameters.

    python train.py --config=configs/cifar10_images.py --workdir=runs/cifar10

TFDS downloads CIFAR-10; --config.data.files=DIR reads DIR/train/CLASS/*.png and DIR/test instead. (Images that were
JPEG in between are smoother, and their bits/dim are not those of CIFAR-10.) --config.model.attention=softmax and lsh
(with --config.model.lsh_rounds=1 or 4) are the other models of the paper.

Published bits/dim and images/s, after 7 days on one GPU: linear 3.40 and 17.85, softmax 3.47 and 0.004, LSH 3.39 and
0.015 (one round) or 3.51 and 0.005 (four). `python -m benchmarks.images_per_second` measures the second.

The rate, the batch of 10 and the 500,000 steps are those of the authors' code; the paper says 1e-4 and batches of 4,
and of 1 for softmax. That code clips the gradient of each parameter by itself; here one norm is taken over all.

Made for one GPU. It has not been run.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(
        "baseline",
        preset="linear_transformer",
        task="images",
        num_layers=16,
        max_length=3072,
        lsh_chunk=37,
        lsh_buckets=64,
        dtype="float32",
    )
    config.data.dataset = "cifar10"
    config.data.eval_split = "test"
    config.num_steps = 500_000
    config.batch_size = 10
    config.sequence_length = 3072
    config.optimizer.name = "radam"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.final_fraction = 1.0  # of the cosine: the rate stays what it is
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.log_every = 100
    config.checkpoint_every = 5000
    config.evaluation.every = 20_000
    config.evaluation.max_tokens = 3_000_000
    config.evaluation.batch_size = 10
    return config
