"""TransNormer T2 as a bidirectional language model on WikiText-103, GPT-2's tokens (arXiv 2210.10340, tables 8 to 12).

    python train.py --config=configs/wikitext_masked_lm.py --workdir=runs/masked \
        --config.data.files=wikitext-103-raw --config.data.tokenizer=gpt2

`wikitext-103-raw` is the directory of wiki.train.raw and so on, `gpt2` that of GPT-2's encoder.json and vocab.bpe.

Published perplexity of hidden tokens, all of 12 layers: diag 6 : norm 6 3.82, 0 : 12 (attention=norm_t2) 4.23, 12 : 0
(diag_t2) 4.75; norm first (norm_t2,diag_t2) 4.13; a feed-forward without gate 3.93; blocks of 32 or 128 3.92 or 3.72;
1+elu in all layers (linear) 4.98. `python -m benchmarks.study --name=masked_lm` is this comparison for two CPU cores.

Made for eight GPUs as published (4 rows on each, accumulated 16 times). It has not been run: the train split is not at
hand. All settings are the published ones, but for dropout within attention (0.1), which the attentions here have not.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config("transnormer", preset="masked_lm", task="masked_lm", attention="t2")
    config.data.dataset = "wikitext"
    config.num_steps = 50_000
    config.batch_size = 512
    config.accumulation_steps = 16
    config.sequence_length = 512
    config.optimizer.learning_rate = 5e-4
    # fairseq's polynomial decay: a straight line from the end of the warm-up to 0.
    config.optimizer.schedule = "wsd"
    config.optimizer.warmup_steps = 3000
    config.optimizer.decay_fraction = 0.94
    config.optimizer.final_fraction = 0.0
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 0.0
    config.log_every = 50
    config.checkpoint_every = 1000
    config.evaluation.every = 1000
    config.evaluation.batch_size = 32
    config.evaluation.max_tokens = 0  # all of the split, as the papers report it
    return config
