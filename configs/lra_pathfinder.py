"""TransNormer T2 on Long Range Arena's Pathfinder: whether a path joins two discs, 32 x 32 pixels.

    python train.py --config=configs/lra_pathfinder.py --workdir=runs/pathfinder

The first run draws the 200,000 images, with the distribution of Long Range Arena (160,000 to train on).
--config.model.attention=t1, linear, linformer, lsh, performer, softmax and so on are the models it is compared with.

Published accuracies: T2 76.80, vanilla 65.26 (TransNormer's own); vanilla 71.40, local 66.63, sparse 71.71, Longformer
69.71, Linformer 76.34, Reformer 68.50, BigBird 74.87, linear 75.30, Performer 77.05 (Long Range Arena's). TransNormer's
averages over five tasks are 64.80 (T2) and 63.71 (T1), beside its own vanilla of 57.37 (arXiv 2210.10340, table 6); its
scores by task are not available.

Of the published settings (AdamW without decay of weights, no clipping, GELU, a norm before each branch) two are not
here: the norm is a LayerNorm, where theirs is over the batch (SyncBatchNorm), within NormAttention as well, where it is
SimpleRMSNorm as in the language models; and their LRPE is a rotation of fixed angles without a reflection, here it is
the one of the language models. The published 200 epochs would be 250,000 steps, but the published cosine ends at
50,000, and so does this run.

Made for one GPU with 40 GB. It has not been run.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(
        "baseline",
        task="classification",
        vocab_size=256,
        num_layers=4,
        model_dim=128,
        num_heads=8,
        attention="t2",
        causal=False,
        feed_forward="gelu",
        feed_forward_dim=128,
        norm="layer_norm",
        scale_embedding=False,
        max_length=1024,
        linformer_dim=(128,),
        dropout=0.0,
    )
    config.task.num_classes = 2
    config.data.dataset = "pathfinder"
    config.num_steps = 50_000
    config.batch_size = 128
    config.sequence_length = 1024
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 312
    config.optimizer.final_fraction = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.log_every = 100
    config.evaluation.every = 2000
    config.evaluation.batch_size = 128
    config.evaluation.max_tokens = 0  # all of the split, as the papers report it
    return config
