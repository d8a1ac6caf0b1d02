"""`python -m benchmarks.results_page` writes docs/results.md from the committed records: no figure is typed by hand."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import hardware

Record = Mapping[str, Any]

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "results" / "cpu"
PAGE = ROOT / "docs" / "results.md"

_HEAD = """# Results

The claims of the papers, and their comparisons at a size that two CPU cores train in minutes. The figures are as they
came out, one seed each; "best" is chosen by the score itself, "last" is not, and the budgets were set after looking at
trial runs. A published figure stands beside ours for orientation; it is that
of another size and budget, which "reduced" says. Every table is made by `python -m benchmarks.results_page` from a
record in `benchmarks/results/cpu/`, which holds all curves, the command of every run, and the versions. Other work ran
beside the trainings, so the seconds in their records say nothing of speed.
"""


def page() -> str:
    """The whole page, of the records that are there."""
    parts = [_HEAD]
    for name, (title, section) in _SECTIONS.items():
        path = RECORDS / f"{name}.json"
        if path.is_file():
            record = json.loads(path.read_text())
            parts.append(f"## {title}\n\n{section(record)}\n\n{_origin(name, record)}\n")
    return "\n".join(parts)


def _origin(name: str, record: Record) -> str:
    made = record["environment"]
    links = f"[record](../benchmarks/results/cpu/{name}.json), [plot](../benchmarks/results/cpu/{name}.png)"
    versions = f"jax {made['jax']}, Python {made['python']}, {made['date_utc'][:10]}"
    return f"`{record['command']}` on {hardware(made)}, {versions}: {links}."


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
    return f"{_table(header, rows)}\n\n{' '.join(words)}"


def _gradient_bounds(record: Record) -> str:
    names = list(record["rows"][0])
    return (
        "The largest derivative of the attention by its scores, exactly, as features shrink: that of scaled 1 + elu "
        "has no bound but 1 / (4 min s), softmax stays below 1/4, NormAttention below 3 / (2 sqrt(eps)) (arXiv "
        "2210.10340, section 3).\n\n" + _table(names, [[_short(row[name]) for name in names] for row in record["rows"]])
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
        + _table(["attention", "by the scores", "by the parameters", "published"], rows)
    )


def _dilution(record: Record) -> str:
    rows = [[name, *map(_short, row["layers"]), _short(row["uniform"])] for name, row in record["summary"].items()]
    depth = max(len(row["layers"]) for row in record["summary"].values())
    header = ["model", *(f"layer {i + 1}" for i in range(depth)), "uniform"]
    rows = [[*row[:-1], *[""] * (depth + 2 - len(row)), row[-1]] for row in rows]
    return (
        f"Share of the attention that falls into the {record['share']:.0%} of the row around a token (arXiv "
        "2210.10340, section 3.3).\n\n" + _table(header, rows)
    )


def _spectrum(record: Record) -> str:
    rows = [
        [name, row["num_tokens"], ", ".join(map(str, row["values_for_mass"]))]
        for name, row in record["summary"].items()
    ]
    return (
        f"How many singular values of the softmax attention hold {record['mass']:.0%} of their sum, from the first "
        "layer to the last (arXiv 2006.04768, figure 1, says: few, and fewer in higher layers).\n\n"
        + _table(["model", "of N", "values, by layer"], rows)
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
        "V100, the largest batch that fits (arXiv 2006.04768, table 3).\n\n" + _table(list(names.values()), rows)
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
    return "Steps per second; published on an A6000 (arXiv 2210.10340, table 7).\n\n" + _table(
        list(names.values()), rows
    )


def _images_per_second(record: Record) -> str:
    parts = []
    for images, summary in record["summary"].items():
        rows = [
            [name, row["batch"], _short(row["images_per_second"]), _short(row.get("published_images_per_second"))]
            for name, row in summary["table"].items()
        ]
        ratios = [
            [name, _short(row.get("measured", row)), _short(row.get("published"))]
            for name, row in summary["ratios"].items()
        ]
        parts.append(f"{images}:\n\n" + _table(["sampler", "batch", "images/s", "published"], rows))
        parts.append(_table(["ratio", "here", "published"], ratios))
    return (
        "Sampling images byte by byte with the models of arXiv 2006.16236 (tables 1 and 2; published on a GPU), random "
        f"weights. {record['cost_model'][0].upper()}{record['cost_model'][1:]}. Every sampler works on a row of the "
        "full length from the first byte on, which flatters the linear one; `half` is the same at half the length, an "
        "estimate for a row that grows.\n\n" + "\n\n".join(parts)
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


_SECTIONS: dict[str, tuple[str, Callable[[Record], str]]] = {
    "study_duplication": ("Sequence duplication", _study),
    "study_listops": ("ListOps, short", _study),
    "study_text": ("IMDb by bytes", _study),
    "study_image": ("CIFAR-10, grey", _study),
    "study_sst2": ("SST-2", _study),
    "study_masked_lm": ("Masked language modelling: which attention where", _study),
    "study_an4": ("Speech: AN4", _study),
    "study_mnist": ("MNIST byte by byte", _study),
    "study_ablation_transnormer": ("TransNormer, ablations", _study),
    "study_ablation_llm": ("TransNormerLLM, ablations", _study),
    "images_per_second": ("Images per second", _images_per_second),
    "steps_per_second": ("Steps per second", _steps_per_second),
    "linformer_speed": ("Linformer against softmax", _linformer_speed),
    "gradient_bounds": ("Gradients without a bound", _gradient_bounds),
    "gradient_spread": ("How much gradients spread", _gradient_spread),
    "dilution": ("Dilution of attention", _dilution),
    "spectrum": ("Spectrum of softmax attention", _spectrum),
}


if __name__ == "__main__":
    PAGE.write_text(page())
