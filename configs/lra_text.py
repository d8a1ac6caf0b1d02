"""TransNormer T2 on Long Range Arena's Text: the sentiment of a review by its bytes, up to 4,096.

    python train.py --config=configs/lra_text.py --workdir=runs/text --config.data.files=imdb

`imdb` is the directory of imdb_train.tsv and imdb_test.tsv; without it, TFDS downloads its own copy. There is no
validation split: as in Long Range Arena, the test split is looked at all along. --config.model.attention=t1, linear,
linformer, lsh, performer, softmax and so on are the models it is compared with.

Published accuracies: vanilla 64.27, local 52.98, sparse 63.58, Longformer 62.85, Linformer 53.94, Reformer 56.10,
BigBird 64.02, linear 65.90, Performer 65.40. TransNormer's averages over five tasks are 64.80 (T2) and 63.71 (T1),
beside its own vanilla of 57.37 (arXiv 2210.10340, table 6); its scores by task are not available.

Of the published settings (AdamW without decay of weights, no clipping, GELU, a norm before each branch) two are not
here: the norm is a LayerNorm, where theirs is over the batch (SyncBatchNorm), within NormAttention as well, where it is
SimpleRMSNorm as in the language models; and their LRPE is a rotation of fixed angles without a reflection, here it is
the one of the language models. The steps are the published 32 epochs; the published cosine is laid over 50,000 steps,
here it ends with the run.

Made for one GPU with 40 GB. It has not been run.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(
        "baseline",
        task="classification",
        vocab_size=259,
        num_layers=4,
        model_dim=128,
        num_heads=8,
        attention="t2",
        causal=False,
        feed_forward="gelu",
        feed_forward_dim=512,
        norm="layer_norm",
        scale_embedding=False,
        max_length=4096,
        linformer_dim=(256,),
        dropout=0.0,
    )
    config.task.num_classes = 2
    config.data.dataset = "imdb_reviews"
    config.data.eval_split = "test"
    config.num_steps = 12_500
    config.batch_size = 64
    config.sequence_length = 4096
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 80
    config.optimizer.final_fraction = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.log_every = 100
    config.evaluation.every = 500
    config.evaluation.batch_size = 64
    config.evaluation.max_tokens = 0  # all of the split, as the papers report it
    return config
