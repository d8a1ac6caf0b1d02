"""TransNormerLLM of 385 million parameters.

    python train.py --config=configs/tnl_385m.py --workdir=runs/tnl_385m --config.data.files='text/*.txt.xz'

The model is that of the paper (arXiv 2307.14995); how its authors trained it is not published. Here: 20 tokens for each
parameter, at 0.5 Mi tokens a step, and a learning rate usual for the size.

Made for TPU v5e:2x2. It has not been run; by the TPU compiler (libtpu 0.0.52), a step needs of each chip:

    v5e:2x2: 15.4 GiB, 407 TFLOP, 1.28 times 6ND

    python -m transnormer_jax.compile --config=configs/tnl_385m.py --topology=v5e:2x2

docs/scaling.md has more of that.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(preset="385m", remat="full")
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.data.dataset = "plain_text"
    config.data.tokenizer = "tokenizer.model"  # SentencePiece, of up to 64,000 pieces
    config.num_steps = 15_200
    config.batch_size = 64
    config.sequence_length = 8192
    config.optimizer.learning_rate = 0.001
    config.optimizer.schedule = "wsd"
    config.optimizer.warmup_steps = 760
    config.evaluation.every = 1000
    config.evaluation.max_tokens = 10_000_000
    config.evaluation.batch_size = 64
    config.checkpoint_every = 1000
    return config
