"""The papers' tables, as far as their numbers are known here, and where in our records the number beside each one is.

The published numbers were taken from the papers or from transcriptions of their tables. Those that a benchmark compares
itself with stand there, and come here by its record.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

Where = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A published table.

    Attributes:
      title: what it compares.
      source: paper and table.
      metric: what the numbers are.
      published: row -> number, or what is printed there, of rows that our record knows nothing of.
      record: name of ours in benchmarks/results/cpu, or "".
      ours: row -> the keys that lead in turn to our number in the record.
      words: what sets ours apart, or what it would take.
    """

    title: str
    source: str
    metric: str
    published: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    record: str = ""
    ours: Mapping[str, Where] = dataclasses.field(default_factory=dict)
    words: str = ""


def _rows(labels: str, values: str) -> dict[str, float | str]:
    return dict(zip(labels.split(" | "), values.split(" | "), strict=True))


def _of_study(labels: Mapping[str, str]) -> dict[str, Where]:
    """Row -> the last evaluation of a variant."""
    return {row: ("rows", {"variant": variant}, "final") for row, variant in labels.items()}


def _over_softmax(attention: str, num_tokens: int) -> Where:
    row = {"attention": attention, "num_tokens": num_tokens}
    return "rows", tuple(row | {"computation": name} for name in ("inference", "training")), "over_softmax"


def _images_per_second(images: str) -> dict[str, Where]:
    samplers = {
        "linear": "linear",
        "softmax with a cache": "softmax_cached",
        "softmax": "softmax_recomputing",
        "LSH-1": "lsh_1",
        "LSH-4": "lsh_4",
    }
    return {row: ("summary", images, "table", name, "images_per_second") for row, name in samplers.items()}


_PRETRAINING = (
    "Needs pre-training at the papers' budget; the configurations are `configs/tnl_385m.py` to `configs/tnl_175b.py`."
)
_SCRIPT = "With models of the paper's size on a GPU: `bash benchmarks/gpu_papers.sh`."
_ARENA = _of_study(
    {"Transformer": "softmax", "Linformer": "linformer", "Reformer": "lsh", "Linear Transformer": "linear"}
)


