"""Writes one self-contained HTML page about a run: curves, samples from its checkpoints, parameters, and heads.

    python -m transnormer_jax.report --workdir=runs/quickstart --prompt="def "

The page needs no network. Samples, and how far each head remembers, are included for a TransNormerLLM trained on text.
"""

from absl import flags

from transnormer_jax import command, storage
from transnormer_jax.errors import UserError
from transnormer_jax.run_flags import define_run_flags

_RUN = define_run_flags("Directory of the run.")
_OUT = flags.DEFINE_string("out", "", "File for the page; report.html in the workdir if empty.")
_PROMPT = flags.DEFINE_string("prompt", "", "Prompt for the samples.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 200, "Length of each sample, in tokens.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.7, "Temperature of the samples; 0 always takes the likeliest token.", lower_bound=0.0
)


def main() -> None:
    """Writes the page."""
    with command.extra("report", "matplotlib"):
        from transnormer_jax.report.page import render
    page = render(
        _RUN.workdir,
        _PROMPT.value,
        _MAX_NEW_TOKENS.value,
        _TEMPERATURE.value,
        step=_RUN.step,
        config=_RUN.config,
    )
    out = storage.as_path(_OUT.value) if _OUT.value else _RUN.workdir / "report.html"
    try:
        out.write_text(page)
    except Exception as error:  # of any store
        raise UserError(f"cannot write {str(out)!r} ({storage.reason(error)}): choose another --out.") from error
    print(f"wrote {out}, {len(page.encode()) / 1e3:,.0f} kB")


if __name__ == "__main__":
    command.run(main)
