"""`python -m benchmarks.record_plots` draws, from the JSON alone, committed records whose benchmarks draw nothing."""

import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.environment import hardware

Record = Mapping[str, Any]

RECORDS = Path(__file__).resolve().parent / "results"


def draw(output: Path) -> list[Path]:
    """Writes every plot as `output`/PLATFORM/NAME.png and returns the paths."""
    paths = []
    for name, plot in PLOTS.items():
        path = output / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        plot(json.loads((RECORDS / f"{name}.json").read_text())).savefig(path, dpi=120)
        paths.append(path)
    return paths


def cleaning(record: Record) -> Figure:
    """Recall of planted copies, documents removed by rule, and what training makes of the rest."""
    found, report, trained = record["found"], record["report"], record["training"]["bits_per_byte"]
    title = (
        f"Cleaning: {report['kept']['documents']:,} of {report['read']:,} documents kept, "
        f"{found['precision']:.1%} of the removed duplicates are near duplicates, "
        f"{found['rubbish_removed']:.0%} of planted rubbish removed"
    )
    figure, (recall, removed, bits) = _figure(record, title, (17, 5.5), columns=3)
    rates = found["recall_by_rate"]
    names = [f"{re.sub('0(?=[1-9])', '', rate)}\n{x['of']} copies" for rate, x in rates.items()]
    _bars(recall, names, {"recall": [100 * x["recall"] for x in rates.values()]}, "{:.1f}")
    recall.set(title="Planted copies found", xlabel="share of the words changed", ylabel="recall (%)")
    _removed(removed, report["removed"])
    _points(bits, trained)
    bits.set(
        title=f"After {record['settings']['num_steps']:,} training steps",
        xlabel="documents trained on",
        ylabel="bits per byte on held-out text",
    )
    return figure


def _removed(ax: Axes, removed: Mapping[str, Mapping[str, int]]) -> None:
    # Seventeen languages, most of them with one document, are one rule to the reader.
    rules = {
        group: {"another language": sum(counts.values())} if group == "language" else counts
        for group, counts in removed.items()
    }
    bars = [
        (count, rule.removeprefix("gopher_"), f"C{i}")
        for i, counts in enumerate(rules.values())
        for rule, count in counts.items()
    ]
    counts, names, colors = zip(*sorted(bars), strict=True)
    ax.bar_label(ax.barh(names, counts, color=colors), padding=3, fontsize=8, fmt="{:,.0f}")
    handles = [Line2D([], [], color=f"C{i}", linewidth=6, label=group) for i, group in enumerate(rules)]
    ax.legend(handles=handles, loc="lower right", title="step")
    ax.set(title="Removed", xlabel="documents", ylabel="rule", xlim=(0, 1.15 * counts[-1]))