TABLES = (
    Table(
        "TransNormer: which attention where",
        "arXiv 2210.10340, tables 1, 8, 9",
        "perplexity of hidden tokens",
        record="study_masked_lm",
        ours=_of_study(
            {
                "diag 6 : norm 6": "diag 3 : norm 3 (for 6 : 6)",
                "diag 0 : norm 12": "diag 0 : norm 6 (for 0 : 12)",
                "diag 12 : norm 0": "diag 6 : norm 0 (for 12 : 0)",
                "norm early": "norm early",
                "1 + elu": "linear",
            }
        ),
        words="The order of 12 : 0 and 6 : 6 is not reproduced.",
    ),
    Table(
        "TransNormer: parts",
        "arXiv 2210.10340, tables 10 to 12",
        "perplexity of hidden tokens",
        {"parallel": 3.77},
        "study_ablation_transnormer",
        _of_study(
            {
                "T2": "T2",
                "FFN": "FFN",
                "block 32": "block 16 (for 32)",
                "block 128": "block 64 (for 128)",
                "alternating": "alternating",
            }
        ),
        "`parallel` (both attentions in every layer, twice the cost) is not built.",
    ),
    Table(
        "TransNormer: how gradients spread",
        "arXiv 2210.10340, table 2",
        "standard deviation over mean",
        record="gradient_spread",
        ours={
            "1 + elu": ("summary", "linear", "parameters"),
            "Performer": ("summary", "performer", "parameters"),
            "softmax": ("summary", "softmax", "parameters"),
            "NormAttention": ("summary", "norm_t2", "parameters"),
        },
        words="Ours by the gradient of the parameters. Not reproduced: NormAttention spreads most.",
    ),
    Table(
        "TransNormer: causal language model",
        "arXiv 2210.10340, table 4",
        "perplexity on WikiText-103, validation / test",
        _rows(
            "softmax | FLASH | 1 + elu | Performer | T2",
            "29.63 / 31.01 | 33.18 / 34.63 | 32.63 / 34.25 | 75.29 / 77.65 | 29.57 / 31.01",
        ),
        words="Needs WikiText-103 and GPUs for 156 million parameters: `configs/wikitext_causal_lm.py`.",
    ),
    Table(
        "TransNormer: GLUE",
        "arXiv 2210.10340, table 5",
        "average",
        {"softmax": 78.79, "T1": 79.38, "T2": 78.78, "FLASH": 76.87, "1 + elu": 70.00, "Performer": 63.41},
        words="Needs pre-training on WikiText-103; SST-2 from scratch by bytes is in [the figures](figures.md#sst-2).",
    ),
    Table(
        "TransNormer: Long Range Arena",
        "arXiv 2210.10340, table 6",
        "average accuracy",
        {"softmax": 57.37, "cosFormer": 62.11, "FLASH": 61.31, "T1": 63.71, "T2": 64.80},
        words=(
            "Needs the full lengths and budgets: `configs/lra_listops.py`, `configs/lra_text.py` and their neighbours."
        ),
    ),
    Table(
        "TransNormer: speed",
        "arXiv 2210.10340, table 7, A6000",
        "steps/s over softmax at 1,024 tokens, inference / training",
        {"FLASH": "1.03 / 1.34", "T2 at 5,120 tokens": "softmax is out of memory"},
        "steps_per_second",
        {
            "T2": _over_softmax("t2", 1024),
            "Performer": _over_softmax("performer", 1024),
            "T2 at 5,120 tokens": _over_softmax("t2", 5120),
        },
        _SCRIPT,
    ),
    Table(
        "TransNormerLLM: parts",
        "arXiv 2405.17381, tables 5 to 12, 385 million parameters, 100,000 steps",
        "published: loss in bits per token; ours: bits per byte",
        record="study_ablation_llm",
        ours=_of_study(
            {
                "released": "released",
                "LRPE-d in all layers": "LRPE in all layers",
                "LRPE, no decay": "LRPE, no decay",
                "decay alone": "decay alone",
                "sinusoidal": "sinusoidal",
                "no decay temperature": "no decay temperature",
                "no gate": "no gate",
                "RMSNorm": "RMSNorm",
                "LayerNorm": "LayerNorm",
                "attention without activation": "attention without activation",
                "attention with 1 + elu": "attention with 1+elu",
                "GLU with swish": "GLU with swish",
            }
        ),
        words="Different units, so only the order within a column compares; 0.5 million parameters, one seed.",
    ),
    Table(
        "TransNormerLLM against Transformer and TransNormer",
        "arXiv 2405.17381, table 4 and following",
        "loss in bits per token",
        {
            "Transformer 385M": 2.362,
            "TNL 385M": 2.248,
            "Transformer 1B": 2.061,
            "TNL 1B": 1.896,
            "T1 379M": 2.290,
            "T2 379M": 2.274,
        },
        words=_PRETRAINING,
    ),
    Table(
        "TransNormerLLM: WikiText-103, 44 million parameters",
        "arXiv 2405.17381, table 1",
        "perplexity, validation / test",
        _rows(
            "Transformer | 1 + elu | Performer | cosFormer | T1 | T2 | HGRN | TNN | TNL",
            "24.40 / 24.78 | 27.44 / 28.05 | 62.50 / 63.16 | 26.53 / 27.06 | 24.43 / 25.00 | 24.50 / "
            "25.05 | 24.14 / 24.82 | "
            "23.98 / 24.67 | 23.46 / 24.03",
        ),
        words="Needs WikiText-103 and a GPU; the paper does not say the sizes of its 44M models.",
    ),
    Table(
        "TransNormerLLM: released models",
        "their repository, and arXiv 2405.17381 for 15B",
        "BoolQ, PIQA, HellaSwag, WinoGrande, ARC-e, ARC-c, OBQA, MMLU",
        _rows(
            "385M | 1B | 7B | 15B",
            "62.14, 66.70, 46.27, 54.46, 55.43, 27.99, 32.40, 25.90 | 63.27, 72.09, 56.49, 60.38, "
            "63.68, 35.24, 36.60, 27.10 | "
            "75.87, 80.09, 75.21, 66.06, 75.42, 44.40, 63.40, 43.10 | 76.64, 81.56, 82.18, 75.61, "
            "77.61, 50.51, 46.40, 60.06",
        ),
        words=(
            "Needs the released files and the tasks' data: `python -m transnormer_jax.convert`, "
            "then `python -m transnormer_jax.lm_eval`."
        ),
    ),
    Table(
        "TransNormerLLM: training speed",
        "arXiv 2307.14995, table 13, 64 A100, 2,048 tokens; Transformer with FlashAttention / TNL",
        "tokens/s per GPU",
        _rows("7B | 13B | 65B | 175B", "3,362 / 4,081 | 1,736 / 2,104 | 318 / 407 | 106 / 137"),
        words="Needs GPUs; what the TPU compiler estimates is in [scaling](../scaling.md#what-the-recipes-need).",
    ),
    Table(
        "TransNormerLLM: longest context in training",
        "arXiv 2307.14995, table 14; Transformer / TNL",
        "tokens",
        _rows("7B | 13B | 65B | 175B", "37K / 48K | 24K / 35K | 19K / 23K | 10K / 12K"),
        words="Needs GPUs; with `mesh.context` a row is divided over devices, so that the limit is their number.",
    ),
    Table(
        "Lightning attention-2: training speed by length, 0.4B",
        "arXiv 2401.04658, table 1, 2 A100; LLaMA with FlashAttention-2 / lightning attention-1 / -2",
        "tokens/s per GPU",
        _rows(
            "1K | 8K | 64K | 92K",
            "35,931 / 41,789 / 38,615 | 21,996 / 28,627 / 38,172 | 5,643 / 8,247 / 38,278 | 4,078 / 6,012 / 38,596",
        ),
        words="Needs GPUs.",
    ),
    Table(
        "Lightning attention-2: the kernel, batch 4, 32 heads of 128",
        "its repository's benchmark, bfloat16; lightning attention-2 / FlashAttention-2, forward",
        "ms",
        _rows("1K | 4K | 8K | 32K", "0.586 / 0.232 | 2.241 / 2.740 | 4.414 / 10.39 | 17.66 / 162.9"),
        words="Needs a GPU: `python -m benchmarks.gpu` times other shapes with heads of 128.",
    ),
    Table(
        "TransNormerLLM 7B: generation",
        "arXiv 2405.17381, figure 5, A100, prompts of 512, 1,024 new tokens; TNL / Pythia 6.9B",
        "tokens/s",
        _rows("largest batch", "2,819.6 / 252.1"),
        words="Needs a GPU; small models on a CPU are in [inference](../inference.md).",
    ),
    Table(
        "Linear Transformer: MNIST",
        "arXiv 2006.16236, table 1",
        "bits per dimension",
        {"softmax": 0.621, "LSH-1": 0.745, "LSH-4": 0.676},
        "study_mnist",
        _of_study({"linear": "linear"}),
        "0.1 of 250 epochs, a model of 0.4 million parameters.",
    ),
    Table(
        "Linear Transformer: images per second, MNIST",
        "arXiv 2006.16236, table 1 and appendix, a GPU",
        "images/s",
        record="images_per_second",
        ours=_images_per_second("mnist"),
        words=f"The models of the paper at their size, on a CPU; {_SCRIPT}",
    ),
    Table(
        "Linear Transformer: images per second, CIFAR-10",
        "arXiv 2006.16236, table 2 and appendix, a GPU",
        "images/s",
        record="images_per_second",
        ours=_images_per_second("cifar10"),
        words="Bits per dimension (published: softmax 3.47, LSH-1 3.39, LSH-4 3.51, linear 3.40) need days "
        "on a GPU: `configs/cifar10_images.py`.",
    ),
    Table(
        "Linear Transformer: speech",
        "arXiv 2006.16236, table 3, phone error rate on WSJ",
        "error rate",
        {"LSH-4": 0.0933},
        "study_an4",
        _of_study({"BiLSTM": "BiLSTM", "softmax": "softmax", "linear": "linear"}),
        "Ours on AN4, 48 minutes of speech instead of 80 hours.",
    ),
    Table(
        "Linformer: speed",
        "arXiv 2006.04768, table 3, V100; k = 128 / 256",
        "times faster than softmax",
        record="linformer_speed",
        ours={
            f"n = {n:,}": ("rows", tuple({"num_tokens": n, "projected": k} for k in (128, 256)), "speed")
            for n in (512, 1024, 2048, 4096)
        },
        words=(
            f"Ours at one batch for both; memory is in [the figures](figures.md#linformer-against-softmax). {_SCRIPT}"
        ),
    ),
    Table(
        "Linformer: fine-tuning",
        "arXiv 2006.04768, table 2, average of SST-2, IMDb, QNLI, QQP",
        "accuracy",
        {
            "RoBERTa-base": 92.25,
            "Linformer, n = 512, k = 128": 91.75,
            "Linformer, n = 512, k = 256, one projection": 92.30,
        },
        words="Needs pre-training on 3.3 billion words: `configs/linformer_masked_lm.py`.",
    ),
    Table(
        "Long Range Arena: ListOps",
        "arXiv 2011.04006, table 1",
        "accuracy",
        {"Performer": 0.1801},
        "study_listops",
        _ARENA,
        "Ours on expressions a tenth as long.",
    ),
    Table(
        "Long Range Arena: text",
        "arXiv 2011.04006, table 1",
        "accuracy",
        {"Performer": 0.6540},
        "study_text",
        _ARENA,
        "Ours on the first 512 bytes.",
    ),
    Table(
        "Long Range Arena: image",
        "arXiv 2011.04006, table 1",
        "accuracy",
        {"Performer": 0.4277},
        "study_image",
        _ARENA,
        "Ours after 300 of 45,000 steps.",
    ),
    Table(
        "Long Range Arena: retrieval and Pathfinder",
        "arXiv 2011.04006, table 1",
        "accuracy, %, retrieval / Pathfinder",
        _rows(
            "Transformer | Linformer | Reformer | Linear Transformer | Performer",
            "57.46 / 71.40 | 52.27 / 76.34 | 53.40 / 68.50 | 53.09 / 75.30 | 53.82 / 77.05",
        ),
        words="Needs the AAN corpus, and 200 epochs: `configs/lra_retrieval.py`, `configs/lra_pathfinder.py`.",
    ),
    Table(
        "Reformer: sequence duplication",
        "arXiv 2001.04451, section 5; curves only",
        "accuracy",
        {"softmax": "1.0", "LSH": "near 1.0 with enough rounds"},
        "study_duplication",
        _of_study({"softmax": "softmax", "LSH": "lsh"}),
    ),
)
