"""42 million parameters on the bytes of Wikipedia text (one GPU).

    python train.py --config=configs/enwiki_byte.py --workdir=runs/enwiki --config.data.files=enwiki.txt.xz

The file is plain text in which `<doc ...>` and `</doc>` lines mark documents; .xz and .gz are read as they are. 1% of
the documents, chosen by a hash of their text, is held out for validation and another 1% for testing.

Made for one GPU with 40 GB or more. It has not been run on one yet, so no time or result can be given.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(vocab_size=259, num_layers=12, model_dim=512, num_heads=4, glu_dim=1408)
    config.data.dataset = "plain_text"
    config.data.documents = "delimited"
    config.num_steps = 20_000
    config.batch_size = 32
    config.sequence_length = 2048
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "wsd"
    config.optimizer.warmup_steps = 500
    config.log_every = 50
    config.evaluation.every = 1000
    config.evaluation.max_tokens = 1_000_000
    config.checkpoint_every = 1000
    return config
