"""Linformer of RoBERTa's size, k = 128 at 512 tokens, as a masked language model (arXiv 2006.04768, section 5.1).

    python train.py --config=configs/linformer_masked_lm.py --workdir=runs/linformer \
        --config.data.files='corpus/*.txt' --config.data.tokenizer=gpt2

The files are plain text in which `<doc ...>` and `</doc>` lines mark documents, `gpt2` is the directory of GPT-2's
encoder.json and vocab.bpe. --config.model.attention=softmax is the Transformer it is compared with,
--config.model.linformer_sharing=headwise, key_value or none the other ways to share projections, and
--config.model.linformer_projection=convolution, mean or max the other projections.

Published are curves only: k = 128 at 512 tokens comes close to the Transformer, and one projection for all layers does
nearly as well as one for each. The corpus was BookCorpus and English Wikipedia, 250,000 updates on 64 V100s; batch and
learning rate are not published, those below are ours.

Made for eight GPUs. It has not been run.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(
        "baseline",
        preset="masked_lm",
        task="masked_lm",
        attention="linformer",
        linformer_dim=(128,),
        linformer_sharing="layerwise",
        feed_forward="gelu",
        feed_forward_dim=3072,
        norm="layer_norm",
    )
    config.data.dataset = "plain_text"
    config.data.documents = "delimited"
    config.num_steps = 250_000
    config.batch_size = 256
    config.accumulation_steps = 4
    config.sequence_length = 512
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "wsd"
    config.optimizer.warmup_steps = 10_000
    config.optimizer.decay_fraction = 0.96
    config.optimizer.final_fraction = 0.0
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.01
    config.log_every = 50
    config.checkpoint_every = 1000
    config.evaluation.every = 2000
    config.evaluation.max_tokens = 1_000_000
    config.evaluation.batch_size = 32
    return config
