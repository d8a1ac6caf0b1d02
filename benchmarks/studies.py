"""The comparisons of `benchmarks.study`: a config, a reduced budget, and variants that differ in a few keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any

Overrides = Mapping[str, Any]  # "model.attention" -> "linear"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
      changes: keys of the config -> values, on top of the study's budget.
      published: what a paper reports for it, at its own budget.
      config: the file, where it is not the study's; of the budget, its keys outside `model.` are then kept.
    """

    changes: Overrides
    published: float | None = None
    config: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """Variants trained with the same data, steps and seed.

    Attributes:
      name: on the command line and of the files.
      config: the published experiment, a file in `configs/`.
      budget: what is reduced, keys of the config -> values.
      variants: label -> variant.
      metric: the held-out figure that is compared, as `metrics.jsonl` has it without "eval/".
      higher_is_better: of the metric.
      published: what the published figures are.
      reduced: what was reduced, in words.
      files: the data's place in the directory of all data ("." is the directory itself), or "" if it needs none.
      references: what to compare with, name -> value of the metric.
    """

    name: str
    config: str
    budget: Overrides
    variants: Mapping[str, Variant]
    metric: str
    higher_is_better: bool
    published: str
    reduced: str
    files: str = ""
    references: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def overrides(self, variant: Variant) -> dict[str, Any]:
        """All overrides of a variant."""
        kept = {key: value for key, value in self.budget.items() if not (variant.config and key.startswith("model."))}
        return {**kept, **variant.changes}


DUPLICATION = Study(
    name="duplication",
    config="configs/duplication.py",
    budget={
        "model.num_layers": 2,
        "model.model_dim": 128,
        "model.num_heads": 4,
        "model.feed_forward_dim": 256,
        "model.dropout": 0.0,
        "num_steps": 12_000,
        "batch_size": 16,
        "optimizer.learning_rate": 1e-3,
        "optimizer.schedule": "wsd",
        "optimizer.decay_fraction": 0.2,
        "optimizer.warmup_steps": 100,
        "log_every": 100,
        "checkpoint_every": 1000,
        "evaluation.every": 500,
    },
    variants={name: Variant({"model.attention": name}) for name in ("linear", "softmax", "lsh")},
    metric="accuracy",
    higher_is_better=True,
    published="a curve only: linear and softmax reach the same loss, LSH stays above it (arXiv 2006.16236, figure 2)",
    reduced="2 of 4 layers, width 128 of 256 with 4 heads of 8, no dropout, batches of 16 instead of 64; "
    "12,000 steps instead of 10,000, and the rate falls over the last fifth of them instead of at once after 3,000",
    references={"every separator missed: 47 in 48": 47 / 48},
)

AN4 = Study(
    name="an4",
    config="configs/an4_speech.py",
    files="an4_mfcc/an4",
    budget={
        "model.num_layers": 3,
        "model.model_dim": 96,
        "model.num_heads": 3,
        "model.feed_forward_dim": 192,
        "task.frames_per_token": 4,
        "num_steps": 3000,
        "batch_size": 8,
        "optimizer.learning_rate": 1e-3,
        "log_every": 50,
        "checkpoint_every": 500,
        "evaluation.every": 250,
    },
    variants={
        "linear": Variant({}, 0.0808),
        "softmax": Variant({"model.attention": "softmax"}, 0.0512),
        "BiLSTM": Variant({"model.num_layers": 2, "model.hidden_dim": 96}, 0.1094, config="configs/an4_bilstm.py"),
    },
    metric="error_rate",
    higher_is_better=False,
    published="phone error rate on WSJ, 80 hours (arXiv 2006.16236, table 3)",
    reduced="AN4, 48 minutes, instead of WSJ; 3 of 9 layers, width 96 of 192 (BiLSTM 2 of 3 layers, 96 of 320); four "
    "frames to a token instead of one; batches of 8; 3,000 steps",
)

MNIST = Study(
    name="mnist",
    config="configs/mnist_images.py",
    files=".",
    budget={
        "model.num_layers": 3,
        "model.model_dim": 128,
        "model.num_heads": 4,
        "model.feed_forward_dim": 256,
        "model.dropout": 0.0,
        "num_steps": 1500,
        "batch_size": 4,
        "optimizer.learning_rate": 1e-3,
        "optimizer.final_fraction": 0.05,
        "log_every": 10,
        "checkpoint_every": 500,
        "evaluation.every": 150,
        "evaluation.max_tokens": 784 * 256,
    },
    variants={"linear": Variant({}, 0.644)},
    metric="bits_per_dim",
    higher_is_better=False,
    published="bits per dimension after 250 epochs (arXiv 2006.16236, table 1)",
    reduced="3 of 8 layers, width 128 of 256 with 4 heads of 8, no dropout; 1,500 steps of 4 images, 0.1 of 250 "
    "epochs; 256 of 10,000 held-out images",
    references={"published, 250 epochs": 0.644},
)

_PERPLEXITY = (
    "perplexity of hidden tokens, 12 layers of RoBERTa's size, WikiText-103 (arXiv 2210.10340, tables 3 and 8 to 12)"
)
_REDUCED = (
    "bytes of Wikipedia text instead of GPT-2's tokens of WikiText-103; width 64 of 768 with 2 heads of 12; rows of "
    "256 instead of 512, batches of 16 instead of 512; blocks of 32 instead of 64, in proportion to it; norms before "
    "the branches instead of after the sums; no dropout; {steps} of 50,000 steps"
)
_MASKED = {
    "model.vocab_size": 260,  # bytes, and the mask
    "model.model_dim": 64,
    "model.num_heads": 2,
    "model.feed_forward_dim": 171,
    "model.max_length": 256,
    "model.block_size": 32,
    "model.dropout": 0.0,
    "model.norm_first": True,
    "model.final_norm": True,
    "model.dtype": "float32",
    "data.dataset": "plain_text",
    "data.documents": "marked",
    "data.held_out": 0.01,
    "data.tokenizer": "bytes",
    "batch_size": 16,
    "accumulation_steps": 1,
    "sequence_length": 256,
    "optimizer.learning_rate": 3e-3,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 50,
    "optimizer.clip_norm": 1.0,
    "log_every": 25,
    "checkpoint_every": 300,
    "evaluation.max_tokens": 65_536,
    "evaluation.batch_size": 16,
}

