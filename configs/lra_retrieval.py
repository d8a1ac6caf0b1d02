"""TransNormer T2 on Long Range Arena's Retrieval: whether one paper cites another, by their first 4,000 bytes.

    python train.py --config=configs/lra_retrieval.py --workdir=runs/retrieval --config.data.files=aan

`aan` is the directory of new_aan_pairs.train.tsv, .eval.tsv and .test.tsv: label, two ids, two texts. The public
release has the ids alone. --config.model.attention=t1, linear, linformer, lsh, performer, softmax and so on are the
models it is compared with.

Published accuracies: vanilla 57.46, local 53.39, sparse 59.59, Longformer 56.89, Linformer 52.27, Reformer 53.40,
BigBird 59.29, linear 53.09, Performer 53.82; later work with other code has 79 for most of them. TransNormer's averages
over five tasks are 64.80 (T2) and 63.71 (T1), beside its own vanilla of 57.37 (arXiv 2210.10340, table 6); its scores
by task are not available.

Of the published settings (AdamW without decay of weights, no clipping, GELU, a norm before each branch) two are not
here: the norm is a LayerNorm, where theirs is over the batch (SyncBatchNorm), within NormAttention as well, where it is
SimpleRMSNorm as in the language models; and their LRPE is a rotation of fixed angles without a reflection, here it is
the one of the language models. Heads are 4, as published for the lower half; the upper half has 8 there. The steps are
the published 20 epochs; the published cosine is laid over 50,000 steps, here it ends with the run.

Made for one GPU with 40 GB. It has not been run: the texts are not available.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(
        "baseline",
        task="retrieval",
        vocab_size=259,
        num_layers=4,
        model_dim=128,
        num_heads=4,
        attention="t2",
        causal=False,
        feed_forward="gelu",
        feed_forward_dim=512,
        norm="layer_norm",
        scale_embedding=False,
        max_length=4000,
        linformer_dim=(256,),
        dropout=0.0,
    )
    config.task.num_classes = 2
    config.data.dataset = "aan"
    config.num_steps = 46_000
    config.batch_size = 64
    config.accumulation_steps = 2
    config.sequence_length = 4000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 800
    config.optimizer.final_fraction = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.log_every = 100
    config.evaluation.every = 2000
    config.evaluation.batch_size = 64
    config.evaluation.max_tokens = 0  # all of the split, as the papers report it
    return config
