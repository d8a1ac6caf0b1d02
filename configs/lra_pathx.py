"""TransNormer T2 on Long Range Arena's Path-X: whether a path joins two discs, 128 x 128 pixels.

    python train.py --config=configs/lra_pathx.py --workdir=runs/pathx

The first run draws the 200,000 images, with the distribution of Long Range Arena (160,000 to train on).
--config.model.attention=t1, linear, linformer, lsh, performer, softmax and so on are the models it is compared with.

Published: no model of Long Range Arena is better than chance, 50%; TransNormer's paper gives no figure. TransNormer's
averages over five tasks are 64.80 (T2) and 63.71 (T1), beside its own vanilla of 57.37 (arXiv 2210.10340, table 6); its
scores by task are not available.

Of the published settings (AdamW without decay of weights, no clipping, GELU, a norm before each branch) two are not
here: the norm is a LayerNorm, where theirs is over the batch (SyncBatchNorm), within NormAttention as well, where it is
SimpleRMSNorm as in the language models; and their LRPE is a rotation of fixed angles without a reflection, here it is
the one of the language models. Warm-up, dropout, batches and steps are not published for Path-X: the warm-up is Long
Range Arena's, the rest follows Pathfinder.

Made for eight GPUs with 40 GB. It has not been run.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(
        "baseline",
        task="classification",
        vocab_size=256,
        num_layers=6,
        model_dim=64,
        num_heads=8,
        attention="t2",
        causal=False,
        feed_forward="gelu",
        feed_forward_dim=160,
        norm="layer_norm",
        scale_embedding=False,
        max_length=16384,
        linformer_dim=(256,),
        dropout=0.0,
    )
    config.task.num_classes = 2
    config.data.dataset = "pathfinder/resolution=128"
    config.num_steps = 50_000
    config.batch_size = 64
    config.sequence_length = 16384
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 2500
    config.optimizer.final_fraction = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.log_every = 100
    config.evaluation.every = 2000
    config.evaluation.batch_size = 64
    config.evaluation.max_tokens = 0  # all of the split, as the papers report it
    return config
