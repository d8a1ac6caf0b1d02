"""The order of the paper's masked language models, and ablations of TransNormer and TransNormerLLM."""

from benchmarks.studies.study import Study, Variant

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
