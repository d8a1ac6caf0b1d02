"""Supervised fine-tuning of a TransNormerLLM on conversations.

    python train.py --config=configs/supervised_fine_tuning.py --workdir=runs/chat --config.init_from=runs/tnl_385m \
        --config.data.tokenizer=runs/tnl_385m/tokenizer --config.data.files='talk/*.jsonl'
    python -m transnormer_jax.serve --workdir=runs/chat

Optimizer, schedule and lengths are those of the authors' fine-tuning script (their repository, `fine-tune/`): AdamW at
1e-4 with 0.1 weight decay, a tenth of the steps of warm-up, a cosine down, 2,048 tokens. Made for any machine that
holds the model in training. Conversations are packed into rows, and 1,000 steps of 64 rows are 131 million tokens: set
`num_steps` to as many epochs as you want; the line that begins with `task` says how many steps one has.
It has not been run at this size; `tests/training/test_fine_tuning.py` runs it small.
"""

from transnormer_jax.training.config import default_config


def get_config():
    # What config.init_from holds takes the place of the preset.
    config = default_config(preset="385m", task="supervised_lm", remat="full")
    config.data.dataset = "plain_text"
    config.data.documents = "conversation"
    config.data.held_out = 0.02
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.num_steps = 1_000
    config.batch_size = 64
    config.sequence_length = 2048
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 100
    config.optimizer.final_fraction = 0.0
    config.evaluation.every = 200
    config.evaluation.batch_size = 64
    return config
