"""TransNormer T2 on SST-2, the sentiment of a sentence, from scratch and by bytes.

    python train.py --config=configs/glue_sst2.py --workdir=runs/sst2 --config.data.files=glue

`glue` is the directory that holds SST-2; without it, TFDS downloads its own copy. --config.model.attention=t1, softmax,
linear and so on make the comparison.

Published for GLUE are averages after pre-training as a masked language model: T1 79.38, T2 78.78, softmax 78.79, 1+elu
70.00 (arXiv 2210.10340, table 5). Neither the scores of SST-2 nor the settings of the fine-tuning are published, and
nothing is pre-trained here, so accuracies are to be compared with each other only.

Made for one GPU; sizes and rates are ours. It has not been run.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(
        "baseline",
        task="classification",
        vocab_size=259,
        num_layers=6,
        model_dim=256,
        num_heads=4,
        attention="t2",
        causal=False,
        feed_forward_dim=683,
        max_length=288,
        linformer_dim=(64,),
        dropout=0.2,
    )
    config.task.num_classes = 2
    config.data.dataset = "glue/sst2"
    config.num_steps = 5000
    config.batch_size = 64
    config.sequence_length = 288  # the longest sentence has 268 bytes
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 200
    config.optimizer.final_fraction = 0.0
    config.optimizer.b2 = 0.98
    config.evaluation.every = 500
    config.evaluation.batch_size = 64
    config.evaluation.max_tokens = 0  # all of the split, as the papers report it
    return config