def _points(ax: Axes, values: Mapping[str, float]) -> None:
    """Points, not bars: the axis does not begin at 0."""
    ax.plot(range(len(values)), list(values.values()), "o")
    for i, value in enumerate(values.values()):
        ax.annotate(f"{value:.4f}", (i, value), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
    ax.set_xticks(range(len(values)), [name.replace(", ", ",\n") for name in values])
    ax.margins(x=0.15, y=0.2)
    ax.grid(axis="y", alpha=0.3)


def convert_memory(record: Record) -> Figure:
    """Peak memory of each step, the limit, and the bytes of the parameters."""
    settings, rows = record["settings"], record["rows"]
    same = "come back bit by bit" if record["summary"]["files_identical"] else "DO NOT COME BACK AS THEY WERE"
    title = f"Converting a {settings['preset']} checkpoint ({settings['dtype']}): the files {same}"
    figure, (ax,) = _figure(record, title, (7.5, 5))
    _bars(
        ax,
        [f"{row['step']}\n{row['seconds']:.0f} s" for row in rows],
        {"": [row["peak_bytes"] / 1e9 for row in rows]},
        "{:.2f}",
    )
    limit, weights = settings["limit_gigabytes"], record["parameter_bytes"] / 1e9
    ax.axhline(limit, color="C3", linestyle="--", label=f"limit, {limit:g} GB")
    ax.axhline(weights, color="C2", linestyle=":", label=f"the parameters, {weights:.2f} GB")
    ax.legend(loc="upper left")
    ax.set(
        title=f"Drawn at random: {record['drawn']}",
        xlabel="step and its time, each in a process of its own",
        ylabel="peak resident memory (GB)",
        ylim=(0, 1.3 * limit),
    )
    return figure


def data(record: Record) -> Figure:
    """Shares of the mixture, speed of reading, and time for one document."""
    prepared, killed, mixture = record["prepare"], record["killed"], record["mixture"]
    same = "the same files" if killed["same_files"] else "OTHER FILES"
    title = (
        f"Data: {prepared['megabytes_per_second']:.1f} MB/s of text tokenised ({record['settings']['tokenizer']}, "
        f"{prepared['tokens']:,} tokens in {prepared['seconds']:.0f} s); killed {len(killed['kills'])} times, {same}"
    )
    figure, (shares, speed, documents) = _figure(record, title, (15, 5), columns=3)
    wanted = [100 * float(source.rsplit(":", 1)[1]) for source in record["settings"]["mixture"]]
    got = [100 * share for share in mixture["shares"].values()]
    _bars(shares, list(mixture["shares"]), {"wanted": wanted, "got": got}, "{:.2f}")
    shares.legend()
    shares.set(title=f"Mixture, first {mixture['tokens']:,} tokens", xlabel="source", ylabel="share of the tokens (%)")
    speeds = {name.replace("1 threads", "1 thread"): x for name, x in record["tokens_per_second"].items()}
    speeds |= {"mixture,\n1 thread": mixture["tokens_per_second"]}
    speeds |= {"385m needs\non one H200\n(calculated)": record["tokens_per_second_of_385m_on_h200"]}
    _bars(speed, list(speeds), {"": [x / 1e6 for x in speeds.values()]}, "{:.2f}", log=True)
    speed.set(title="Packed rows", xlabel="read by, or need", ylabel="million tokens per second (log)")
    times = record["microseconds_per_document"]
    _bars(documents, [name.replace("_", " ") for name in times], {"": list(times.values())}, "{:.1f}")
    documents.set(title="One document at random", xlabel="stored as", ylabel="time (µs)")
    return figure


def faults(record: Record) -> Figure:
    """How many faults of each kind, the steps that they cost, and the seconds until all processes had ended."""
    rows, summary = record["rows"], record["summary"]
    title = (
        f"{summary['faults']} faults in {summary['runs']} runs: {summary['same_parameters']} in runs that end "
        f"bit-identical to the undisturbed one, {summary['hung']} processes hung"
    )
    figure, (counts, steps, seconds) = _figure(record, title, (16, 5), columns=3)
    kinds, numbers = sorted({row["kind"] for row in rows}), sorted({row["processes"] for row in rows})
    names = [kind.replace("_", "\n") for kind in kinds]
    amounts = Counter((row["kind"], row["processes"]) for row in rows)
    bars = {f"{n} process{'es' * (n > 1)}": [amounts[kind, n] for kind in kinds] for n in numbers}
    _bars(counts, names, bars, "{:.0f}")
    counts.legend()
    counts.set(title="Made", ylabel="faults")
    for ax, field in ((steps, "steps_lost"), (seconds, "seconds_to_end")):
        for i, n in enumerate(numbers):
            chosen = [row for row in rows if row["processes"] == n and row[field] is not None]
            points = [(kinds.index(row["kind"]) + 0.2 * (i - 1), row[field]) for row in chosen]
            ax.plot(*zip(*points, strict=True), "osD^"[i], label=f"{n}", alpha=0.6, markersize=6)
        ax.set_xticks(range(len(kinds)), names)
        ax.grid(axis="y", alpha=0.3)
    steps.axhline(summary["steps_lost_bound"], color="gray", linewidth=0.8)
    steps.set(title="Cost (line: steps between checkpoints, and one)", ylabel="steps lost")
    seconds.set(title="Until all processes had ended, or the cause had", ylabel="seconds")
    return figure


def int8(record: Record) -> Figure:
    """Size, speed and error by dtype and weights, of the trained model and of a random one."""
    rows, parameters = record["rows"], record["model"]["parameters"] / 1e6
    title = f"int8 weights: a trained model of {parameters:.1f}M parameters, and a random one of 100M"
    figure, axes = _figure(record, title, (15, 8), rows=2, columns=3)
    trained, tokens = f"{parameters:.1f}M, trained", rows[0]["tokens"]
    panels = (
        ("megabytes", trained, "weights (MB)", 1, "{:.2f}"),
        ("tokens_per_second", trained, "decoding, batch 1 (tokens/s)", 1, "{:,.0f}"),
        (
            "relative_logit_error",
            f"{trained}: {tokens:,} held-out tokens",
            "RMS error / RMS of logits (%)",
            100,
            "{:.3f}",
        ),
        ("megabytes_100m", "100M, random", "weights (MB)", 1, "{:.1f}"),
        ("tokens_per_second_100m", "100M, random", "decoding, batch 1 (tokens/s)", 1, "{:.1f}"),
        ("kl_nats_per_token", f"{trained}: {tokens:,} held-out tokens", "KL to float32 (µnats/token)", 1e6, "{:.0f}"),
    )
    names = [f"{row['dtype']},\n{row['weights']} weights" for row in rows]
    for ax, (key, title, ylabel, unit, form) in zip(axes, panels, strict=True):
        _bars(ax, names, {"": [unit * row[key] for row in rows]}, form)
        ax.set(title=title, xlabel="computing in, weights kept as", ylabel=ylabel)
        ax.tick_params(axis="x", labelsize=8)
    return figure


def neighbours(record: Record) -> Figure:
    """Bytes that XLA's programs access over the least, by program and generation."""
    rows = [row for row in record["rows"] if not row["failed"]]
    ratios = [(row["program"], row["generation"], row["accessed_bytes"] / row["least_bytes"]) for row in rows]
    title = "Memory traffic of XLA's programs on TPU, as compiled by libtpu (no TPU was used)"
    figure, (ax,) = _figure(record, title, (11, 5.5))
    _dots(ax, ratios)
    ax.set(
        title="1: operands and results once",
        xlabel="bytes accessed / least bytes (log)",
        ylabel="program (number: head dimension)",
    )
    return figure


def scaling(record: Record) -> Figure:
    """Memory per chip against what is there, and the estimated seconds of a step by part."""
    programs = list(record["programs"].values())
    newest = max((report["environment"] for report in programs), key=lambda made: made["date_utc"])
    made = {"command": "python -m benchmarks.scaling", "environment": newest}
    fit = sum(report["fits"] for report in programs)
    title = f"Training steps of the recipes, as compiled for TPU (no TPU was used): {fit} of {len(programs)} fit"
    figure, (memory, time) = _figure(made, title, (18, 10), rows=2)
    names = [_recipe(report) for report in programs]
    sizes = [report["bytes_per_chip"] for report in programs]
    kinds = {kind: [size[kind] / 2**30 for size in sizes] for kind in ("arguments", "peak", "available")}
    _bars(memory, names, kinds, "{:.1f}")
    memory.set(title="Memory", xlabel="config, topology, mesh", ylabel="GiB per chip")
    seconds = [report["seconds"] for report in programs]
    parts = {part: [x[part] for x in seconds] for part in ("operations", "kernels", "collectives")}
    parts["estimate"] = [report["estimated_seconds"] for report in programs]
    _bars(time, names, parts, "{:.2g}", log=True)
    time.set(
        title="Time: the estimate is the larger of operations + kernels, and collectives",
        xlabel="config, topology, mesh",
        ylabel="seconds per step (log)",
    )
    for ax in (memory, time):
        ax.legend(ncols=4, loc="upper left")
        ax.tick_params(axis="x", labelsize=8)
        ax.margins(x=0.01, y=0.2)
    time.set_ylim(top=1000)
    return figure


def _recipe(report: Record) -> str:
    mesh = [f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1]
    return "\n".join([Path(report["config"]).stem, report["topology"], ",\n".join(mesh)])


def schedule(record: Record) -> Figure:
    """Time of the kernels' schedules over that of their bytes, by program, pass and generation."""
    rows = [row for row in record["rows"] if row.get("schedule_over_hbm") is not None]
    ratios = [(f"{row['program']}, {row['pass']}", row["generation"], row["schedule_over_hbm"]) for row in rows]
    title = "Pallas kernels: libtpu's schedule against the memory (no TPU was used)"
    figure, (ax,) = _figure(record, title, (11, 13))
    _dots(ax, ratios)
    ax.set(
        title="left of 1, the schedule hides behind the copies",
        xlabel="time of the schedule's cycles / time of its bytes from and to HBM (log)",
        ylabel="program, pass",
    )
    return figure


def _figure(
    record: Record, title: str, size: tuple[float, float], *, rows: int = 1, columns: int = 1
) -> tuple[Figure, Sequence[Axes]]:
    """An empty figure over the caption of the record, and its axes row by row."""
    # A bare Figure draws by Agg: it needs neither a display nor the global state of pyplot.
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    made = record["environment"]
    packages = [f"{name} {made[name]}" for name in ("jax", "jaxlib", "numpy", "libtpu") if name in made]
    versions = ", ".join([*packages, f"Python {made['python']}", made["date_utc"][:10]])
    caption = f"{record['command']}\n{hardware(made)}, {versions}"
    lines = [part for line in caption.split("\n") for part in textwrap.wrap(line, int(15 * size[0]))]
    figure.supxlabel("\n".join(lines), fontsize=7.5, color="dimgray")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _bars(
    ax: Axes, groups: Sequence[str], bars: Mapping[str, Sequence[float]], form: str, *, log: bool = False
) -> None:
    """Bars of each name side by side in every group, with their values above them."""
    width = 0.8 / len(bars)
    for i, (name, values) in enumerate(bars.items()):
        left = [x - 0.4 + i * width for x in range(len(groups))]
        drawn = ax.bar(left, values, width, align="edge", color=f"C{i}", label=name)
        ax.bar_label(drawn, fmt=form, padding=2, fontsize=8 if len(bars) < 3 else 6.5)
    ax.set_xticks(range(len(groups)), groups)
    ax.margins(y=0.12)
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    if log:
        ax.set_yscale("log")


def _dots(ax: Axes, ratios: Sequence[tuple[str, str, float]]) -> None:
    """A row for each program and a mark for each generation, of ratios (program, generation, x)."""
    programs = list(dict.fromkeys(program for program, _, _ in ratios))
    for i, generation in enumerate(dict.fromkeys(chip for _, chip, _ in ratios)):
        # One a little below another: several generations often have the same ratio.
        points = [(x, programs.index(program) + 0.13 * (i - 2)) for program, chip, x in ratios if chip == generation]
        ax.plot(*zip(*points, strict=True), "osD^v"[i], label=generation, alpha=0.75, markersize=5)
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set(xscale="log", ylim=(len(programs) - 0.5, -0.5))
    ax.set_yticks(range(len(programs)), programs)
    least, most = min(x for _, _, x in ratios), max(x for _, _, x in ratios)
    ticks = [x for x in (0.5, 1, 2, 5, 10, 20) if 0.8 * least < x < 1.2 * most]
    ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(title="TPU", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


PLOTS: dict[str, Callable[[Record], Figure]] = {
    "cpu/cleaning": cleaning,
    "cpu/convert_memory_385m": convert_memory,
    "cpu/convert_memory_7b": convert_memory,
    "cpu/data": data,
    "cpu/faults": faults,
    "cpu/int8": int8,
    "tpu/neighbours": neighbours,
    "tpu/scaling": scaling,
    "tpu/schedule": schedule,
    "tpu/prefill": schedule,
}


if __name__ == "__main__":
    for written in draw(RECORDS):
        print(written)
