"""`python -m benchmarks.results_page` writes docs/results/figures.md from the records: no figure is typed by hand."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import markdown

Record = Mapping[str, Any]

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results" / "figures.md"

_HEAD = """# Figures

Every record of the benchmarks, with its plot, command, hardware, versions and date; made by `python -m
benchmarks.results_page` from the JSON in `benchmarks/results/`.

The comparisons of the papers come first, at a size that two CPU cores train in minutes. They are as they came out, one
seed each; "best" is chosen by the score itself, "last" is not, and the budgets were set after looking at trial runs. A
published figure stands beside ours for orientation; it is that of another size and budget, which "reduced" says. Other
work ran beside the trainings, so the seconds in their records say nothing of speed.
"""


def page() -> str:
    """The whole page, of the records that are there."""
    parts = [_HEAD]
    for name, (title, section) in _SECTIONS.items():
        path = RECORDS / f"{name}.json"
        if path.is_file():
            record = json.loads(path.read_text())
            plot = f"![{title}](../../benchmarks/results/{name}.png)"
            words = section if isinstance(section, str) else section(record)
            parts.append(f"## {title}\n\n{words}\n\n{plot}\n\n{markdown.origin(name, record)}\n")
    return "\n".join(parts)


def _study(record: Record) -> str:
    metric, rows = record["metric"], []
    for row in record["rows"]:
        if "failed" in row:
            rows.append([row["variant"], "", f"failed: {row['failed']}", "", ""])
            continue
        published = "" if row["published"] is None else f"{row['published']:g}"
        figures = [f"{row['parameters']:,}", f"{row['final']:.4f}", f"{row['best']:.4f}", published]
        rows.append([row["variant"], *figures])
    better = "higher" if record["higher_is_better"] else "lower"
    header = ["variant", "parameters", f"{metric}, last", "best", "published"]
    words = [f"`{metric}` on held-out data, {better} is better. Reduced: {record['reduced']}."]
    words += [f"{name}: {value:.4f}." for name, value in record["references"].items()]
    words += [f"Published: {record['published']}."]
    return f"{markdown.table(header, rows)}\n\n{' '.join(words)}"


def _faults(record: Record) -> str:
    rows, numbers = record["rows"], sorted({row["processes"] for row in record["rows"]})
    table = []
    for kind in sorted({row["kind"] for row in rows}):
        own = [row for row in rows if row["kind"] == kind]
        counts = [str(sum(row["processes"] == n for row in own)) for n in numbers]
        lost = [row["steps_lost"] for row in own if row["steps_lost"] is not None]
        same, hung = sum(row["same_parameters"] for row in own), sum(row["hung"] for row in own)
        slowest = max(row["seconds_to_end"] for row in own)
        table.append(
            [
                kind.replace("_", " "),
                *counts,
                f"{same} of {len(own)}",
                f"{max(lost, default=0)}",
                f"{slowest:.0f}",
                str(hung),
            ]
        )
    header = ["fault", *(f"{n} process{'es' * (n > 1)}" for n in numbers), "bit-identical at the end"]
    header += ["steps lost, at most", "seconds to the end, at most", "hung"]
    left_out = "".join(f" Left out: {kind.replace('_', ' ')} ({why})." for kind, why in record["left_out"].items())
    return (
        f"{markdown.table(header, table)}\n\nFaults at random moments of runs with a checkpoint every "
        f"{record['settings']['checkpoint_every']} steps, on a disk and in an emulated bucket, which are started again "
        f"until they are done ([scaling](../scaling.md#when-something-breaks)).{left_out}"
    )


def _gradient_bounds(record: Record) -> str:
    names = list(record["rows"][0])
    return (
        "The largest derivative of the attention by its scores, exactly, as features shrink: that of scaled 1 + elu "
        "has no bound but 1 / (4 min s), softmax stays below 1/4, NormAttention below 3 / (2 sqrt(eps)) (arXiv "
        "2210.10340, section 3).\n\n"
        + markdown.table(names, [[_short(row[name]) for name in names] for row in record["rows"]])
    )


def _gradient_spread(record: Record) -> str:
    rows = [
        [name, _short(row["scores"]), _short(row["parameters"]), _short(row.get("published"))]
        for name, row in record["summary"].items()
    ]
    steps, warmup = record["settings"]["steps"], record["settings"]["warmup_steps"]
    return (
        f"Standard deviation over mean of two gradient norms, over {steps} steps of training, after {warmup} of warm-up"
        "; published over 50,000 (arXiv 2210.10340, table 2), of a gradient that is not said.\n\n"
        + markdown.table(["attention", "by the scores", "by the parameters", "published"], rows)
    )


def _dilution(record: Record) -> str:
    rows = [[name, *map(_short, row["layers"]), _short(row["uniform"])] for name, row in record["summary"].items()]
    depth = max(len(row["layers"]) for row in record["summary"].values())
    header = ["model", *(f"layer {i + 1}" for i in range(depth)), "uniform"]
    rows = [[*row[:-1], *[""] * (depth + 2 - len(row)), row[-1]] for row in rows]
    return (
        f"Share of the attention that falls into the {record['share']:.0%} of the row around a token (arXiv "
        "2210.10340, section 3).\n\n" + markdown.table(header, rows)
    )


def _spectrum(record: Record) -> str:
    rows = [
        [name, row["num_tokens"], ", ".join(map(str, row["values_for_mass"]))]
        for name, row in record["summary"].items()
    ]
    return (
        f"How many singular values of the softmax attention hold {record['mass']:.0%} of their sum, from the first "
        "layer to the last (arXiv 2006.04768, figure 1, says: few, and fewer in higher layers).\n\n"
        + markdown.table(["model", "of N", "values, by layer"], rows)
    )


def _linformer_speed(record: Record) -> str:
    names = {
        "num_tokens": "n",
        "projected": "k",
        "median_ms": "ms",
        "speed": "times faster",
        "published_speed": "published",
        "memory": "times less memory",
        "published_memory": "published",
    }
    rows = [[_short(row.get(name)) for name in names] for row in record["rows"] if row["projected"]]
    return (
        "Forward pass of an encoder against the same with softmax attention; memory is the compiler's plan. Published: "
        "V100, the largest batch that fits (arXiv 2006.04768, table 3).\n\n"
        + markdown.table(list(names.values()), rows)
    )


def _steps_per_second(record: Record) -> str:
    names = {
        "attention": "attention",
        "computation": "computation",
        "num_tokens": "N",
        "steps_per_second": "steps/s",
        "over_softmax": "over softmax",
        "published_over_softmax": "published",
    }
    rows = [[_short(row.get(name)) for name in names] for row in record["rows"]]
    return "Steps per second; published on an A6000 (arXiv 2210.10340, table 7).\n\n" + markdown.table(
        list(names.values()), rows
    )


def _images_per_second(record: Record) -> str:
    parts = []
    for images, summary in record["summary"].items():
        rows = [
            [name, *(_short(row.get(key)) for key in ("batch", "images_per_second", "published_images_per_second"))]
            for name, row in summary["table"].items()
        ]
        ratios = [
            [name, _short(row["measured"]), _short(row.get("published"))] for name, row in summary["ratios"].items()
        ]
        parts.append(f"{images}:\n\n" + markdown.table(["sampler", "batch", "images/s", "published"], rows))
        parts.append(markdown.table(["ratio", "here", "published"], ratios))
    return (
        "Sampling images byte by byte with the models of arXiv 2006.16236 (tables 1 and 2; published on a GPU), random "
        f"weights. {record['cost_model'][0].upper()}{record['cost_model'][1:]}. Every sampler works on a row of the "
        "full length from the first byte on, which flatters the linear one; `half` is the same at half the length, an "
        "estimate for a row that grows.\n\n" + "\n\n".join(parts)
    )


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


# Record -> title, and what is said: a table, or a sentence with the page that explains it.
_SECTIONS: dict[str, tuple[str, Callable[[Record], str] | str]] = {
    "cpu/study_duplication": ("Sequence duplication", _study),
    "cpu/study_listops": ("ListOps, short", _study),
    "cpu/study_text": ("IMDb by bytes", _study),
    "cpu/study_image": ("CIFAR-10, grey", _study),
    "cpu/study_sst2": ("SST-2", _study),
    "cpu/study_masked_lm": ("Masked language modelling: which attention where", _study),
    "cpu/study_an4": ("Speech: AN4", _study),
    "cpu/study_mnist": ("MNIST byte by byte", _study),
    "cpu/study_ablation_transnormer": ("TransNormer, ablations", _study),
    "cpu/study_ablation_llm": ("TransNormerLLM, ablations", _study),
    "cpu/images_per_second": ("Images per second", _images_per_second),
    "cpu/steps_per_second": ("Steps per second", _steps_per_second),
    "cpu/linformer_speed": ("Linformer against softmax", _linformer_speed),
    "cpu/gradient_bounds": ("Gradients without a bound", _gradient_bounds),
    "cpu/gradient_spread": ("How much gradients spread", _gradient_spread),
    "cpu/dilution": ("Dilution of attention", _dilution),
    "cpu/spectrum": ("Spectrum of softmax attention", _spectrum),
    "cpu/attention": (
        "Backends of the operator",
        "Time and memory of every backend against the length ([hardware](../hardware.md#cpu-measured)).",
    ),
    "cpu/attention_jla_per_head_64": (
        "Beside jax-linear-attention, 64 features, decay per head",
        "Time and memory of both chunked forms ([hardware](../hardware.md#cpu-measured)).",
    ),
    "cpu/attention_jla_per_token_64": (
        "Beside jax-linear-attention, 64 features, decay per token",
        "Time and memory of both chunked forms ([hardware](../hardware.md#cpu-measured)).",
    ),
    "cpu/attention_jla_per_head_128": (
        "Beside jax-linear-attention, 128 features, decay per head",
        "Time and memory of both chunked forms ([hardware](../hardware.md#cpu-measured)).",
    ),
    "cpu/attention_jla_per_token_128": (
        "Beside jax-linear-attention, 128 features, decay per token",
        "Time and memory of both chunked forms ([hardware](../hardware.md#cpu-measured)).",
    ),
    "cpu/inference": (
        "What generation costs",
        "Tokens per second and state against the context ([inference](../inference.md)).",
    ),
    "cpu/int8": ("int8 weights", "Bytes, speed and error ([inference](../inference.md#what-int8-weights-change))."),
    "cpu/convert_memory_385m": (
        "Memory of conversion, 385M",
        "Peak resident memory of each step ([inference](../inference.md#what-conversion-needs)).",
    ),
    "cpu/convert_memory_7b": (
        "Memory of conversion, 7B",
        "Peak resident memory of each step ([inference](../inference.md#what-conversion-needs)).",
    ),
    "cpu/data": ("Data", "Tokenising, reading, and the shares of a mixture ([data](../data.md#speed))."),
    "cpu/cleaning": (
        "Cleaning",
        "Planted duplicates and rubbish, what was removed by which rule, and what training says "
        "([cleaning](../cleaning.md)).",
    ),
    "cpu/faults": ("Faults", _faults),
    "tpu/schedule": (
        "Schedules of the TPU kernels",
        "Cycles of the compiled kernels over the time of their bytes in HBM, without a TPU "
        "([hardware](../hardware.md#tpu-by-the-compiler)).",
    ),
    "tpu/prefill": (
        "Schedules of a packed prefill",
        "The same for 16,384 tokens of 1 or 16 documents with states in and out ([serving](../serving.md)).",
    ),
    "tpu/neighbours": (
        "Bytes around the TPU kernels",
        "Bytes that compiled programs move over the least possible, without a TPU "
        "([hardware](../hardware.md#tpu-by-the-compiler)).",
    ),
    "tpu/scaling": (
        "Training steps on TPU slices",
        "Bytes per chip and the estimate of a step, by the compiler ([scaling](../scaling.md#what-the-recipes-need)).",
    ),
}


if __name__ == "__main__":
    PAGE.write_text(page())
