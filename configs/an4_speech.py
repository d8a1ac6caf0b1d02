"""Phones of spoken words by the Linear Transformer and CTC, on CMU AN4 (arXiv 2006.16236, section 4.3, has WSJ).

    python train.py --config=configs/an4_speech.py --workdir=runs/an4 --config.data.files=an4

`an4` is the directory of etc/ and feat/ with 13 cepstra a frame. --config.model.attention=softmax and lsh are the other
models of the paper; configs/an4_bilstm.py is its BiLSTM.

Published phone error rates on WSJ, 80 hours of read sentences: BiLSTM 10.94, softmax 5.12, LSH 9.33, linear 8.08. AN4
has 48 minutes of spelled names and numbers, so its figures are to be compared with each other only.

Layers, heads, optimizer and rate are those published; the width of 192 follows from "32 features a head as in the
images"; the paper halves the rate on a plateau, here it falls by half a cosine; batch and steps are ours.

Made for one GPU. It has not been run in full; `python -m benchmarks.study --name=an4` is a smaller run for two CPU
cores.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(
        "baseline",
        task="speech",
        num_layers=9,
        model_dim=192,
        num_heads=6,
        attention="linear",
        causal=False,
        feed_forward="relu",
        feed_forward_dim=768,
        norm="layer_norm",
        norm_first=False,
        max_length=640,
        linformer_dim=(128,),
        lsh_chunk=32,
        dtype="float32",
    )
    config.task.num_classes = 33
    config.task.num_features = 13
    config.data.dataset = "an4"
    config.data.eval_split = "test"
    config.num_steps = 6000
    config.batch_size = 16
    config.sequence_length = 640
    config.optimizer.name = "radam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.evaluation.every = 300
    config.evaluation.batch_size = 16
    config.evaluation.max_tokens = 0  # all of the split, as the papers report it
    return config
