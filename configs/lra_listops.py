"""TransNormer T2 on Long Range Arena's ListOps: nested lists of operators on digits, up to 2,000 tokens.

    python train.py --config=configs/lra_listops.py --workdir=runs/listops

The first run generates the 100,000 expressions, with the distribution of Long Range Arena (96,000 to train on).
--config.model.attention=t1, linear, linformer, lsh, performer, softmax and so on are the models it is compared with.

Published accuracies: vanilla 36.37, local 15.82, sparse 17.07, Longformer 35.63, Linformer 35.70, Reformer 37.27,
BigBird 36.05, linear 16.13, Performer 18.01. Always the commonest answer is right in 17.4% of the cases, the commonest
answer for the root operator in 36.9%. TransNormer's averages over five tasks are 64.80 (T2) and 63.71 (T1), beside its
own vanilla of 57.37 (arXiv 2210.10340, table 6); its scores by task are not available.

Of the published settings (AdamW without decay of weights, no clipping, GELU, a norm before each branch) two are not
here: the norm is a LayerNorm, where theirs is over the batch (SyncBatchNorm), within NormAttention as well, where it is
SimpleRMSNorm as in the language models; and their LRPE is a rotation of fixed angles without a reflection, here it is
the one of the language models. The steps are the published 40 epochs; the published cosine is laid over 50,000 steps,
here it ends with the run.

Made for one GPU with 40 GB. It has not been run.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(
        "baseline",
        task="classification",
        vocab_size=16,
        num_layers=4,
        model_dim=128,
        num_heads=8,
        attention="t2",
        causal=False,
        feed_forward="gelu",
        feed_forward_dim=512,
        norm="layer_norm",
        scale_embedding=False,
        max_length=2000,
        linformer_dim=(128,),
        dropout=0.0,
    )
    config.task.num_classes = 10
    config.data.dataset = "listops"
    config.num_steps = 30_000
    config.batch_size = 128
    config.sequence_length = 2000
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 1000
    config.optimizer.final_fraction = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.log_every = 100
    config.evaluation.every = 1000
    config.evaluation.batch_size = 128
    config.evaluation.max_tokens = 0  # all of the split, as the papers report it
    return config
