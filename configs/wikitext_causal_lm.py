"""TransNormer T2 as a causal language model on WikiText-103, words as tokens (arXiv 2210.10340, table 4).

    python train.py --config=configs/wikitext_causal_lm.py --workdir=runs/wikitext \
        --config.data.files=wikitext-103 --config.data.tokenizer=words.json

`wikitext-103` is the directory of wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens; `words.json` is a
vocabulary of their words, at most 267,744 of them, made once by

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.train(["wikitext-103/wiki.train.tokens"], trainers.WordLevelTrainer(special_tokens=["</s>", "<unk>"]))
    words.save("words.json")

Published, validation / test perplexity: T2 29.57 / 31.01; softmax 29.63 / 31.01, 1+elu 32.63 / 34.25, Performer
75.29 / 77.65. These are --config.model.attention=softmax, linear (which adds the denominator back) and performer.

Made for eight GPUs as published (8 rows on each, accumulated twice). It has not been run: the train split is not at
hand. All settings are the published ones; the rows are windows of whole articles laid end to end.
"""

from transnormer_jax.training.config import default_config


def get_config():
    config = default_config("transnormer", vocab_size=267_744, attention="t2")
    config.data.dataset = "wikitext"
    config.num_steps = 100_000
    config.batch_size = 128
    config.accumulation_steps = 2
    config.sequence_length = 512
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "inverse_sqrt"
    config.optimizer.warmup_steps = 8000
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 0.0
    config.log_every = 100
    config.checkpoint_every = 2000
    config.evaluation.every = 2000
    config.evaluation.batch_size = 64
    config.evaluation.max_tokens = 0  # all of the split, as the papers report it
    return config
