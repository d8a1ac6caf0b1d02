"""The page: curves, samples of the checkpoints, the memory of the heads, parameters and configuration."""

from collections.abc import Mapping, Sequence

import jinja2

from transnormer_jax import storage
from transnormer_jax.errors import UserError
from transnormer_jax.models import ModelConfig
from transnormer_jax.report import contents, pictures
from transnormer_jax.tasks import TASKS
from transnormer_jax.training import Config, load_workdir
from transnormer_jax.training.progress import duration
from transnormer_jax.training.workdir import Run

Metrics = Mapping[str, Sequence[tuple[int, float]]]

# Caption, label of the axis, whether it is logarithmic, and the metrics that are its lines.
_CURVES = (
    ("Loss", "nats per prediction", False, {"training": "loss", "held out": "eval/loss"}),
    ("Norm of the gradient before clipping", "norm", True, {"gradient": "grad_norm"}),
    ("Learning rate", "learning rate", False, {"learning rate": "learning_rate"}),
    ("Throughput, evaluation and saving not counted", "tokens per second", False, {"tokens": "tokens_per_second"}),
    ("Peak memory of a device; on a CPU, of the process", "GB", False, {"memory": "peak_memory_gb"}),
    ("Share of the device's peak (MFU)", "share", False, {"MFU": "mfu"}),
    ("Goodput: share of the time since the first start that went into steps", "share", False, {"goodput": "goodput"}),
    ("Held-out bits per byte", "bits per byte", False, {"bits per byte": "eval/bits_per_byte"}),
)
_RESULTS = ("loss", "bits_per_byte", "accuracy")


def render(
    workdir: storage.AnyPath,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    *,
    step: int | None = None,
    config: Config | None = None,
) -> str:
    """Returns HTML that refers to nothing outside itself.

    Args:
      prompt: from which every checkpoint of a TransNormerLLM goes on.
      step: of the checkpoint whose parameters are described; None is the newest.

    Raises:
      UserError: `workdir` holds no run, no metrics or no checkpoint.
    """
    metrics = contents.metrics_by_name(workdir)
    run = load_workdir(workdir, step=step, config=config)
    parameters = contents.parameter_table(run.params)
    model = run.model_config
    samples: list[contents.Sample] = []
    heads: list[tuple[str, str]] = []
    notes: list[str] = []
    if (
        isinstance(model, ModelConfig)
        and model.log_decays() is not None
        and run.config.task.name in ("causal_lm", "supervised_lm")
    ):
        samples = list(contents.samples(workdir, prompt, max_new_tokens, temperature, config))
        heads, notes = _heads(run, model)
    environment = jinja2.Environment(loader=jinja2.PackageLoader("transnormer_jax.report", ""), autoescape=True)
    return environment.get_template("page.html.jinja").render(
        title=f"{storage.absolute(workdir).name}: {run.config.architecture}, {run.config.task.name}",
        facts=[
            ("parameters", f"{sum(row.size for row in parameters):,}"),
            ("step", f"{run.step:,} of {run.config.num_steps:,}"),
            *(("goodput", f"{points[-1][1]:.1%}") for points in known({"": "goodput"}, metrics).values()),
            ("data", ", ".join(run.config.data.sources()) if TASKS[run.config.task.name].reads_data else "none"),
            *(
                (f"held-out {name}", f"{points[-1][1]:.4f}")
                for what in _RESULTS
                for name, points in known({what.replace("_", " "): f"eval/{what}"}, metrics).items()
            ),
        ],
        curves=[
            (caption, pictures.curves(there, label, log=log))
            for caption, label, log, lines in _CURVES
            if (there := known(lines, metrics))
        ],
        spent=[(row.what, duration(row.seconds), f"{row.share:.1%}") for row in contents.time_spent(metrics)],
        samples=samples,
        heads=heads,
        notes=notes,
        parameters=parameters,
        config=contents.config_text(run),
    )


def known(lines: Mapping[str, str], metrics: Metrics) -> Metrics:
    """The lines that there are; of a mixture, `eval/NAME/loss` of every source in place of `eval/loss`."""
    there = {}
    for label, key in lines.items():
        if key in metrics:
            there[label] = metrics[key]
        room, _, name = key.rpartition("/")
        if room:
            sources = [other for other in metrics if other.startswith(f"{room}/") and other.endswith(f"/{name}")]
            there |= {f"{label}, {other.split('/')[1]}": metrics[other] for other in sources if other != key}
    return there


def _heads(run: Run, config: ModelConfig) -> tuple[list[tuple[str, str]], list[str]]:
    """Captions and pictures of what a head keeps, and what is to be said of those that are missing."""
    fading = "After how many tokens a head keeps half of what it saw; empty where nothing fades"
    heads = [(fading, pictures.by_head(contents.half_lives(config), "tokens"))]
    try:
        norms = contents.state_norms(run)
    except UserError as error:
        return heads, [f"The norms of the states are missing: {error}"]
    return [*heads, ("Norm of the state after held-out text", pictures.by_head(norms, "norm"))], []
