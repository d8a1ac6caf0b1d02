"""The page: curves, samples of the checkpoints, the memory of the heads, parameters and configuration."""

from pathlib import Path

import jinja2

from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerLLMConfig
from transnormer_jax.report import contents, pictures
from transnormer_jax.training import load_workdir
from transnormer_jax.training.workdir import Run

# Caption, label of the axis, whether it is logarithmic, and the metrics that are its lines.
_CURVES = (
    ("Loss", "nats per prediction", False, {"training": "loss", "held out": "eval/loss"}),
    ("Norm of the gradient before clipping", "norm", True, {"gradient": "grad_norm"}),
    ("Learning rate", "learning rate", False, {"learning rate": "learning_rate"}),
    ("Throughput, evaluation and saving not counted", "tokens per second", False, {"tokens": "tokens_per_second"}),
    ("Peak memory of a device; on a CPU, of the process", "GB", False, {"memory": "peak_memory_gb"}),
    ("Share of the device's peak (MFU)", "share", False, {"MFU": "mfu"}),
    ("Held-out bits per byte", "bits per byte", False, {"bits per byte": "eval/bits_per_byte"}),
)
_RESULTS = {
    "eval/loss": "held-out loss",
    "eval/bits_per_byte": "held-out bits per byte",
    "eval/accuracy": "held-out accuracy",
}


def render(workdir: Path, prompt: str, max_new_tokens: int, temperature: float) -> str:
    """Returns HTML that refers to nothing outside itself.

    Args:
      workdir: of a run.
      prompt: from which every checkpoint of a TransNormerLLM goes on.
      max_new_tokens: of each sample.
      temperature: of the samples.

    Raises:
      UserError: `workdir` holds no run, no metrics or no checkpoint.
    """
    metrics = contents.read_metrics(workdir)
    run = load_workdir(workdir)
    parameters = contents.parameter_table(run.params)
    is_llm = isinstance(run.model_config, TransNormerLLMConfig)
    heads, notes = _heads(run, run.model_config) if isinstance(run.model_config, TransNormerLLMConfig) else ([], [])
    environment = jinja2.Environment(loader=jinja2.PackageLoader("transnormer_jax.report", ""), autoescape=True)
    return environment.get_template("page.html.jinja").render(
        title=f"{workdir.resolve().name}: {run.config.architecture}, {run.config.task.name}",
        facts=[
            ("parameters", f"{sum(row.size for row in parameters):,}"),
            ("step", f"{run.step:,} of {run.config.num_steps:,}"),
            ("data", ", ".join(run.config.data.sources())),
            *((name, f"{metrics[key][-1][1]:.4f}") for key, name in _RESULTS.items() if key in metrics),
        ],
        curves=[
            (caption, pictures.curves({name: metrics[key] for name, key in known.items()}, label, log=log))
            for caption, label, log, lines in _CURVES
            if (known := {name: key for name, key in lines.items() if key in metrics})
        ],
        samples=list(contents.samples(workdir, prompt, max_new_tokens, temperature)) if is_llm else [],
        heads=heads,
        notes=notes,
        parameters=parameters,
        config=contents.config_text(run),
    )


def _heads(run: Run, config: TransNormerLLMConfig) -> tuple[list[tuple[str, str]], list[str]]:
    """Captions and pictures of what a head keeps, and what is to be said of those that are missing."""
    fading = "After how many tokens a head keeps half of what it saw; empty where nothing fades"
    heads = [(fading, pictures.by_head(contents.half_lives(config), "tokens"))]
    try:
        norms = contents.state_norms(run)
    except UserError as error:
        return heads, [f"The norms of the states are missing: {error}"]
    return [*heads, ("Norm of the state after held-out text", pictures.by_head(norms, "norm"))], []