MASKED_LM = Study(
    name="masked_lm",
    config="configs/wikitext_masked_lm.py",
    files="enwiki2015_first100M.txt.xz",
    budget={**_MASKED, "model.num_layers": 6, "num_steps": 800, "evaluation.every": 100},
    variants={
        "diag 3 : norm 3 (for 6 : 6)": Variant({"model.attention": "t2"}, 3.82),
        "diag 0 : norm 6 (for 0 : 12)": Variant({"model.attention": "norm_t2"}, 4.23),
        "diag 6 : norm 0 (for 12 : 0)": Variant({"model.attention": "diag_t2"}, 4.75),
        "norm early": Variant({"model.attention": "norm_t2,diag_t2"}, 4.13),
        "linear": Variant({"model.attention": "linear"}, 4.98),
        "softmax": Variant({"model.attention": "softmax"}),
    },
    metric="perplexity",
    higher_is_better=False,
    published=_PERPLEXITY,
    reduced="6 of 12 layers; " + _REDUCED.format(steps=800),
)

ABLATION_TRANSNORMER = Study(
    name="ablation_transnormer",
    config="configs/wikitext_masked_lm.py",
    files="enwiki2015_first100M.txt.xz",
    budget={**_MASKED, "model.num_layers": 4, "num_steps": 400, "evaluation.every": 100},
    variants={
        "T2": Variant({"model.attention": "t2"}, 3.82),
        "diag 0 : norm 4": Variant({"model.attention": "norm_t2"}, 4.23),
        "diag 1 : norm 3": Variant({"model.attention": "diag_t2,norm_t2,norm_t2,norm_t2"}),
        "diag 3 : norm 1": Variant({"model.attention": "diag_t2,diag_t2,diag_t2,norm_t2"}),
        "diag 4 : norm 0": Variant({"model.attention": "diag_t2"}, 4.75),
        "norm early": Variant({"model.attention": "norm_t2,diag_t2"}, 4.13),
        "alternating": Variant({"model.attention": "diag_t2,norm_t2,diag_t2,norm_t2"}, 4.19),
        "block 16 (for 32)": Variant({"model.block_size": 16}, 3.92),
        "block 64 (for 128)": Variant({"model.block_size": 64}, 3.72),
        "FFN": Variant({"model.feed_forward": "relu", "model.feed_forward_dim": 256}, 3.93),
    },
    metric="perplexity",
    higher_is_better=False,
    published=_PERPLEXITY,
    reduced="4 of 12 layers; " + _REDUCED.format(steps=400),
)

ABLATION_LLM = Study(
    name="ablation_llm",
    config="configs/enwiki_byte.py",
    files="enwiki2015_first100M.txt.xz",
    budget={
        "model.num_layers": 4,
        "model.model_dim": 96,
        "model.num_heads": 4,
        "model.glu_dim": 256,
        "model.init_std": 0.05,
        "model.dtype": "float32",
        "num_steps": 800,
        "batch_size": 4,
        "sequence_length": 256,
        "optimizer.learning_rate": 2e-3,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_steps": 50,
        "log_every": 25,
        "checkpoint_every": 300,
        "evaluation.every": 200,
        "evaluation.max_tokens": 65_536,
        "evaluation.batch_size": 4,
        "evaluation.window": 512,
    },
    variants={
        "released": Variant({}, 2.248),
        "LRPE in all layers": Variant({"model.lrpe_layers": (0, 1, 2, 3)}, 2.236),
        "LRPE, no decay": Variant({"model.lrpe_layers": (0, 1, 2, 3), "model.decay": "none"}, 2.287),
        "decay alone": Variant({"model.lrpe_layers": ()}, 2.267),
        "sinusoidal": Variant(
            {"model.lrpe_layers": (), "model.decay": "none", "model.sinusoidal_position": True}, 2.387
        ),
        "decay as in the paper": Variant({"model.decay": "paper"}),
        "no decay temperature": Variant({"model.decay_temperature": False}, 2.258),
        "no gate": Variant({"model.use_gate": False}, 2.263),
        "LayerNorm": Variant({"model.norm": "layer_norm"}, 2.247),
        "RMSNorm": Variant({"model.norm": "rms_norm"}, 2.247),
        "attention without activation": Variant({"model.activation": "identity"}, 2.283),
        "attention with 1+elu": Variant({"model.activation": "1+elu"}, 2.252),
        "GLU with swish": Variant({"model.glu_activation": "silu"}, 2.254),
    },
    metric="bits_per_byte",
    higher_is_better=False,
    published="loss in bits per token, 385 million parameters, 100,000 steps (arXiv 2405.17381, tables 4 to 12)",
    reduced="bytes of Wikipedia text; 0.5 million parameters (4 layers, width 96) instead of 385 million; 800 steps of "
    "1,024 bytes",
)

STUDIES = {study.name: study for study in (DUPLICATION, MASKED_LM, AN4, MNIST, ABLATION_TRANSNORMER, ABLATION_LLM)}
