"""TransNormerLLM of 3 billion parameters.

    python train.py --config=configs/tnl_3b.py --workdir=runs/tnl_3b --config.data.files='text/*.txt.xz'

The model is that of the paper (arXiv 2307.14995); how its authors trained it is not published. Here: 20 tokens for each
parameter, at 2 Mi tokens a step, and a learning rate usual for the size.

Made for TPU v5p:2x2x4. It has not been run; by the TPU compiler (libtpu 0.0.52), a step needs of each chip:

    v5p:2x2x4: 48.3 GiB, 2,950 TFLOP, 1.27 times 6ND

    python -m transnormer_jax.compile --config=configs/tnl_3b.py --topology=v5p:2x2x4

docs/scaling.md has more of that.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(preset="3b", remat="full")
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.data.dataset = "plain_text"
    config.data.tokenizer = "tokenizer.model"  # SentencePiece, of up to 64,000 pieces
    config.num_steps = 26_700
    config.batch_size = 256
    config.sequence_length = 8192
    config.optimizer.learning_rate = 0.0004
    config.optimizer.schedule = "wsd"
    config.optimizer.warmup_steps = 1335
    config.evaluation.every = 1000
    config.evaluation.max_tokens = 10_000_000
    config.evaluation.batch_size = 256
    config.checkpoint_every = 1000
    return config
