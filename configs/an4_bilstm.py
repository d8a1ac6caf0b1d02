"""Phones of spoken words by a BiLSTM and CTC, on CMU AN4: the recurrent baseline of configs/an4_speech.py.

    python train.py --config=configs/an4_bilstm.py --workdir=runs/an4_bilstm --config.data.files=an4

3 layers of 320 features each way and Adam at 1e-3 are published (arXiv 2006.16236, section 4.3; 10.94 phone errors in
100 on WSJ, for which AN4 stands in); the paper lowers the rate on a plateau, here it falls by half a cosine; batch and
steps are ours.

Made for one GPU. It has not been run in full; `python -m benchmarks.study --name=an4` has a smaller run.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config("bilstm", task="speech")
    config.task.num_classes = 33
    config.task.num_features = 13
    config.data.dataset = "an4"
    config.data.eval_split = "test"
    config.num_steps = 6000
    config.batch_size = 16
    config.sequence_length = 640
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.evaluation.every = 300
    config.evaluation.batch_size = 16
    config.evaluation.max_tokens = 0  # all of the split, as the papers report it
    return config
