"""TransNormer T2 on Long Range Arena's Image: CIFAR-10 in grey, pixel by pixel.

    python train.py --config=configs/lra_image.py --workdir=runs/image

TFDS downloads CIFAR-10; --config.data.files=DIR reads DIR/train/CLASS/*.png (or .jpg, of which an accuracy should tell)
and DIR/test instead. As in Long Range Arena, the last tenth of the training split is for validation.
--config.model.attention=t1, linear, linformer, lsh, performer, softmax and so on are the models it is compared with.

Published accuracies: vanilla 42.44, local 41.46, sparse 44.24, Longformer 42.22, Linformer 38.56, Reformer 38.07,
BigBird 40.83, linear 42.34, Performer 42.77. TransNormer's averages over five tasks are 64.80 (T2) and 63.71 (T1),
beside its own vanilla of 57.37 (arXiv 2210.10340, table 6); its scores by task are not available.

Of the published settings (AdamW without decay of weights, no clipping, GELU, a norm before each branch) two are not
here: the norm is a LayerNorm, where theirs is over the batch (SyncBatchNorm), within NormAttention as well, where it is
SimpleRMSNorm as in the language models; and their LRPE is a rotation of fixed angles without a reflection, here it is
the one of the language models. Heads are 4, as published for the lower half; the upper half has 8 there. The steps are
the published 200 epochs.

Made for one GPU with 40 GB. It has not been run.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(
        "baseline",
        task="classification",
        vocab_size=256,
        num_layers=12,
        model_dim=128,
        num_heads=4,
        attention="t2",
        causal=False,
        feed_forward="gelu",
        feed_forward_dim=256,
        norm="layer_norm",
        scale_embedding=False,
        max_length=1024,
        linformer_dim=(128,),
        dropout=0.2,
    )
    config.task.num_classes = 10
    config.data.dataset = "cifar10"
    config.data.grey = True
    config.data.train_split = "train[:90%]"
    config.data.eval_split = "train[90%:]"
    config.num_steps = 45_000
    config.batch_size = 200
    config.sequence_length = 1024
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 175
    config.optimizer.final_fraction = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.log_every = 100
    config.evaluation.every = 1000
    config.evaluation.batch_size = 200
    config.evaluation.max_tokens = 0  # all of the split, as the papers report it
    return config
